"""Target latents of the generation stages on disk: computed once, then read instead of images.

  <folder>/<layout>/<file>-<process>.bin  rows dtype[h, w, C], concatenated; NaN for a broken record
  <folder>/manifest.json                  written last: the fields of Layout

Record i is row i % L of process (i % G) // L in batch i // G, where a batch has G records and each process
has L of them. A file holds the rows of FILE_BATCHES batches. Paths may be local or gs://; hosts share them.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import math

from etils import epath
import ml_dtypes
import numpy as np

from unilip_jax.common import atomic_io, paths
from unilip_jax.data import decode, files, sources

FILE_BATCHES = 256
_MANIFEST = "manifest.json"
_DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


class StaleError(ValueError):
  """The latents on disk belong to another encoder or to other data."""


@dataclasses.dataclass(frozen=True)
class Layout:
  """The latents of one source and where each record's row is.

  Attributes:
    fingerprint: hash of the encoder's weights and settings.
    count: number of records of the source.
    shape: (h, w, C) of a latent.
    dtype: "bfloat16" | "float32".
    batch: G, records a batch over all processes.
    processes: number of processes that wrote the files.
  """

  fingerprint: str
  count: int
  shape: tuple[int, int, int]
  dtype: str
  batch: int
  processes: int

  @property
  def row_bytes(self) -> int:
    """Bytes of one record."""
    return math.prod(self.shape) * np.dtype(_DTYPES[self.dtype]).itemsize

  def place(self, index: int) -> tuple[str, int]:
    """Returns (file, offset of the first byte) of a record; the path is relative to the folder."""
    local = self.batch // self.processes
    number, rest = divmod(index, self.batch)
    process, row = divmod(rest, local)
    file, number = divmod(number, FILE_BATCHES)
    return self.file(file, process), (number * local + row) * self.row_bytes

  def file(self, number: int, process: int) -> str:
    """Returns the relative path of a file; it contains all that its bytes depend on."""
    return f"{self.fingerprint}-{self.batch}-{self.processes}/{number:05d}-{process:05d}.bin"

  def encode(self, latents: np.ndarray) -> bytes:
    """Serialises latents [n, h, w, C] as a file holds them."""
    return np.ascontiguousarray(np.asarray(latents).astype(_DTYPES[self.dtype])).tobytes()


def folder_of(root: epath.PathLike, example: str, spec: sources.SourceSpec) -> epath.Path:
  """Returns the folder of a source's latents below `data.latents_dir`."""
  options = "".join(f"\n{name}={value!r}" for name, value in sorted(spec.options.items()))
  name = hashlib.sha256(f"{spec.kind}\n{spec.path}{options}".encode()).hexdigest()[:12]
  return paths.path(root, "data.latents_dir") / f"{example}-{name}"


def read_layout(folder: epath.Path) -> Layout | None:
  """Reads the layout of complete latents; returns None if there are none."""
  if not (folder / _MANIFEST).exists():
    return None
  values = json.loads((folder / _MANIFEST).read_text())
  return Layout(**values | {"shape": tuple(values["shape"])})


def check_layout(folder: epath.Path, fingerprint: str) -> Layout | None:
  """Reads the layout as `read_layout` does and compares its fingerprint.

  Raises:
    StaleError: if another encoder computed the latents.
  """
  layout = read_layout(folder)
  if layout is not None and layout.fingerprint != fingerprint:
    raise StaleError(
        f"the latents in {folder} were computed by an encoder with the fingerprint {layout.fingerprint}, "
        f"this run's encoder has {fingerprint}; delete the folder, or set another data.latents_dir")
  return layout


def write_layout(folder: epath.Path, layout: Layout) -> None:
  """Marks latents as complete."""
  atomic_io.write(folder / _MANIFEST, json.dumps(dataclasses.asdict(layout), indent=1).encode())


class WithLatents(sources.Source):
  """A source whose records hold `latents`, as float32 bytes, instead of the target image."""

  def __init__(self, source: sources.Source, folder: epath.Path, layout: Layout):
    """Joins a source and its latents.

    Raises:
      StaleError: if their record counts differ.
    """
    if len(source) != layout.count:
      raise StaleError(f"{folder} holds latents of {layout.count} records, the data has "
                       f"{len(source)}; delete the folder, or set another data.latents_dir")
    self._source = source.without("image")
    self._folder, self._layout = str(folder), layout

  @property
  def shape(self) -> tuple[int, int, int]:
    """(h, w, C)."""
    return self._layout.shape

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> sources.Record:
    record = self._source[index]
    file, offset = self._layout.place(index)
    data = files.read_range(f"{self._folder}/{file}", offset, self._layout.row_bytes)
    row = np.frombuffer(data, _DTYPES[self._layout.dtype]).astype(np.float32)
    if np.isnan(row[0]):
      raise decode.BadRecordError(f"record {record.key} of {record.shard} has no latents: its image "
                                  "was broken when they were computed")
    parts = {name: part for name, part in record.parts.items() if name != "image"}
    return sources.Record(parts | {"latents": row.tobytes()}, record.key, record.shard)


def join(
    source: sources.Source, root: epath.PathLike, example: str, spec: sources.SourceSpec) -> WithLatents:
  """Returns a source with its latents from below `data.latents_dir`.

  Raises:
    FileNotFoundError: if they have not been computed.
    StaleError: if they belong to other data.
  """
  folder = folder_of(root, example, spec)
  layout = read_layout(folder)
  if layout is None:
    raise FileNotFoundError(f"no latents of {spec} in {folder}; training makes them at its start")
  return WithLatents(source, folder, layout)


def from_bytes(data: bytes, shape: Sequence[int]) -> np.ndarray:
  """Reads float32[h, w, C] from the part `latents` of a record."""
  return np.frombuffer(data, np.float32).reshape(tuple(shape))
