"""Opens lists of records for random access: JSON lines, JSON and CSV in memory, Parquet and Arrow on disk.

Lists in memory are small: paths and texts. Of Parquet, the row groups that were read last stay in memory.
Arrow files of `Dataset.save_to_disk` are memory-mapped.
"""

import abc
import bisect
import collections
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import csv
import functools
import io
import itertools
import os
import threading
from typing import Any

from unilip_jax.data import decode, files, omissions
from unilip_jax.data.prepare import json_lists

_KEPT_BYTES = 2**29  # of row groups of Parquet files that stay in memory
MAX_ROWS = 2_000_000  # of a list in memory; `unilip data json_lines` converts larger ones
_BAD_LINE = "line that is no JSON object, or has more values than columns"


class Table(abc.ABC):
  """Random access to rows; picklable.

  Attributes:
    columns: names, in order.
  """

  columns: Sequence[str]

  @abc.abstractmethod
  def __len__(self) -> int:
    """Returns the number of rows."""

  @abc.abstractmethod
  def row(self, index: int, columns: Sequence[str]) -> Mapping[str, Any]:
    """Reads columns of one row.

    Raises:
      OSError, decode.BadRecordError: if it cannot be read.
    """

  @abc.abstractmethod
  def place(self, index: int) -> tuple[str, str]:
    """Returns (name of a row for logs, file that holds it); paths in a row are relative to its folder."""


class MemoryTable(Table):
  """Rows of JSON lines, a JSON list or CSV."""

  def __init__(self, paths: Sequence[str], left_out: omissions.Omissions):
    """Reads the lists.

    Args:
      paths: local or gs://.
      left_out: counts lines that are no rows.

    Raises:
      ValueError: for a file that cannot be read as a list, one that is too long, or lists without a row.
    """
    self._rows: list[tuple[str, str, Mapping[str, Any]]] = []
    for path in paths:
      for place, value in _read(path):
        if len(self._rows) >= MAX_ROWS:
          raise ValueError(f"{path} has more than {MAX_ROWS} rows: convert it once with `unilip data "
                           "json_lines` (docs/data.md)")
        if isinstance(value, Mapping):
          self._rows.append((place, path, value))
        else:
          left_out.add(_BAD_LINE, f"{place}: {str(value)[:80]}")
    if not self._rows:
      raise ValueError(f"{', '.join(paths)}: no rows" + (f". Left out: {left_out}" if left_out else ""))
    names = itertools.chain.from_iterable(row for _, _, row in self._rows)
    self.columns = list(dict.fromkeys(map(str, names)))

  def __len__(self) -> int:
    return len(self._rows)

  def row(self, index: int, columns: Sequence[str]) -> Mapping[str, Any]:
    values = self._rows[index][2]
    return {name: values.get(name) for name in columns}

  def place(self, index: int) -> tuple[str, str]:
    return self._rows[index][:2]


def _read(path: str) -> Iterator[tuple[str, Any]]:
  """Yields (place, value) of a list's elements; the value of a broken line is its error."""
  name = os.path.basename(path)
  if path.lower().endswith((".jsonl", ".ndjson")):
    for number, value, problem in json_lists.lines(path, []):
      yield f"{name}:{number}", problem or value
  elif path.lower().endswith(".json"):
    for number, value in enumerate(json_lists.array(path, [])):
      yield f"{name}[{number}]", value
  else:
    try:
      text = files.read_file(path).decode("utf-8-sig")
      table = csv.DictReader(io.StringIO(text, newline=""))
      columns = table.fieldnames or ()
      if len({*columns}) < len(columns):
        raise ValueError(f"{path} has two columns of one name: {', '.join(columns)}")
      for number, value in enumerate(table, 2):
        extra = value.pop(None, None)  # a text with a comma needs quotes
        yield f"{name}:{number}", value if extra is None else f"more values than columns: {extra}"
    except (UnicodeDecodeError, csv.Error) as error:
      raise ValueError(f"{path} is no CSV in UTF-8: {error}") from error


