"""Makes the images or answers of a benchmark in its own layout; a rerun makes only those that are absent.

The official protocol of UniLIP: 448 pixels, 20 steps of DPM-Solver++, guidance 4.5, prompts as they are,
bfloat16, seed 42 set again before each prompt, so that image k of every prompt starts from the same noise
(noise="shared"). PyTorch's generator is not reproduced: the noise has other values, unless it is read from
a file that PyTorch wrote.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent import futures
import contextlib
import dataclasses
import hashlib
import io
from typing import Any

from etils import epath
import numpy as np
from PIL import Image

from unilip_jax.common import atomic_io, paths, png
from unilip_jax.data import decode, rgb
from unilip_jax.ops import seeds
from unilip_jax.sampling import sampler
from unilip_jax.scores import answers as answers_lib
from unilip_jax.scores import append_log, base, image_files, makers, tiling

_WRITERS = 4  # threads that encode PNG files while the devices sample
_OFFICIAL = {"steps": 20, "guidance": 4.5, "solver": "dpm", "seed": 42, "noise": "shared", "size": 448,
             "precision": "bfloat16", "int8": False, "keep_size": False}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Holds how images are made; defaults are the official protocol.

  Attributes:
    options: of sampling.
    seed: of the noise.
    noise: "shared": image k has the same noise for every prompt, as UniLIP's; "prompt": noise of its own;
      or a .npy file, float32[k, h, w, C], that all prompts share.
    size: pixels per side of the written images; the model's are resized (bicubic) if their size differs.
    images_per_item: None takes the official number.
    keep_size: resize edited images to the size of their source.
  """

  options: sampler.Options = sampler.Options()  # noqa: RUF009
  seed: int = 42
  noise: str = "shared"
  size: int = 448
  images_per_item: int | None = None
  keep_size: bool = False


@dataclasses.dataclass(frozen=True)
class Share:
  """Holds a process's part of the work: items `index`, `index` + `count`, … as in the official scripts."""

  index: int = 0
  count: int = 1


def record(
    benchmark: base.Benchmark, settings: Settings, maker: makers.Maker, precision: str, int8: bool
) -> dict[str, Any]:
  """Returns the part of make.json that settings and model decide, JSON-ready.

  Raises:
    FileNotFoundError, ValueError: for a seed or noise that the images cannot be made from.
  """
  count = settings.images_per_item or benchmark.images_per_item
  seeds.words(settings.seed)
  _Noise(settings, maker.latent_shape, count * benchmark.samples_per_image)
  values = {
      "steps": settings.options.steps, "guidance": settings.options.guidance,
      "solver": maker.few_step or settings.options.solver, "seed": settings.seed,
      "noise": _noise_name(settings.noise), "size": settings.size, "precision": precision, "int8": int8,
      "keep_size": settings.keep_size}
  changed = [name for name, value in _OFFICIAL.items() if values[name] != value]
  # Only where they are set: records of earlier versions do not have them.
  more = {name: value for name, default, value in (
      ("guidance_interval", [0.0, 1.0], list(settings.options.guidance_interval)),
      ("guidance_rescale", 0.0, settings.options.guidance_rescale)) if value != default}
  values, changed = values | more, [*changed, *more]
  if count != benchmark.images_per_item:
    changed.append("images_per_item")
  return values | {
      "benchmark": benchmark.name, "revision": benchmark.revision, "images_per_item": count,
      "protocol": "free" if changed else "official", "differs_from_official": changed,
      "model_size": maker.image_size, "batch_size": maker.batch_size,
      "prompt": "Edit the image: {prompt}\\n<image>" if benchmark.kind == "editing"
                else "Generate an image: {prompt}",
      "generator": "JAX threefry; UniLIP's is PyTorch's" if settings.noise in ("shared", "prompt")
                   else "noise from a file"}


