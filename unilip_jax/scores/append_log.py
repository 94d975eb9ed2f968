"""JSON lines that are appended one at a time and survive a kill at any moment.

A line is one write to a file opened for appending, followed by fsync: it is complete or it is the torn last
line, which the next open cuts off. One process writes a file at a time.
"""

from collections.abc import Mapping
import fcntl
import json
import os
import pathlib
import threading
from typing import Any

from unilip_jax.common import paths


class AppendLog:
  """Appends records to a file of JSON lines; threads of one process may share it.

  Attributes:
    path: of the file.
    records: those that the file held when it was opened.
    torn: bytes of a torn last line that opening cut off; 0 if the last line was complete.
  """

  def __init__(self, path: str | os.PathLike):
    """Opens a file, or creates it in an existing folder, and locks it until `close`.

    Raises:
      ValueError: if another process has it open, a line is damaged, or the path is not a local file.
    """
    if "://" in str(path):
      raise ValueError(f"{path}: answers are appended to a local file; choose a folder of this machine")
    self.path = pathlib.Path(paths.expand(path))
    self._lock = threading.Lock()
    self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
      self._take()
      self.records, self.torn = self._read()
    except BaseException:
      os.close(self._file)
      raise

  def _take(self) -> None:
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(
          f"another process writes {self.path}; wait until it ends, or choose another folder") from error

  def _read(self) -> tuple[list[dict[str, Any]], int]:
    content = self.path.read_bytes()
    end = content.rfind(b"\n") + 1
    if torn := len(content) - end:
      os.ftruncate(self._file, end)
    return parse_lines(content[:end], self.path), torn

  def append(self, record: Mapping[str, Any]) -> None:
    """Appends a record; returns when it is on the disk."""
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    with self._lock:
      count = os.write(self._file, line)
      if count != len(line):  # e.g. a full disk
        os.ftruncate(self._file, os.fstat(self._file).st_size - count)
        raise OSError(f"{self.path}: {count} of {len(line)} bytes were written; is the disk full?")
      os.fsync(self._file)

  def close(self) -> None:
    """Closes the file, which unlocks it."""
    os.close(self._file)

  def __enter__(self) -> "AppendLog":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Reads the complete lines of a file that another process may be writing.

  Raises:
    ValueError: for a damaged line, with its number.
  """
  content = pathlib.Path(path).read_bytes()
  return parse_lines(content[:content.rfind(b"\n") + 1], path)


def parse_lines(content: bytes, path: Any) -> list[dict[str, Any]]:
  """Parses complete JSON lines of objects; raises ValueError that names file and line."""
  records = []
  for number, line in enumerate(content.split(b"\n")[:-1], 1):
    try:
      record = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise ValueError(f"{path}, line {number} is damaged ({error}); remove this line") from error
    if not isinstance(record, dict):
      raise ValueError(f"{path}, line {number} is not a JSON object; remove this line")
    records.append(record)
  return records
