"""A CSV of images and captions as a kind of data: the example of a new data source in docs/extend.md.

A line is `image path,caption`; paths are relative to the file's folder. The records serve the examples
"reconstruct" and "t2i".
"""

from collections.abc import Sequence
import csv

from etils import epath

from unilip_jax.common import registry
from unilip_jax.data import sources


def register() -> None:
  """Adds the kind; the package calls it through the entry-point group `unilip_jax.plugins`."""
  registry.register("source", "csv", "tests.extend.source_example:open_csv")


def open_csv(
    path: str, example: str, folders: sources.Folders, *, delimiter: str = ",") -> sources.Source:
  """Opens a CSV file.

  Args:
    path: of the file, local or gs://.
    example: a key of sources.PARTS.
    folders: unused, since nothing is cached.
    delimiter: between the columns.

  Raises:
    ValueError: for an example that needs other parts, or a line without two columns.
    FileNotFoundError: if the file does not exist.
  """
  del folders
  if missing := set(sources.PARTS[example]) - {"image", "text"}:
    raise ValueError(f"csv {path} has no {', '.join(sorted(missing))}, which the example {example!r} needs")
  text = epath.Path(path).expanduser().read_text()
  rows = list(csv.reader(text.splitlines(), delimiter=delimiter))
  for number, row in enumerate(rows, 1):
    if len(row) != 2:
      raise ValueError(f"csv {path}, line {number}: expected image path and caption, not {row}")
  return CsvSource(path, rows)


class CsvSource(sources.Source):
  """One record a line; its image is read with the record."""

  def __init__(self, path: str, rows: Sequence[Sequence[str]]):
    self._path, self._rows = path, list(rows)
    self._folder = epath.Path(path).expanduser().parent

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> sources.Record:
    image, caption = self._rows[index]
    parts = {"image": (self._folder / image).read_bytes(), "text": caption.encode()}
    return sources.Record(parts, key=image, shard=self._path)