def make_images(
    benchmark: base.Benchmark, items: Sequence[base.Item], folder: epath.Path, maker: makers.Maker,
    settings: Settings, *, absent: Sequence[image_files.Key] | None = None, share: Share = Share(),
    writes: Callable[[int], bool] = lambda position: True,
    progress: Callable[[Iterable], Iterable] = iter) -> int:
  """Makes the images that are absent.

  Args:
    benchmark: generation or editing.
    items: all items; an item's place in the list is its i.
    folder: with the record, see make_record.open_folder.
    maker: of the model.
    settings: see Settings.
    absent: (item id, k) to make; None looks for what is absent of this process's share.
    share: of this process.
    writes: whether this process writes the image at a position of `absent`.
    progress: wraps the batches.

  Returns:
    Number of images that were written.

  Raises:
    ValueError: for an item whose input cannot be decoded, or a noise file of another shape.
  """
  places = {item.id: i for i, item in enumerate(items)}
  if absent is None:
    absent = list_absent(benchmark, items[share.index::share.count], folder, settings)
  samples = benchmark.samples_per_image
  noise = _Noise(settings, maker.latent_shape, samples * (1 + max((k for _, k in absent), default=0)))
  length = lambda item: maker.prompt_length(item.prompt, editing=benchmark.kind == "editing")
  jobs = [_Job(position, items[places[item_id]], places[item_id], k, samples * k + s)
          for position, (item_id, k) in enumerate(absent) for s in range(samples)]
  written, pending = 0, []
  tiles: dict[int, list[np.ndarray]] = {}  # of image files that are not complete yet
  with futures.ThreadPoolExecutor(_WRITERS, "png") as pool:
    for part in progress(list(_batches(jobs, length, maker.batch_size))):
      sources = ([_read(job.item, job.item.images[0]) for job in part]
                 if benchmark.kind == "editing" else None)
      inputs = None if sources is None else [
          decode.fit(np.asarray(s), maker.image_size, "stretch") for s in sources]
      places_of = [job.i for job in part], [job.sample for job in part]
      fresh = noise.of_steps(*places_of) if maker.few_step == "consistency" else None
      images = maker.images(makers.Batch(
          [job.item.prompt for job in part], inputs, noise.of(*places_of), fresh), settings.options)
      for job, image, source in zip(part, images, sources or [None] * len(part)):
        tiles.setdefault(job.position, []).append(image)
        if len(tiles[job.position]) == samples and writes(job.position):
          size = source.size if settings.keep_size and source else (settings.size,) * 2
          pending.append(pool.submit(
              _write, benchmark, job.item, job.k, folder, tiles.pop(job.position), size))
          written += 1
      while len(pending) > 4 * maker.batch_size:
        pending.pop(0).result()
    for write in pending:
      write.result()
  return written


def list_absent(
    benchmark: base.Benchmark, items: Sequence[base.Item], folder: epath.Path, settings: Settings
) -> list[image_files.Key]:
  """Lists (item id, k) of images that are absent, unreadable or of another size."""
  absent, expected = [], (settings.size * benchmark.tiles_per_side,) * 2
  for item in items:
    for k in range(settings.images_per_item or benchmark.images_per_item):
      path = folder / benchmark.output_path(item, k)
      try:
        complete = paths.is_file(path) and (
            settings.keep_size or image_files.image_size(path.read_bytes()) == expected)
      except ValueError:
        complete = False
      if not complete:
        absent.append((item.id, k))
  return absent


def answers_record(
    benchmark: base.Benchmark, items: Sequence[base.Item], maker: makers.Answerer, precision: str,
    int8: bool, *, max_new_tokens: int, max_tiles: int) -> dict[str, Any]:
  """Returns the part of make.json that the settings of answers decide, JSON-ready."""
  return {
      "benchmark": benchmark.name, "revision": benchmark.revision, "precision": precision, "int8": int8,
      "max_new_tokens": max_new_tokens, "max_tiles": max_tiles, "model_size": maker.image_size,
      "protocol": "greedy", "batch_size": maker.batch_size,
      "tiling": tiling.describe(items, maker.image_size, max_tiles,
                                first_image_scale=benchmark.first_image_scale)}


def make_answers(
    benchmark: base.Benchmark, items: Sequence[base.Item], folder: epath.Path, maker: makers.Answerer, *,
    max_new_tokens: int, max_tiles: int, share: Share = Share(), done: Collection[str] | None = None,
    writes: bool = True, progress: Callable[[Iterable], Iterable] = iter) -> int:
  """Answers the questions that have no answer yet, and writes the official file when all have one.

  Batches are the same in every run, so that an answer does not depend on which ones were there.

  Args:
    benchmark: understanding.
    items, folder, maker, share, progress: as of `make_images`.
    max_new_tokens: longest answer.
    max_tiles: most tiles of an image.
    done: ids of items that have an answer; None reads them from the folder.
    writes: whether this process writes the answers.

  Returns:
    Number of new answers.
  """
  size, new = maker.batch_size, 0
  batches = [items[i:i + size] for i in range(0, len(items), size)]
  done = answers_lib.read_logs(folder) if done is None else done
  with contextlib.ExitStack() as stack:
    log = stack.enter_context(append_log.AppendLog(
        folder / answers_lib.log_name(share.index, share.count))) if writes else None
    for part in progress(batches[share.index::share.count]):
      if all(item.id in done for item in part):
        continue
      answers = maker.answers(
          [_question_images(item, benchmark.first_image_scale) for item in part],
          [item.prompt for item in part], max_new_tokens=max_new_tokens, max_tiles=max_tiles)
      for item, answer in zip(part, answers):
        if item.id not in done and log is not None:
          log.append({"id": item.id, "answer": answer})
          new += 1
  if writes:
    stored = answers_lib.read_logs(folder)
    if all(item.id in stored for item in items):
      benchmark.write_answers(str(folder / answers_lib.PREDICTIONS), items, stored)
  return new


