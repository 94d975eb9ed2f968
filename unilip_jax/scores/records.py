"""Files that others wrote: read tolerantly, with an account of what is skipped, doubled or absent."""

import collections
from collections.abc import Iterable, Iterator, Sequence
import csv
import io
import json
from typing import Any

from etils import epath

from unilip_jax.common import errors, paths


class Account:
  """Counts records that are malformed or missing, and names each.

  Attributes:
    malformed: records that are present and unreadable.
    missing: expected records that are absent.
    messages: one for each, and other remarks.
  """

  def __init__(self):
    self.malformed = 0
    self.missing = 0
    self.messages: list[str] = []

  def skip(self, where: str, why: str) -> None:
    """Counts a malformed record."""
    self.malformed += 1
    self.messages.append(f"{where}: malformed: {why}")

  def absent(self, what: str, names: Iterable[Any]) -> None:
    """Counts missing records and names each (of more than 1000 the first).

    Args:
      what: kind of record, plural.
      names: of each missing record.
    """
    names = list(names)
    if names:
      self.missing += len(names)
      self.messages.append(f"{len(names)} missing {what}: {enumerate_names(names, shown=1000)}")

  def check_range(self, where: str, value: float, low: float, high: float) -> None:
    """Names a score outside of its scale, which the official program takes as it is."""
    if not low <= value <= high:
      self.note(f"{where}: {value:g} is outside {low:g} to {high:g} and counts as it is")

  def note(self, text: str) -> None:
    """Adds a remark that changes no count."""
    self.messages.append(text)

  def doubled(self, what: str, names: Iterable[Any], effect: str) -> None:
    """Names the values that occur more than once.

    Args:
      what: kind of name, singular.
      names: all of them, with repetitions.
      effect: what the score makes of them.
    """
    counts = collections.Counter(names)
    for name, count in counts.items():
      if count > 1:
        self.note(f"{what} {name} occurs {count} times: {effect}")


def enumerate_names(names: Iterable[Any], *, shown: int = 8) -> str:
  """Joins names; the first `shown`, then how many more."""
  names = [str(name) for name in names]
  more = f" and {len(names) - shown} more" if len(names) > shown else ""
  return ", ".join(names[:shown]) + more


def existing(path: epath.PathLike, what: str) -> epath.Path:
  """Expands a path.

  Args:
    path: local or gs:// path of a file or folder.
    what: for the error.

  Raises:
    FileNotFoundError: if nothing is there.
  """
  found = paths.path(path)
  if not found.exists():
    raise FileNotFoundError(f"no {what} at {path}; see docs/evals.md for what is expected")
  return found


def find_file(folder: epath.Path, names: Iterable[str], what: str) -> epath.Path:
  """Returns the first of several files of a folder that exists; a path of a file is returned itself.

  Raises:
    FileNotFoundError: naming all that were tried.
  """
  if not folder.is_dir():
    return folder
  names = list(names)
  for name in names:
    if (folder / name).exists():
      return folder / name
  raise FileNotFoundError(f"{folder} lacks {' or '.join(names)}: {what}; see docs/evals.md")


def files(folder: epath.Path, suffix: str) -> list[epath.Path]:
  """Lists the files below a folder whose names end in a suffix, sorted by path."""
  found = []
  for path in folder.iterdir():
    if path.is_dir():
      found += files(path, suffix)
    elif path.name.endswith(suffix):
      found.append(path)
  return sorted(found, key=str)


def read_json(path: epath.Path, account: Account) -> Any:
  """Reads a JSON file; keys that occur twice in an object are noted (the last one counts).

  Raises:
    ValueError: for a file that is no JSON.
  """

  def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    account.doubled(f"{path.name}: the key", [k for k, _ in items], "the last one counts")
    return dict(items)

  try:
    return json.loads(read_text(path), object_pairs_hook=pairs)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not a JSON file: {error}") from error


