"""Files of target latents: rows with checksums, and the manifest that describes them.

  <folder>/<layout>/<file>-<process>.bin  rows, concatenated
  <folder>/manifest.json                  written last: the fields of Layout

A row holds dtype[h, w, C] (NaN for a broken record), the hash of the image's file, and a CRC-32 of both.
Record i is row i % L of process (i % G) // L in batch i // G, where a batch has G records and each process
has L of them. A file holds the rows of `file_batches` batches.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import json
import math
from typing import Any
import zlib

from etils import epath
import ml_dtypes
import numpy as np

from unilip_jax.common import atomic_io
from unilip_jax.data import files

MANIFEST = "manifest.json"
DIGEST = 16  # bytes of an image's hash
_CRC = 4  # bytes
_DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


@dataclasses.dataclass(frozen=True)
class Layout:
  """The latents of one source and where each record's row is.

  Attributes:
    fingerprint: hash of the encoder's weights and settings.
    data: `mark` of the source.
    times: `times` of the source when it was last compared.
    started: `times` of the source when the latents were computed.
    source: kind, path and options of the source as written.
    count: number of records of the source.
    shape: (h, w, C) of a latent.
    dtype: "bfloat16" | "float32".
    batch: G, records a batch over all processes.
    processes: number of processes that wrote the files.
    file_batches: batches a file.
  """

  fingerprint: str
  data: str
  times: str
  started: str
  source: str
  count: int
  shape: tuple[int, int, int]
  dtype: str
  batch: int
  processes: int
  file_batches: int

  @property
  def latent_bytes(self) -> int:
    """Bytes of one latent."""
    return math.prod(self.shape) * np.dtype(_DTYPES[self.dtype]).itemsize

  @property
  def row_bytes(self) -> int:
    """Bytes of one record."""
    return self.latent_bytes + DIGEST + _CRC

  @property
  def local(self) -> int:
    """L, records a batch of one process."""
    return self.batch // self.processes

  def place(self, index: int) -> tuple[str, int]:
    """Returns (file, offset of the first byte) of a record; the path is relative to the folder."""
    number, rest = divmod(index, self.batch)
    process, row = divmod(rest, self.local)
    file, number = divmod(number, self.file_batches)
    return self.file(file, process), (number * self.local + row) * self.row_bytes

  def file(self, number: int, process: int) -> str:
    """Returns the relative path of a file; it contains all that its bytes depend on."""
    name = f"{self.fingerprint}-{self.started[:8]}-{self.batch}-{self.processes}"
    return f"{name}/{number:05d}-{process:05d}.bin"

  def file_bytes(self, number: int) -> int:
    """Returns the length of the files of a number, which counts from 0."""
    batches = -(-self.count // self.batch)
    return min(self.file_batches, batches - number * self.file_batches) * self.local * self.row_bytes

  def files(self) -> Iterator[tuple[str, int]]:
    """Yields (relative path, length) of each file."""
    for number in range(-(-self.count // (self.batch * self.file_batches))):
      for process in range(self.processes):
        yield self.file(number, process), self.file_bytes(number)

  def encode(self, latents: np.ndarray, digests: np.ndarray) -> bytes:
    """Serialises latents [n, h, w, C] and the hashes uint8[n, 16] of their images as a file holds them."""
    values = np.ascontiguousarray(np.asarray(latents).astype(_DTYPES[self.dtype]))
    rows = np.concatenate([values.reshape(len(values), -1).view(np.uint8), digests], axis=1)
    checks = np.array([zlib.crc32(row.tobytes()) for row in rows], np.dtype("<u4"))
    return np.concatenate([rows, checks[:, None].view(np.uint8)], axis=1).tobytes()

  def decode(self, row: bytes) -> tuple[np.ndarray, bytes]:
    """Returns (float32[h · w · C], hash of the image) of a row.

    Raises:
      ValueError: if the row is damaged.
    """
    if zlib.crc32(row[:-_CRC]) != int.from_bytes(row[-_CRC:], "little"):
      raise ValueError("the checksum differs")
    latent = np.frombuffer(row[:self.latent_bytes], _DTYPES[self.dtype])
    return latent.astype(np.float32), row[self.latent_bytes:-_CRC]


def digest(image: bytes) -> np.ndarray:
  """Returns uint8[16], the hash of an image's file."""
  return np.frombuffer(hashlib.blake2b(image, digest_size=DIGEST).digest(), np.uint8)


def read_layout(folder: epath.Path) -> Layout | None:
  """Reads the layout of complete latents; returns None if there are none.

  Raises:
    ValueError: for a manifest that is broken.
  """
  path = folder / MANIFEST
  if not path.exists():
    return None
  try:
    layout = Layout(**json.loads(path.read_bytes()))
    layout = dataclasses.replace(layout, shape=tuple(layout.shape))
    _check(layout)
  except (ValueError, TypeError, RecursionError) as error:
    raise ValueError(f"{path} is not a manifest of latents ({error}); delete {folder}, and training "
                     "computes them again") from error
  return layout


def _check(layout: Layout) -> None:
  """Raises ValueError for a layout that no files can have."""
  for field in dataclasses.fields(Layout):
    value = getattr(layout, field.name)
    values: Sequence[Any] = value if field.name == "shape" else [value]
    kind = str if field.type is str else int
    if not all(type(v) is kind and (kind is str or v > 0) for v in values):
      raise ValueError(f"{field.name} is {value!r}")
  if len(layout.shape) != 3 or layout.dtype not in _DTYPES or layout.batch % layout.processes:
    raise ValueError(f"shape {layout.shape}, dtype {layout.dtype!r}, {layout.batch} records a batch over "
                     f"{layout.processes} processes")


def check_files(folder: epath.Path, layout: Layout) -> tuple[dict[str, str], list[str]]:
  """Returns ({file: stamp}, [what is wrong with a file that is absent or of another length])."""
  stamps, problems = {}, []
  for name, length in layout.files():
    try:
      stamps[name] = files.stamp(folder / name)
    except FileNotFoundError:
      problems.append(f"{folder / name} is missing")
      continue
    if (found := int(stamps[name].partition(":")[0])) != length:
      problems.append(f"{folder / name} has {found} bytes, not {length}")
  return stamps, problems


def write_layout(folder: epath.Path, layout: Layout) -> None:
  """Marks latents as complete."""
  atomic_io.write(folder / MANIFEST, json.dumps(dataclasses.asdict(layout), indent=1).encode())