@dataclasses.dataclass(frozen=True)
class _Job:
  """Holds one sample: the item and its place i, the file's k and position among all, and its number."""

  position: int
  item: base.Item
  i: int
  k: int
  sample: int


class _Noise:
  """Gives the first noise of samples, of which an item has `count`."""

  def __init__(self, settings: Settings, shape: tuple[int, int, int], count: int):
    self._settings, self._shape, self._array = settings, shape, None
    if settings.noise not in ("shared", "prompt"):
      path = paths.path(settings.noise)
      if not paths.is_file(path):
        raise FileNotFoundError(f"no noise {path}: choose shared, prompt, or a .npy file")
      try:
        self._array = np.load(io.BytesIO(path.read_bytes()))
      except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"noise {path} is no .npy file of numbers: {error}") from error
      if not isinstance(self._array, np.ndarray):
        raise ValueError(f"noise {path} holds several arrays; save one by np.save")
      if self._array.shape[1:] != shape or len(self._array) < count or self._array.dtype != np.float32:
        raise ValueError(
            f"noise {settings.noise} is {self._array.dtype}{list(self._array.shape)}; expected float32 of "
            f"at least {count} × {list(shape)}")

  def of(self, items: Sequence[int], samples: Sequence[int]) -> np.ndarray:
    return self._array[list(samples)] if self._array is not None else self._sample(items, samples, 0)

  def of_steps(self, items: Sequence[int], samples: Sequence[int]) -> np.ndarray:
    return self._sample(items, samples, self._settings.options.steps)

  def _sample(self, items: Sequence[int], samples: Sequence[int], steps: int) -> np.ndarray:
    own = items if self._settings.noise == "prompt" else [0] * len(items)
    return np.asarray(makers.noise(
        seeds.words(self._settings.seed), np.asarray(own, np.int32), np.asarray(samples, np.int32),
        shape=self._shape, steps=steps))


def _noise_name(noise: str) -> str:
  """Name of the noise in the record: a file's is its hash."""
  if noise in ("shared", "prompt"):
    return noise
  return f"file {hashlib.sha256(paths.path(noise).read_bytes()).hexdigest()}"


def _batches(
    jobs: Sequence[_Job], length: Callable[[base.Item], int], size: int) -> Iterator[list[_Job]]:
  """Yields up to `size` samples whose prompts have equal lengths."""
  lengths: dict[str, int] = {}
  groups: dict[int, list[_Job]] = {}
  for job in jobs:
    if job.item.id not in lengths:
      lengths[job.item.id] = length(job.item)
    group = groups.setdefault(lengths[job.item.id], [])
    group.append(job)
    if len(group) == size:
      yield groups.pop(lengths[job.item.id])
  yield from groups.values()


def _question_images(item: base.Item, scale: int) -> list[Image.Image]:
  """Reads the images of a question; the first is enlarged by `scale`."""
  images = [_read(item, image) for image in item.images]
  if images and scale > 1:
    width, height = images[0].size
    images[0] = images[0].resize((width * scale, height * scale), Image.Resampling.BILINEAR)
  return images


def _read(item: base.Item, image: str | bytes) -> Image.Image:
  """Reads an image of an item as RGB."""
  try:
    return decode.decode(base.image_bytes(image), rgb.MAX_PIXELS)
  except FileNotFoundError:
    raise FileNotFoundError(f"item {item.id}: no image {image}") from None
  except decode.BadImageError as error:
    raise ValueError(f"item {item.id}: {'its image' if isinstance(image, bytes) else image}: {error}"
                     ) from error


def _write(
    benchmark: base.Benchmark, item: base.Item, k: int, folder: epath.Path,
    tiles: Sequence[np.ndarray], size: tuple[int, int]) -> None:
  """Writes an image file of one or more samples, and what its item's layout needs next to it."""
  side = benchmark.tiles_per_side
  image = Image.new("RGB", (size[0] * side, size[1] * side))
  for number, pixels in enumerate(tiles):
    tile = Image.fromarray(pixels)
    if tile.size != size:
      tile = tile.resize(size, Image.Resampling.BICUBIC)
    image.paste(tile, (size[0] * (number % side), size[1] * (number // side)))
  # The image last: where it is, its side files are too.
  files = benchmark.side_files(item) if k == 0 else {}
  files |= {benchmark.output_path(item, k): png.encode(image)}
  for path, content in files.items():
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    atomic_io.write(folder / path, content)
