"""Measures images per second of the training stream and of a PyTorch DataLoader over the same tars.

  python -m benchmarks.input_pipeline [--repeats=5] [--cases=512x384:224,1024x1024:448] [--workers=0,2]

A case is the size of the JPEGs and the side of the result. All read random records of WebDataset tars,
resize the shorter edge to the result's (bicubic, antialias), crop and flip at random, and return uint8
batches:

- unilip_jax: the stream as it is, data.decode=exact; scaled: with data.decode=scaled;
- PIL: the stream with PIL's decoding and resizing, which it had before; the pixels of `unilip_jax`;
- DataLoader: a plain implementation: a map-style dataset with one open tarfile per worker,
  `persistent_workers`, and the PIL calls that torchvision would make.

Rows of steps are CPU milliseconds an image of the decoding and resizing alone.

Measurements alternate; each begins after the loader's buffers are drained. CPU seconds include the worker
processes and depend little on the machine's other load. Writes benchmarks/results/input_pipeline_cpu.json.
"""

import argparse
import functools
import io
import os
import pathlib
import random
import tarfile
import tempfile
import time
from unittest import mock

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
import torch

from benchmarks import harness
from unilip_jax.configs import stage2


def _photographs() -> list[Image.Image]:
  """Returns scikit-learn's two photographs if it is installed, otherwise smooth noise and shapes."""
  try:
    from sklearn import datasets
  except ImportError:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 60, 3)).astype(np.uint8)).resize(
        (640, 427), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(80):
      x, y = int(rng.integers(600)), int(rng.integers(400))
      draw.ellipse((x, y, x + int(rng.integers(90)), y + int(rng.integers(90))),
                   fill=tuple(rng.integers(0, 256, 3).tolist()))
    return [image.filter(ImageFilter.GaussianBlur(1))]
  return [Image.fromarray(a) for a in datasets.load_sample_images().images]


def _mosaic(
    photographs: list[Image.Image], width: int, height: int, rng: np.random.Generator) -> Image.Image:
  """Returns crops of photographs side by side, each at most 400 pixels wide and high."""
  image = Image.new("RGB", (width, height))
  for top in range(0, height, 400):
    for left in range(0, width, 400):
      photo = photographs[int(rng.integers(len(photographs)))]
      x, y = rng.integers(photo.width - 400 + 1), rng.integers(photo.height - 400 + 1)
      image.paste(photo.crop((x, y, x + 400, y + 400)), (left, top))
  return image


def write_tars(folder: pathlib.Path, count: int, size: tuple[int, int], tars: int = 4) -> list[str]:
  """Writes crops of photographs with captions, quality 90.

  Args:
    folder: exists.
    count: images.
    size: (width, height), from which each image differs by up to a sixteenth; one in four is upright.
    tars: files.
  """
  photographs, rng, paths = _photographs(), np.random.default_rng(1), []
  for t in range(tars):
    paths.append(str(folder / f"{t:05d}.tar"))
    with tarfile.open(paths[-1], "w") as tar:
      for i in range(t, count, tars):
        width, height = (int(rng.integers(edge - edge // 16, edge + edge // 16 + 1)) for edge in size)
        if max(width, height) > 600:
          image = _mosaic(photographs, width, height, rng)
        else:
          photo = photographs[i % len(photographs)]
          left, top = rng.integers(photo.width - width + 1), rng.integers(photo.height - height + 1)
          image = photo.crop((left, top, left + width, top + height))
        if rng.random() < 0.25:
          image = image.transpose(Image.Transpose.ROTATE_90)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        for suffix, data in (("jpg", buffer.getvalue()), ("txt", f"photograph {i}".encode())):
          member = tarfile.TarInfo(f"{i:09d}.{suffix}")
          member.size = len(data)
          tar.addfile(member, io.BytesIO(data))
  return paths


class TarDataset(torch.utils.data.Dataset):
  """A map-style dataset over tars, which each worker opens and indexes itself."""

  def __init__(self, paths: list[str], side: int):
    self._paths, self._side, self._tars = paths, side, None
    self._index = []
    for i, path in enumerate(paths):
      with tarfile.open(path) as tar:
        self._index += [(i, m) for m in tar.getmembers() if m.name.endswith(".jpg")]

  def __len__(self) -> int:
    return len(self._index)

  def __getitem__(self, index: int) -> torch.Tensor:
    if self._tars is None:
      self._tars = [tarfile.open(path) for path in self._paths]  # noqa: SIM115
    shard, member = self._index[index]
    image = Image.open(io.BytesIO(self._tars[shard].extractfile(member).read())).convert("RGB")
    width, height = image.size
    side, short = self._side, min(width, height)
    image = image.resize(
        (int(side * width / short), int(side * height / short)), Image.Resampling.BICUBIC)
    left, top = random.randint(0, image.width - side), random.randint(0, image.height - side)
    image = image.crop((left, top, left + side, top + side))
    if random.random() < 0.5:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1)


class _TorchLoader:
  """Reads endless batches of the DataLoader."""

  def __init__(self, paths: list[str], side: int, workers: int, batch_size: int):
    extra = dict(persistent_workers=True, multiprocessing_context="spawn") if workers else {}
    dataset = TarDataset(paths, side)
    self._loader = torch.utils.data.DataLoader(
        dataset, batch_size, num_workers=workers, drop_last=True,
        # Many epochs in one, so that no measurement includes an epoch's start.
        sampler=torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10**7),
        **extra)
    self._iterator = iter(self._loader)

  def __call__(self) -> None:
    assert next(self._iterator).dtype == torch.uint8

  def close(self) -> None:
    self._iterator = self._loader = None


class PilMaker:
  """Makes examples of reconstruction by PIL alone, with the pixels of data.decode=exact."""

  def __init__(self, side: int):
    self._side = side

  def __call__(self, record, rng: np.random.Generator) -> dict[str, np.ndarray]:
    from unilip_jax.data import decode, resize

    image, cut = decode.decode(record.parts["image"], 10**9), (self._side, self._side)
    covered = decode._covered(image.size[::-1], cut, "random")
    corner = decode._corner(covered, cut, "random", rng)
    return {"image": resize.part_by_pil(image, covered, corner, cut, bool(rng.random() < 0.5))}


class _JaxLoader:
  """Reads endless batches of the training stream."""

  def __init__(self, paths: list[str], side: int, workers: int, batch_size: int, workdir: str, way: str):
    from unilip_jax.data import examples, pipeline  # not above: DataLoader's workers need no JAX

    config = stage2.get_config("tiny")
    config.image_size, config.batch_size = side, batch_size
    config.data.train = (("tar", ",".join(paths), 1.0),)
    config.data.flip, config.data.crop, config.data.workers = True, "random", workers
    config.data.decode = "scaled" if way == "scaled" else "exact"
    make = (lambda *args: PilMaker(side)) if way == "PIL" else examples.make
    with mock.patch.object(examples, "make", make):
      self._stream = pipeline.train_stream(
          config, start_position=0, process_index=0, process_count=1, workdir=workdir)

  def __call__(self) -> np.ndarray:
    return next(self._stream)["image"]

  def close(self) -> None:
    self._stream.close()


def _cpu_seconds() -> float:
  """Returns the CPU seconds of this process and of its children, dead or alive."""
  total, tick = 0, os.sysconf("SC_CLK_TCK")
  for folder in pathlib.Path("/proc").iterdir():
    if folder.name.isdigit():
      try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
      except OSError:  # it ended meanwhile
        continue
      if int(folder.name) == os.getpid() or int(fields[1]) == os.getpid():
        total += int(fields[11]) + int(fields[12])
  return total / tick


def _steps(paths: list[str], side: int, repeats: int) -> dict[str, np.ndarray]:
  """Returns the CPU milliseconds an image of each step, by its name."""
  import simplejpeg

  from unilip_jax.data import decode, resize

  files = []
  for path in paths:
    with tarfile.open(path) as tar:
      files += [tar.extractfile(m).read() for m in tar.getmembers()[:20] if m.name.endswith(".jpg")]
  opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
  arrays, cut = [np.asarray(image) for image in opened], (side, side)
  parts = []  # of the images, as in a centre crop
  for array in arrays:
    covered = decode._covered(array.shape[:2], cut, "center")
    parts.append((covered, decode._corner(covered, cut, "center", None), cut, False))

  def each(function, *arguments):
    def run():
      for row in zip(*arguments):
        function(*row)
    return run

  fast = functools.partial(simplejpeg.decode_jpeg, fastdct=True, fastupsample=True)
  half = lambda data: decode._pixels(decode._open(data, 10**9), data, 10**9, str, 2)
  runs = {
      "PIL decodes": each(lambda data: Image.open(io.BytesIO(data)).load(), files),
      "PIL's image becomes an array": each(np.asarray, opened),
      "simplejpeg decodes": each(simplejpeg.decode_jpeg, files),
      "simplejpeg decodes, fast and inexact": each(fast, files),
      "simplejpeg decodes to a half": each(half, files),
      "PIL resizes": each(lambda image, part: resize.part_by_pil(image, *part), opened, parts),
      "resize.c resizes": each(lambda array, part: resize.part(array, *part), arrays, parts)}
  seconds = harness.interleave(runs, repeats=repeats, clock=time.process_time)
  return {name: 1000 * np.array(values) / len(files) for name, values in seconds.items()}


def _measure(
    loaders: dict, workers: int, batches: int, repeats: int) -> tuple[dict[str, list], dict[str, list]]:
  """Returns seconds and CPU seconds of `batches` batches of each loader, by its name."""
  seconds, cpu = ({name: [] for name in loaders} for _ in range(2))
  for repeat in range(repeats + 1):
    for name, batch in loaders.items():
      for _ in range(10 * workers + 5):  # more than either loader buffers, all stages counted
        batch()
      used, start = _cpu_seconds(), time.perf_counter()
      for _ in range(batches):
        batch()
      if repeat:  # the first measurement warms up
        seconds[name].append(time.perf_counter() - start)
        cpu[name].append(_cpu_seconds() - used)
      time.sleep(1.0)  # buffers fill up now, not during the other loader's measurement
  return seconds, cpu


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--batch_size", type=int, default=16)
  parser.add_argument("--batches", type=int, default=32, help="per measurement")
  parser.add_argument("--images", type=int, default=200)
  parser.add_argument("--cases", default="512x384:224,1024x1024:448")
  parser.add_argument("--workers", default="0")
  args = parser.parse_args()
  torch.set_num_threads(1)
  rows = []
  for workers in map(int, args.workers.split(",")):
    for case in args.cases.split(","):
      size, side = case.split(":")
      with tempfile.TemporaryDirectory() as folder:
        paths = write_tars(pathlib.Path(folder), args.images, tuple(map(int, size.split("x"))))
        common = paths, int(side), workers, args.batch_size
        loaders = {way: _JaxLoader(*common, folder, way) for way in ("unilip_jax", "scaled", "PIL")}
        np.testing.assert_array_equal(loaders["unilip_jax"](), loaders["PIL"]())
        loaders["DataLoader"] = _TorchLoader(*common)
        if workers == 0:
          rows += [harness.row(f"{case}, {name}", values, "CPU ms")
                   for name, values in _steps(paths, int(side), args.repeats).items()]
        measured = _measure(loaders, workers, args.batches, args.repeats)
        for batch in loaders.values():
          batch.close()
      images, start = args.batch_size * args.batches, f"{case}, {workers} workers,"
      for unit, values in zip(("images/s", "images/CPU-s"), measured):
        rates = {name: images / np.array(v) for name, v in values.items()}
        rows += [harness.row(f"{start} {name}", rate, unit, True) for name, rate in rates.items()]
        rows += [harness.row(  # of neighbouring measurements
            f"{start} {name} / {other}, {unit}", rates[name] / rates[other], "×", True)
            for name in ("unilip_jax", "scaled") for other in ("PIL", "DataLoader")]
    harness.write("benchmarks/results/input_pipeline_cpu.json", "input_pipeline",
                  vars(args) | {"load_average": os.getloadavg()[1]}, rows)


if __name__ == "__main__":
  main()
