"""Reads the elements of a JSON list, or JSON lines, one at a time: lists of gigabytes in bounded memory.

Reading also hashes the file, so that the manifest can identify the list a dataset came from.
"""

import codecs
from collections.abc import Iterator
import hashlib
import json
from typing import Any, BinaryIO

from etils import epath

from unilip_jax.common import json_text
from unilip_jax.data import files

_CHUNK = 1 << 16  # bytes
MAX_ELEMENT = 1 << 22  # characters of one element, bytes of one line
_SPACE = " \t\r\n"
_ENDS = frozenset(" \t\r\n,]")  # what may follow an element


class ListError(ValueError):
  """A list that cannot be read further; the message has file, place and remedy."""


class Broken(str):
  """Stands for an element that cannot be meant, and says why."""

  __slots__ = ()


class _Row:
  """Counts and hash of a file, for the manifest."""

  def __init__(self, path: epath.PathLike):
    self.values = {"list": str(path), "items": 0, "bytes": 0, "sha256": ""}
    self._digest = hashlib.sha256()

  def note(self, data: bytes) -> None:
    """Counts and hashes the next bytes of the file."""
    self._digest.update(data)
    self.values["bytes"] += len(data)

  def finish(self) -> dict[str, Any]:
    """Returns the row of a file that was read to its end."""
    return self.values | {"sha256": self._digest.hexdigest()}


class _Text:
  """A file's text from a position on; earlier text is discarded, later text is read as needed."""

  def __init__(self, path: epath.PathLike, file: BinaryIO, row: _Row):
    self._path, self._file, self._row = path, file, row
    self._utf8, self._json = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder(
        object_pairs_hook=self._pairs)
    self._doubled = ""
    self._text, self._at, self._before, self._ended = "", 0, 0, False

  def error(self, what: str) -> ListError:
    """Returns an error that names the position."""
    return ListError(f"{self._path}: element {self._row.values['items']}, near character "
                     f"{self._before + self._at}: {what}")

  def peek(self) -> str:
    """Moves to the next character other than white space and returns it; "" at the end."""
    while True:
      while self._at < len(self._text):
        if self._text[self._at] not in _SPACE:
          return self._text[self._at]
        self._at += 1
      if not self._more():
        return ""

  def skip(self) -> None:
    """Moves past one character."""
    self._at += 1

  def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    self._doubled = self._doubled or json_text.doubled(pairs)
    return dict(pairs)

  def value(self) -> Any:
    """Reads the JSON value at the position and moves past it; Broken for one with a name twice."""
    self.peek()
    while True:
      self._doubled = ""
      try:
        value, end = self._json.raw_decode(self._text, self._at)
        # Another end means a number that continues in the next chunk.
        if self._text[end:end + 1] in _ENDS:
          self._at = end
          return Broken(f"bad JSON: {self._doubled}") if self._doubled else value
        wrong = f"{self._text[end]!r} follows it" if end < len(self._text) else "the list is not closed"
      except RecursionError:
        raise self.error("nested too deeply") from None
      except ValueError as error:
        wrong = str(error)
      if len(self._text) - self._at > MAX_ELEMENT or not self._more():
        raise self.error(f"broken, or longer than {MAX_ELEMENT} characters ({wrong}); download the file "
                         "again")

  def _more(self) -> bool:
    """Reads another chunk; returns False at the end."""
    data = self._file.read(_CHUNK)
    self._row.note(data)
    try:
      text = self._utf8.decode(data, final=not data)
    except UnicodeDecodeError as error:
      raise self.error(f"not UTF-8 ({error})") from None
    self._text, self._before, self._at = self._text[self._at:] + text, self._before + self._at, 0
    return bool(data)


def _check_unchanged(path: epath.PathLike, stamp: str) -> None:
  if files.stamp(path) != stamp:
    raise ListError(f"{path} changed while it was read; wait until it is written completely, then run the "
                    "same command again")


def open_list(path: epath.Path) -> BinaryIO:
  """Opens a list for reading.

  Raises:
    FileNotFoundError: with the remedy.
  """
  if not files.is_file(path):
    raise FileNotFoundError(f"{path} does not exist or is not a file; docs/data.md lists what to download")
  return path.open("rb")


def array(path: epath.PathLike, rows: list[dict[str, Any]]) -> Iterator[Any]:
  """Yields the elements of the list in a JSON file; Broken for one with an object that has a name twice.

  Args:
    path: of the file, local or gs://; UTF-8.
    rows: receives {"list", "items", "bytes", "sha256"} once the file was read to its end.

  Raises:
    FileNotFoundError: if the file does not exist.
    ListError: if it is not a JSON list, or truncated.
  """
  row = _Row(path)
  with open_list(epath.Path(path)) as f:
    stamp = files.stamp(path)
    text = _Text(path, f, row)
    if (mark := text.peek()) != "[":
      raise ListError(f"{path} is not a JSON list: it begins with {mark!r}, not with '['")
    text.skip()
    if text.peek() != "]":
      mark = ","
    while mark == ",":
      yield text.value()
      row.values["items"] += 1
      mark = text.peek()
      if mark == ",":
        text.skip()
    if text.peek() != "]":
      raise text.error(f"expected ',' or ']', not {text.peek()!r}; download the file again")
    text.skip()
    if rest := text.peek():
      raise text.error(f"{rest!r} follows the end of the list")
    _check_unchanged(path, stamp)
  rows.append(row.finish())


def lines(path: epath.PathLike, rows: list[dict[str, Any]]) -> Iterator[tuple[int, Any, str]]:
  """Yields the values of a file of JSON lines; empty lines are skipped.

  Args:
    path: of the file, local or gs://; UTF-8.
    rows: see `array`.

  Yields:
    (number of the line from 1, value, "" or the error of the line).

  Raises:
    FileNotFoundError: if the file does not exist.
    ListError: for a line longer than 4 MiB.
  """
  row = _Row(path)
  number = 0
  with open_list(epath.Path(path)) as f:
    stamp = files.stamp(path)
    while line := f.readline(MAX_ELEMENT + 1):
      number += 1
      row.note(line)
      if len(line) > MAX_ELEMENT:
        raise ListError(f"{path}, line {number} is longer than {MAX_ELEMENT} bytes; expected one record "
                        "a line")
      if not line.strip():
        continue
      row.values["items"] += 1
      try:
        yield number, json_text.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")), ""
      except ValueError as error:
        yield number, None, f"bad JSON: {error}"
    _check_unchanged(path, stamp)
  rows.append(row.finish())
