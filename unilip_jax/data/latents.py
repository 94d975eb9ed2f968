"""Target latents of the generation stages on disk, made once and read in place of images.

  <folder>/<layout>/<file>-<process>.bin  rows dtype[h, w, C] in a row; NaN where a record is broken
  <folder>/manifest.json                  written last: fingerprint of the encoder, count, shape, layout

Record i is row i % L of process (i % G) // L in the batch i // G, with G records a batch and L of them a
process; a file holds the rows of FILE_BATCHES batches. Paths may be local or gs://; hosts share them.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import math

from etils import epath
import ml_dtypes
import numpy as np

from unilip_jax.common import atomic_io
from unilip_jax.data import decode, sources

FILE_BATCHES = 256
_MANIFEST = "manifest.json"
_DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


class StaleError(ValueError):
  """The latents on disk are those of another encoder or of other data."""


@dataclasses.dataclass(frozen=True)
class Layout:
  """What the latents of one source are and how they lie in files.

  Attributes:
    fingerprint: of the encoder's weights and of all else that decides the latents.
    count: records of the source.
    shape: (h, w, C) of a latent.
    dtype: "bfloat16" | "float32".
    batch: G, records a batch over all processes.
    processes: that wrote.
  """

  fingerprint: str
  count: int
  shape: tuple[int, int, int]
  dtype: str
  batch: int
  processes: int

  @property
  def row_bytes(self) -> int:
    return math.prod(self.shape) * np.dtype(_DTYPES[self.dtype]).itemsize

  def place(self, index: int) -> tuple[str, int]:
    """(file, first byte) of a record; the file's path is relative to the folder."""
    local = self.batch // self.processes
    number, rest = divmod(index, self.batch)
    process, row = divmod(rest, local)
    file, number = divmod(number, FILE_BATCHES)
    return self.file(file, process), (number * local + row) * self.row_bytes

  def file(self, number: int, process: int) -> str:
    """Path of a file; it names what it depends on, so that no other pass can take it for its own."""
    return f"{self.fingerprint}-{self.batch}-{self.processes}/{number:05d}-{process:05d}.bin"

  def encode(self, latents: np.ndarray) -> bytes:
    """[n, h, w, C] as it lies in a file."""
    return np.ascontiguousarray(np.asarray(latents).astype(_DTYPES[self.dtype])).tobytes()


def folder_of(root: epath.PathLike, example: str, spec: sources.SourceSpec) -> epath.Path:
  """Where the latents of a source lie below `data.latents_dir`."""
  options = "".join(f"\n{name}={value!r}" for name, value in sorted(spec.options.items()))
  name = hashlib.sha256(f"{spec.kind}\n{spec.path}{options}".encode()).hexdigest()[:12]
  return epath.Path(root).expanduser() / f"{example}-{name}"


def read_layout(folder: epath.Path) -> Layout | None:
  """The layout of finished latents; None where there are none."""
  if not (folder / _MANIFEST).exists():
    return None
  values = json.loads((folder / _MANIFEST).read_text())
  return Layout(**values | {"shape": tuple(values["shape"])})


def write_layout(folder: epath.Path, layout: Layout) -> None:
  """Marks latents as finished."""
  atomic_io.write(folder / _MANIFEST, json.dumps(dataclasses.asdict(layout), indent=1).encode())


class WithLatents:
  """A source whose records carry `latents` in place of the target image, as float32 bytes."""

  def __init__(self, source: sources.Source, folder: epath.Path, layout: Layout):
    """Joins a source and its latents.

    Raises:
      StaleError: if their numbers of records differ.
    """
    if len(source) != layout.count:
      raise StaleError(f"{folder} holds latents of {layout.count} records, the data has "
                       f"{len(source)}; delete the folder, or set another data.latents_dir")
    self._source = source.without("image") if hasattr(source, "without") else source
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
    data = sources.read_range(f"{self._folder}/{file}", offset, self._layout.row_bytes)
    row = np.frombuffer(data, _DTYPES[self._layout.dtype]).astype(np.float32)
    if np.isnan(row[0]):
      raise decode.BadRecordError(f"record {record.key} of {record.shard} has no latents: its image "
                                  "was broken when they were made")
    parts = {name: part for name, part in record.parts.items() if name != "image"}
    return sources.Record(parts | {"latents": row.tobytes()}, record.key, record.shard)


def join(
    source: sources.Source, root: epath.PathLike, example: str, spec: sources.SourceSpec) -> WithLatents:
  """A source with its latents from below `data.latents_dir`.

  Raises:
    FileNotFoundError: if they have not been made.
    StaleError: if they are those of other data.
  """
  folder = folder_of(root, example, spec)
  layout = read_layout(folder)
  if layout is None:
    raise FileNotFoundError(f"no latents of {spec} in {folder}; training makes them at its start")
  return WithLatents(source, folder, layout)


def from_bytes(data: bytes, shape: Sequence[int]) -> np.ndarray:
  """float32[h, w, C] of a record's `latents`."""
  return np.frombuffer(data, np.float32).reshape(tuple(shape))


def checked(folder: epath.Path, fingerprint: str) -> Layout | None:
  """The layout of latents that `fingerprint`'s encoder made; None where there are none.

  Raises:
    StaleError: if they are another's.
  """
  layout = read_layout(folder)
  if layout is not None and layout.fingerprint != fingerprint:
    raise StaleError(
        f"the latents in {folder} were made by an encoder with the fingerprint {layout.fingerprint}, "
        f"this run's has {fingerprint}; delete the folder, or set another data.latents_dir")
  return layout
