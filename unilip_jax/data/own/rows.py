"""Turns rows of a list into records: images by path or as bytes, captions, instructions, conversations."""

from collections.abc import Mapping, Sequence
import copy
import os
import posixpath
from typing import Any

from unilip_jax.common import paths
from unilip_jax.data import conversations, decode, files, omissions, sources
from unilip_jax.data.own import columns, tables

_NO_IMAGE = "row without an image"
_SEVERAL = "row with several images where one is read"
_NO_TEXT = "row without text"
_NO_FILE = "image that does not exist"
_URL = "image that is a URL: download it and write its path"


class Rows(sources.Source):
  """Records of a list in memory, of Parquet or of Arrow files."""

  def __init__(
      self, table: tables.Table, example: str, left_out: omissions.Omissions, *, caption: str = "",
      prompt: str = ""):
    """Finds the columns, and checks the rows of a list in memory.

    Args:
      table: the rows.
      example: a key of sources.PARTS.
      left_out: counts the rows that are no records; continued.
      caption: column of the text; "" finds it.
      prompt: of rows without text; "" leaves them out.

    Raises:
      ValueError: if no columns fit.
    """
    self._table, self._prompt, self._left_out = table, prompt, left_out
    self._roles = dict(columns.roles(table.columns, example, caption=caption, prompt=prompt))
    self._needs_text = "text" in sources.PARTS[example]
    self._stamps: dict[str, str] = {}
    self._rows: Sequence[int] = range(len(table))
    if isinstance(table, tables.MemoryTable):
      self._rows = [i for i in self._rows if self._is_record(i)]

  @property
  def roles(self) -> Mapping[str, Sequence[str]]:
    """The columns of each part, for the log."""
    return self._roles

  def files(self) -> set[str]:
    """Returns the image files that a list in memory names."""
    return {*self._stamps}

  def _is_record(self, index: int) -> bool:
    """Returns whether a row of a list is a record, and counts it otherwise."""
    name, path = self._table.place(index)
    row = self._table.row(index, self._columns())
    reason = ""
    for part, (column, *_) in self._roles.items():
      if part in ("image", "cond_image") and not reason:
        reason = self._why_no_image(path, row[column])
    if self._needs_text and not reason and not self._text(row):
      reason = _NO_TEXT
    if columns.CHAT in self._roles and not reason:
      try:
        self._turns(row)
      except decode.BadRecordError as error:
        reason = str(error)
    if reason:
      self._left_out.add(reason, f"{name} in {path}")
    return not reason

  def _why_no_image(self, listing: str, value: Any) -> str:
    """Returns why a row has no image; notes the stamp of its file otherwise."""
    value = _single(value)
    if isinstance(value, list) and len(value) > 1:
      return _SEVERAL
    if not isinstance(value, str) or not value.strip():
      return "" if isinstance(value, bytes | Mapping) else _NO_IMAGE
    if _is_url(value):
      return _URL
    file = _file_of(listing, value)
    if not paths.is_remote(file) and file not in self._stamps:
      try:
        self._stamps[file] = files.stamp(file)
      except (OSError, ValueError):
        return _NO_FILE
    return ""

  def _columns(self) -> list[str]:
    return list(dict.fromkeys(name for names in self._roles.values() for name in names))

  def left_out(self) -> omissions.Omissions:
    return self._left_out

  def stamps(self) -> Sequence[str]:
    if isinstance(self._table, tables.MemoryTable):
      column, = self._roles.get("image", self._roles.get("cond_image", ("",)))[:1]
      found = []
      for i in self._rows:
        value = _single(self._table.row(i, [column])[column])
        if not isinstance(value, str):
          return ()
        found.append(self._stamps.get(_file_of(self._table.place(i)[1], value), ""))
      return found if all(found) else ()
    return self._table.stamps()

  def without(self, part: str) -> "Rows":
    """Returns a source of the same records that does not read a part."""
    other = copy.copy(self)
    other._roles = {name: value for name, value in self._roles.items() if name != part}
    other._needs_text = self._needs_text and part != "text"
    return other

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> sources.Record:
    index = self._rows[index]
    name, path = self._table.place(index)
    row = self._table.row(index, self._columns())
    parts: dict[str, bytes] = {}
    for part, names in self._roles.items():
      if part in ("image", "cond_image"):
        parts[part] = self._image(path, row[names[0]])
      elif part == columns.CHAT:
        parts[part] = self._turns(row)
    if self._needs_text:
      if not (text := self._text(row)):
        raise decode.BadRecordError(_NO_TEXT)
      parts["text"] = text.encode(errors="replace")
    return sources.Record(parts, name, path)

  def _text(self, row: Mapping[str, Any]) -> str:
    """Returns the caption or instruction of a row, else the prompt for all."""
    value = row[self._roles["text"][0]] if "text" in self._roles else None
    value = _single(value)
    return value if isinstance(value, str) and value.strip() else self._prompt

  def _turns(self, row: Mapping[str, Any]) -> bytes:
    names = self._roles[columns.CHAT]
    try:
      entry = {names[0]: row[names[0]]} if len(names) == 1 else {"turns": [[row[n] for n in names]]}
      lower = {name.lower(): value for name, value in entry.items()}
      return conversations.as_json(conversations.turns_of(lower)).encode(errors="replace")
    except ValueError as error:
      raise decode.BadRecordError(str(error)) from error

  def _image(self, listing: str, value: Any) -> bytes:
    """Returns the bytes of an image that a row holds, or that a path in it names."""
    value = _single(value)
    if isinstance(value, Mapping):  # Hugging Face's: {"bytes": …, "path": …}
      value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
      return value
    if not isinstance(value, str) or not value.strip():
      raise decode.BadRecordError(_SEVERAL if isinstance(value, list) and value else _NO_IMAGE)
    if _is_url(value):
      raise decode.BadRecordError(f"{value[:80]}: {_URL}")
    file = _file_of(listing, value)
    try:
      return files.read_file(file, self._stamps.get(file, ""))
    except files.ChangedError as error:
      raise decode.BadRecordError(str(error)) from error


def _single(value: Any) -> Any:
  """Returns the only element of a list, as lists of conversations hold their image."""
  return value[0] if isinstance(value, list) and len(value) == 1 else value


def _is_url(value: str) -> bool:
  return value.startswith("data:") or ("://" in value and not paths.is_remote(value))


def _file_of(listing: str, value: str) -> str:
  """Returns the path of an image that a list names, relative to the folder of the list."""
  value = value.strip()
  if paths.is_remote(value) or os.path.isabs(value):
    return value
  joined = posixpath.join(posixpath.dirname(listing), value)
  return joined if paths.is_remote(joined) else posixpath.normpath(joined)