class _PyArrowTable(Table):
  """Rows of several files of pyarrow, which each process opens for itself."""

  def __init__(self, paths: Sequence[str]):
    self._paths = list(paths)
    self._stamps = [files.stamp(path) for path in paths]
    self._clear()
    schemas = [self._schema(i) for i in range(len(paths))]
    self.columns = list(schemas[0])
    if len({*self.columns}) < len(self.columns):
      raise ValueError(f"{paths[0]} has two columns of one name: {', '.join(self.columns)}")
    for path, schema in zip(paths, schemas):
      if list(schema) != self.columns:
        raise ValueError(f"{path} has the columns {', '.join(schema)}, {paths[0]} has "
                         f"{', '.join(self.columns)}: keep files of one kind in the folder")
    self._ends = list(itertools.accumulate(self._length(i) for i in range(len(paths))))

  def __getstate__(self):
    return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_open_files", "_groups")}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._clear()

  def _clear(self) -> None:
    self._lock = threading.Lock()
    self._open_files: dict[int, Any] = {}
    self._groups: collections.OrderedDict[Any, Any] = collections.OrderedDict()

  def __len__(self) -> int:
    return self._ends[-1]

  def place(self, index: int) -> tuple[str, str]:
    file = bisect.bisect_right(self._ends, index)
    return f"row {index - (self._ends[file - 1] if file else 0)}", self._paths[file]

  def row(self, index: int, columns: Sequence[str]) -> Mapping[str, Any]:
    import pyarrow as pa

    file = bisect.bisect_right(self._ends, index)
    files.check_stamp(self._paths[file], self._stamps[file])
    try:
      with self._lock:
        table, at = self._part(file, index - (self._ends[file - 1] if file else 0), tuple(columns))
      return {name: table.column(name)[at].as_py() for name in columns}
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
      if getattr(error, "errno", None) is not None:  # of the file system
        raise
      raise decode.BadRecordError(f"{self._paths[file]}: {error}") from error

  def _opened(self, file: int) -> Any:
    if file not in self._open_files:
      self._open_files[file] = self._open(self._paths[file])
    return self._open_files[file]

  def stamps(self) -> Sequence[str]:
    """Returns the stamp of each file."""
    return self._stamps

  @abc.abstractmethod
  def _open(self, path: str) -> Any:
    """Opens a file."""

  @abc.abstractmethod
  def _schema(self, file: int) -> Sequence[str]:
    """Returns the columns of a file."""

  @abc.abstractmethod
  def _length(self, file: int) -> int:
    """Returns the rows of a file."""

  @abc.abstractmethod
  def _part(self, file: int, row: int, columns: tuple[str, ...]) -> tuple[Any, int]:
    """Returns (a table of pyarrow, row in it)."""


@contextlib.contextmanager
def _named(path: str, kind: str) -> Iterator[None]:
  """Adds the file's name to errors about its content; those of the file system have it."""
  import pyarrow as pa

  try:
    yield
  except (pa.ArrowException, OSError) as error:
    if getattr(error, "errno", None) is not None:
      raise
    raise ValueError(
        f"{path} is no {kind} file, or damaged: {error}; write or download it again") from error


class ParquetTable(_PyArrowTable):
  """Rows of Parquet files."""

  def _open(self, path: str) -> Any:
    from pyarrow import parquet

    with _named(path, "Parquet"):
      return parquet.ParquetFile(path if "://" not in path else io.BytesIO(files.read_file(path)))

  def _schema(self, file: int) -> Sequence[str]:
    return self._opened(file).schema_arrow.names

  def _length(self, file: int) -> int:
    return self._opened(file).metadata.num_rows

  @functools.cached_property
  def _starts(self) -> list[list[int]]:
    """First row of each row group, by file."""
    found = []
    for i in range(len(self._paths)):
      meta = self._opened(i).metadata
      rows = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
      found.append([0, *itertools.accumulate(rows)][:-1] or [0])
    return found

  def _part(self, file: int, row: int, columns: tuple[str, ...]) -> tuple[Any, int]:
    starts = self._starts[file]
    group = bisect.bisect_right(starts, row) - 1
    key = (file, group, columns)
    if key not in self._groups:
      self._groups[key] = self._opened(file).read_row_group(group, columns=list(columns))
      while len(self._groups) > 1 and sum(t.nbytes for t in self._groups.values()) > _KEPT_BYTES:
        self._groups.popitem(last=False)
    self._groups.move_to_end(key)
    return self._groups[key], row - starts[group]


class ArrowTable(_PyArrowTable):
  """Rows of the Arrow files that `Dataset.save_to_disk` of Hugging Face writes."""

  def _open(self, path: str) -> Any:
    import pyarrow as pa

    with _named(path, "Arrow"), pa.memory_map(path) as source:
      try:
        return pa.ipc.open_stream(source).read_all()
      except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source).read_all()

  def _schema(self, file: int) -> Sequence[str]:
    return self._opened(file).column_names

  def _length(self, file: int) -> int:
    return self._opened(file).num_rows

  def _part(self, file: int, row: int, columns: tuple[str, ...]) -> tuple[Any, int]:
    del columns
    return self._opened(file), row