def read_items_json(path: epath.Path) -> Any:
  """Reads a benchmark's own JSON file.

  Raises:
    ValueError: for a file that is no JSON, or a key that occurs twice in an object, each named.
  """
  account = Account()
  value = read_json(path, account)
  if account.messages:
    doubled = [f"  {message.partition(': ')[2]}" for message in account.messages]
    raise ValueError(f"{path} holds several items of the same id:\n{errors.listed(doubled)}")
  return value


def parse_json(text: str) -> Any:
  """Parses JSON; raises ValueError for any text that is none, however deeply it is nested."""
  try:
    return json.loads(text)
  except RecursionError as error:
    raise ValueError(str(error)) from error


def read_text(path: epath.Path) -> str:
  """Reads a text file, without a byte order mark.

  Raises:
    ValueError: for a file that is not UTF-8, and a pipe or device, whose reading might never end.
  """
  if path.exists() and not paths.is_file(path) and not path.is_dir():
    raise ValueError(f"{path} is a pipe or a device; a file is needed")
  try:
    return path.read_bytes().decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not a text file in UTF-8: {error}") from error


def csv_rows(path: epath.Path, delimiter: str = ",") -> list[dict[str, str | None]]:
  """Reads a table with the columns' names in its first line; cells that a row lacks are None.

  Raises:
    ValueError: for a file that is not UTF-8, or a row with more cells than columns.
  """
  csv.field_size_limit(2**31 - 1)  # base64 of an image is one field
  reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
  try:
    rows = list(reader)
  except csv.Error as error:
    raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
  for number, row in enumerate(rows, 2):
    if None in row:
      raise ValueError(f"{path.name}, row {number}: malformed: {len(row[None])} cells more than columns")
  return rows


def json_lines(path: epath.Path) -> Iterator[tuple[int, str]]:
  """Yields (line number from 1, line) of a text file, split at line feeds alone.

  Raises:
    ValueError: for a file that is not UTF-8.
  """
  lines = read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
  yield from enumerate(lines[:-1] if lines[-1] == "" else lines, 1)


def check_names(source: epath.PathLike, named: Iterable[tuple[str, str]]) -> None:
  """Checks ids that name files, and the prompts of the files.

  Args:
    source: for errors.
    named: (id, prompt) of each item.

  Raises:
    ValueError: for an id that is no name of a file, a blank prompt, or an id that occurs twice.
  """
  named = list(named)
  for name, prompt in named:
    if not name or name in (".", "..") or set(name) & set("/\\\0"):
      raise ValueError(f"{source}: malformed: the id {name!r} is no name of a file")
    if not prompt.strip():
      raise ValueError(f"{source}: malformed: item {name} has no prompt")
  check_unique(source, [name for name, _ in named])


def check_unique(source: epath.PathLike, ids: Sequence[str]) -> None:
  """Raises ValueError for items with the same id, naming them, and for no items at all."""
  if not ids:
    raise ValueError(f"{source} holds no item")
  counts = collections.Counter(ids)
  if doubled := [f"  {name}: {n} times" for name, n in counts.items() if n > 1]:
    raise ValueError(f"{source} holds several items of the same id:\n{errors.listed(doubled)}")


def require(record: Any, fields: dict[str, type | tuple[type, ...]], where: str) -> None:
  """Checks fields of a benchmark's own record.

  Args:
    record: as read.
    fields: {name: type}.
    where: for the error.

  Raises:
    ValueError: naming the field.
  """
  if not isinstance(record, dict):
    raise ValueError(f"{where}: expected an object, found {type(record).__name__}")
  for name, kind in fields.items():
    if name not in record:
      raise ValueError(f"{where}: malformed: no field {name!r}")
    if not isinstance(record[name], kind) or (isinstance(record[name], bool) and kind is int):
      raise ValueError(f"{where}: malformed: {name!r} is {record[name]!r}")
