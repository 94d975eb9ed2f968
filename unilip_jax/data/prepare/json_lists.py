"""Elements of a JSON list, or of JSON lines, one at a time: lists of gigabytes in bounded memory.

Reading also hashes the file, so that the manifest can say from which list a dataset was made.
"""

import codecs
from collections.abc import Iterator
import hashlib
import json
from typing import Any, BinaryIO

from etils import epath

from unilip_jax.data import sources

_CHUNK = 1 << 16  # bytes
LONGEST = 1 << 22  # characters of one element, bytes of one line
_SPACE = " \t\r\n"
_ENDS = frozenset(" \t\r\n,]")  # what may follow an element


class ListError(ValueError):
  """A list that cannot be read on; the message names file, place and remedy."""


class _Row:
  """What was read of a file, for the manifest."""

  def __init__(self, path: epath.PathLike):
    self.values = {"list": str(path), "items": 0, "bytes": 0, "sha256": ""}
    self._digest = hashlib.sha256()

  def note(self, data: bytes) -> None:
    """Counts and hashes what was read."""
    self._digest.update(data)
    self.values["bytes"] += len(data)

  def finish(self) -> dict[str, Any]:
    """The row of a file that was read to its end."""
    return self.values | {"sha256": self._digest.hexdigest()}


class _Text:
  """A file's text from a position on; what lies before it is forgotten, what follows is read as needed."""

  def __init__(self, path: epath.PathLike, file: BinaryIO, row: _Row):
    self._path, self._file, self._row = path, file, row
    self._utf8, self._json = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder()
    self._text, self._at, self._before, self._ended = "", 0, 0, False

  def error(self, what: str) -> ListError:
    """An error at the position."""
    return ListError(f"{self._path}: element {self._row.values['items']}, near character "
                     f"{self._before + self._at}: {what}")

  def peek(self) -> str:
    """The next character that is no space, which becomes the position; "" at the end."""
    while True:
      while self._at < len(self._text):
        if self._text[self._at] not in _SPACE:
          return self._text[self._at]
        self._at += 1
      if not self._more():
        return ""

  def skip(self) -> None:
    """Passes over one character."""
    self._at += 1

  def value(self) -> Any:
    """Passes over a JSON value and gives it."""
    self.peek()
    while True:
      try:
        value, end = self._json.raw_decode(self._text, self._at)
        # What ends otherwise is a number that goes on in the next piece.
        if self._text[end:end + 1] in _ENDS:
          self._at = end
          return value
        wrong = f"{self._text[end]!r} follows it" if end < len(self._text) else "the list is not closed"
      except RecursionError:
        raise self.error("nested too deeply") from None
      except ValueError as error:
        wrong = str(error)
      if len(self._text) - self._at > LONGEST or not self._more():
        raise self.error(f"broken, or longer than {LONGEST} characters ({wrong}); download the file again")

  def _more(self) -> bool:
    """Reads another piece; False at the end."""
    data = self._file.read(_CHUNK)
    self._row.note(data)
    try:
      read = self._utf8.decode(data, final=not data)
    except UnicodeDecodeError as error:
      raise self.error(f"not UTF-8 ({error})") from None
    self._text, self._before, self._at = self._text[self._at:] + read, self._before + self._at, 0
    return bool(data)


def open_list(path: epath.Path) -> BinaryIO:
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
  row = _Row(path)
  with open_list(epath.Path(path)) as f:
    text = _Text(path, f, row)
    if (mark := text.peek()) != "[":
      raise ListError(f"{path} is no JSON list: it begins with {mark!r}, not with '['")
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
      raise text.error(f"',' or ']' is wanted, not {text.peek()!r}; download the file again")
    text.skip()
    if rest := text.peek():
      raise text.error(f"{rest!r} stands behind the end of the list")
  rows.append(row.finish())


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
  row = _Row(path)
  number = 0
  with open_list(epath.Path(path)) as f:
    while line := f.readline(LONGEST + 1):
      number += 1
      row.note(line)
      if len(line) > LONGEST:
        raise ListError(f"{path}, line {number} is longer than {LONGEST} bytes: one record a line")
      if not line.strip():
        continue
      row.values["items"] += 1
      try:
        yield number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")), ""
      except RecursionError:
        yield number, None, "bad JSON: nested too deeply"
      except ValueError as error:
        yield number, None, f"bad JSON: {error}"
  rows.append(row.finish())
