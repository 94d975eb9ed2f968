"""Target latents of the generation stages: computed once, then read instead of images (latent_rows.py).

They belong to the data that they were computed from. The name of their folder holds a hash of a sample of
the images, not the path of the data: the same data has its latents under each path. The manifest holds a
hash of the files' sizes and times. If it differs, all images are compared with the hashes of their rows.
Paths may be local or gs://; hosts share them.
"""

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import hashlib

from absl import logging
from etils import epath
import numpy as np

from unilip_jax.common import paths
from unilip_jax.data import decode, files, latent_rows, omissions, sources

FILE_BATCHES = 256
_SAMPLE = 256  # images that identify a source; smaller sources are compared completely
_THREADS = 8


class StaleError(ValueError):
  """The latents on disk belong to another encoder or to other data."""


def images_of(source: sources.Source, example: str) -> sources.Source:
  """Returns a source of the same records that need not read other parts than the target image."""
  for part in sources.PARTS[example]:
    source = source if part == "image" else source.without(part)
  return source


def mark(images: sources.Source) -> str:
  """Returns hex digits of the number of records and of up to 256 images over all of a source."""
  count = len(images)
  indices = sorted({i * (count - 1) // (_SAMPLE - 1) for i in range(_SAMPLE)} if count > _SAMPLE
                   else range(count))
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    hashes = list(pool.map(lambda i: _image_digest(images, i), indices))
  return hashlib.sha256(b"%d\n" % count + b"".join(hashes)).hexdigest()[:32]


def times(images: sources.Source) -> str:
  """Returns hex digits of size and time of the source's files; "" where those are unknown."""
  stamps = images.stamps()
  return hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:32] if stamps else ""


def _image_digest(images: sources.Source, index: int) -> bytes:
  try:
    return latent_rows.digest(images[index].parts["image"]).tobytes()
  except (OSError, decode.BadRecordError):
    return bytes(latent_rows.DIGEST)


def folder_of(root: epath.PathLike, example: str, data: str) -> epath.Path:
  """Returns the folder of the latents below `data.latents_dir` of a source with this `mark`."""
  return paths.path(root, "data.latents_dir") / f"{example}-{data[:12]}"


def find(
    root: epath.PathLike, example: str, spec: sources.SourceSpec, images: sources.Source
) -> tuple[epath.Path, latent_rows.Layout | None]:
  """Returns (folder, layout) of the latents of a source; None for the layout if there are none.

  Args:
    root: data.latents_dir.
    example: kind of example.
    spec: of the source.
    images: the source.

  Raises:
    StaleError: if `root` has latents of other data under the same kind, path and options.
    ValueError: for a broken manifest.
  """
  data = mark(images)
  folder = folder_of(root, example, data)
  layout = latent_rows.read_layout(folder)
  if layout is not None and layout.data == data:
    return folder, layout
  remedy = "delete that folder, or set another data.latents_dir"
  earlier = folder.parent / f"{example}-{_earlier_name(spec)}"
  if (earlier / latent_rows.MANIFEST).exists():
    raise StaleError(f"{earlier} holds latents of an earlier version, which did not note the data "
                     f"they were computed from; {remedy}")
  for path in sorted(folder.parent.glob(f"{example}-*/{latent_rows.MANIFEST}")):
    try:
      other = latent_rows.read_layout(path.parent)
    except ValueError as error:
      logging.warning("%s", error)
      continue
    if other is not None and other.source == str(spec):
      raise StaleError(f"{path.parent} holds latents of {other.count} records that {spec} had when "
                       f"they were computed; the data has changed since, it has {len(images)} records; "
                       f"{remedy}")
  return folder, None


def _earlier_name(spec: sources.SourceSpec) -> str:
  """Returns the name that folders had before they depended on the data."""
  options = "".join(f"\n{name}={value!r}" for name, value in sorted(spec.options.items()))
  return hashlib.sha256(f"{spec.kind}\n{spec.path}{options}".encode()).hexdigest()[:12]


def check_fingerprint(folder: epath.Path, layout: latent_rows.Layout, fingerprint: str) -> None:
  """Raises StaleError if another encoder computed the latents."""
  if layout.fingerprint != fingerprint:
    raise StaleError(
        f"the latents in {folder} were computed by an encoder with the fingerprint {layout.fingerprint}, "
        f"this run's encoder has {fingerprint}; delete the folder, or set another data.latents_dir")


def first_change(
    images: sources.Source, folder: epath.Path, layout: latent_rows.Layout, process: int, processes: int
) -> str:
  """Compares images with the hashes that were stored with their latents.

  Args:
    images: the source.
    folder: of the latents.
    layout: of the latents.
    process: compares the images process, process + processes, …
    processes: see `process`.

  Returns:
    What differs first; "" if nothing does.
  """
  def changed(index: int) -> str:
    name, offset = layout.place(index)
    try:
      _, stored = layout.decode(files.read_range(f"{folder}/{name}", offset, layout.row_bytes))
    except ValueError:
      return ""  # damaged: training replaces the record
    if any(stored) and stored != _image_digest(images, index):
      return f"record {index}"
    return ""

  with futures.ThreadPoolExecutor(_THREADS) as pool:
    for first in range(process, layout.count, processes * 1024):
      share = range(first, min(first + processes * 1024, layout.count), processes)
      if change := next(filter(None, pool.map(changed, share)), ""):
        return change
  return ""


class WithLatents(sources.Source):
  """A source whose records hold `latents`, as float32 bytes, instead of the target image."""

  def __init__(self, source: sources.Source, folder: epath.Path, layout: latent_rows.Layout):
    """Joins a source and its latents.

    Raises:
      ValueError: if a file of the latents is absent or of another length.
    """
    self._stamps, problems = latent_rows.check_files(folder, layout)
    if problems:
      raise ValueError(f"{len(problems)} files of latents are damaged: {problems[0]}; start the training "
                       "again, which computes them again")
    self._source = source.without("image")
    self._folder, self._layout = str(folder), layout

  @property
  def shape(self) -> tuple[int, int, int]:
    """(h, w, C)."""
    return self._layout.shape

  def left_out(self) -> omissions.Omissions:
    return self._source.left_out()

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> sources.Record:
    record = self._source[index]
    file, offset = self._layout.place(index)
    path = f"{self._folder}/{file}"
    row = files.read_range(path, offset, self._layout.row_bytes, self._stamps[file])
    try:
      latent, _ = self._layout.decode(row)
    except ValueError as error:
      raise decode.BadRecordError(f"the latents of record {record.key} in {path} are damaged ({error}); "
                                  "delete that file, and the next start computes it again") from error
    if not np.isfinite(latent).all():
      raise decode.BadRecordError(f"record {record.key} of {record.shard} has no latents: its image "
                                  "was broken when they were computed")
    parts = {name: part for name, part in record.parts.items() if name != "image"}
    return dataclasses.replace(record, parts=parts | {"latents": latent.tobytes()})


def join(
    source: sources.Source, root: epath.PathLike, example: str, spec: sources.SourceSpec) -> WithLatents:
  """Returns a source with its latents from below `data.latents_dir`.

  Raises:
    FileNotFoundError: if they have not been computed.
    StaleError: if they belong to other data.
  """
  folder, layout = find(root, example, spec, images_of(source, example))
  if layout is None:
    raise FileNotFoundError(f"no latents of {spec} in {folder}; training makes them at its start")
  return WithLatents(source, folder, layout)


def from_bytes(data: bytes, shape: Sequence[int]) -> np.ndarray:
  """Reads float32[h, w, C] from the part `latents` of a record."""
  return np.frombuffer(data, np.float32).reshape(tuple(shape))
