"""Elements of a JSON list, or of JSON lines, one at a time: lists of gigabytes in bounded memory.

Reading also hashes the file, so that the manifest can say from which list a dataset was made.
"""

import codecs
from collections.abc import Iterator
import hashlib
import json
from typing import Any

from etils import epath

from unilip_jax.data import sources

_CHUNK = 1 << 16  # bytes
LONGEST = 1 << 22  # characters of one element, bytes of one line
_SPACE = " \t\r\n"
_ENDS = frozenset(" \t\r\n,]")  # what may follow an element


class ListError(ValueError):
  """A list that cannot be read on; the message names file, place and remedy."""


class _Reader:
  """A file's text in pieces; `row` says what was read of it."""

  def __init__(self, path: epath.Path):
    self.path, self.row = path, {"list": str(path), "items": 0, "bytes": 0, "sha256": ""}
    self._digest = hashlib.sha256()

  def note(self, data: bytes) -> None:
    self._digest.update(data)
    self.row["bytes"] += len(data)

  def finish(self) -> None:
    self.row["sha256"] = self._digest.hexdigest()


def open_list(path: epath.Path) -> Any:
  """Opens a list for reading.

  Raises:
    FileNotFoundError: naming the remedy.
  """
  if not sources.is_file(path):
    raise FileNotFoundError(f"{path} is not there, or no file; docs/data.md says what to download")
  return path.open("rb")


def array(path: epath.PathLike, rows: list[dict[str, Any]]) -> Iterator[Any]:
  """Elements of the list that a JSON file holds.

  Args:
    path: of the file, local or gs://; UTF-8.
    rows: gets {"list", "items", "bytes", "sha256"} when the file was read to its end.

  Raises:
    FileNotFoundError: if it is not there.
    ListError: if it is no JSON list, or breaks off.
  """
  reader = _Reader(epath.Path(path))
  decoder, utf8 = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")()
  with open_list(reader.path) as f:
    text, at, ended, consumed, opened = "", 0, False, 0, False

    def where() -> str:
      return f"element {reader.row['items']}, near character {consumed + at}"

    while True:
      while at < len(text) and text[at] in _SPACE:
        at += 1
      if at < len(text):
        if not opened:
          if text[at] != "[":
            raise ListError(f"{path} is no JSON list: it begins with {text[at]!r}, not with '['")
          opened, at = True, at + 1
          first = True
          continue
        if text[at] == "]":
          break
        start = at
        if not first:
          if text[at] != ",":
            raise ListError(f"{path}: {where()}: ',' or ']' is wanted, not {text[at]!r}; "
                            "download the file again")
          start = at + 1
          while start < len(text) and text[start] in _SPACE:
            start += 1
        if start < len(text):
          try:
            value, end = decoder.raw_decode(text, start)
            wrong = f"{text[end]!r} follows it" if end < len(text) else "the list is not closed"
            if text[end:end + 1] in _ENDS:  # else a number is cut off where the piece ends
              yield value
              reader.row["items"] += 1
              first, at = False, end
              continue
          except RecursionError:
            raise ListError(f"{path}: {where()} is nested too deeply") from None
          except ValueError as error:
            wrong = str(error)
          if ended or len(text) - start > LONGEST:
            raise ListError(f"{path}: {where()} is broken, or longer than {LONGEST} characters ({wrong}); "
                            "download the file again")
      if ended:
        raise ListError(f"{path} breaks off at {where()}: the list is not closed; download it again")
      data = f.read(_CHUNK)
      reader.note(data)
      ended = not data
      try:
        text, consumed, at = text[at:] + utf8.decode(data, ended), consumed + at, 0
      except UnicodeDecodeError as error:
        raise ListError(f"{path}: {where()} is not UTF-8 ({error})") from None
    rest = text[at + 1:]
    while True:
      if rest.strip(_SPACE):
        raise ListError(f"{path}: {rest.strip()[:20]!r} stands behind the end of the list")
      data = f.read(_CHUNK)
      if not data:
        break
      reader.note(data)
      rest = data.decode(errors="replace")
  reader.finish()
  rows.append(reader.row)


def lines(path: epath.PathLike, rows: list[dict[str, Any]]) -> Iterator[tuple[int, Any, str]]:
  """Values of a file of JSON lines; empty lines are passed over.

  Args:
    path: of the file, local or gs://; UTF-8.
    rows: see `array`.

  Yields:
    (number of the line from 1, value, "" or what is wrong with the line).

  Raises:
    FileNotFoundError: if it is not there.
    ListError: for a line longer than 4 MiB.
  """
  reader = _Reader(epath.Path(path))
  number = 0
  with open_list(reader.path) as f:
    while line := f.readline(LONGEST + 1):
      number += 1
      reader.note(line)
      if len(line) > LONGEST:
        raise ListError(f"{path}, line {number} is longer than {LONGEST} bytes: one record a line")
      if not line.strip():
        continue
      reader.row["items"] += 1
      try:
        yield number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")), ""
      except RecursionError:
        yield number, None, "bad JSON: nested too deeply"
      except ValueError as error:
        yield number, None, f"bad JSON: {error}"
  reader.finish()
  rows.append(reader.row)
