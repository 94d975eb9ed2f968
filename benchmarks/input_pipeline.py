"""Measures images per second of the training stream and of a PyTorch DataLoader over the same tars.

  python -m benchmarks.input_pipeline [--repeats=9]

Both read random records of WebDataset tars, decode with PIL, resize the shorter edge to 224 (bicubic,
antialias), crop and flip at random, and return uint8 batches of 32. The DataLoader is a plain
implementation: a map-style dataset with one open tarfile per worker, `persistent_workers`, and the PIL
calls that torchvision would make. Measurements alternate; each begins after the loader's buffers are
drained. CPU seconds include the worker processes and depend little on the machine's other load.
Writes benchmarks/results/input_pipeline_cpu.json.
"""

import argparse
import io
import os
import pathlib
import random
import tarfile
import tempfile
import time

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
import torch

from benchmarks import harness
from unilip_jax.configs import stage2

_SIZE = 224


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


def write_tars(folder: pathlib.Path, count: int, tars: int = 4) -> list[str]:
  """Writes crops of photographs with captions: about 512×384, one in four upright, quality 90."""
  photographs, rng, paths = _photographs(), np.random.default_rng(1), []
  for t in range(tars):
    paths.append(str(folder / f"{t:05d}.tar"))
    with tarfile.open(paths[-1], "w") as tar:
      for i in range(t, count, tars):
        width, height = int(rng.integers(480, 545)), int(rng.integers(360, 409))
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

  def __init__(self, paths: list[str]):
    self._paths, self._tars = paths, None
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
    short = min(width, height)
    image = image.resize(
        (int(_SIZE * width / short), int(_SIZE * height / short)), Image.Resampling.BICUBIC)
    left = random.randint(0, image.width - _SIZE)
    top = random.randint(0, image.height - _SIZE)
    image = image.crop((left, top, left + _SIZE, top + _SIZE))
    if random.random() < 0.5:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1)


class _TorchLoader:
  """Reads endless batches of the DataLoader."""

  def __init__(self, paths: list[str], workers: int, batch_size: int):
    extra = dict(persistent_workers=True, multiprocessing_context="spawn") if workers else {}
    dataset = TarDataset(paths)
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


class _JaxLoader:
  """Reads endless batches of the training stream."""

  def __init__(self, paths: list[str], workers: int, batch_size: int, workdir: str):
    from unilip_jax.data import pipeline  # not above: spawned DataLoader workers need no JAX

    config = stage2.get_config("tiny")
    config.image_size, config.batch_size = _SIZE, batch_size
    config.data.train = (("tar", ",".join(paths), 1.0),)
    config.data.flip, config.data.crop, config.data.workers = True, "random", workers
    self._stream = pipeline.train_stream(
        config, start_position=0, process_index=0, process_count=1, workdir=workdir)

  def __call__(self) -> None:
    assert next(self._stream)["image"].dtype == np.uint8

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


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--repeats", type=int, default=9)
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--batches", type=int, default=24, help="per measurement")
  parser.add_argument("--images", type=int, default=400)
  parser.add_argument("--workers", default="0,1,2")
  args = parser.parse_args()
  torch.set_num_threads(1)
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    paths = write_tars(pathlib.Path(folder), args.images)
    for workers in map(int, args.workers.split(",")):
      loaders = {"unilip_jax": _JaxLoader(paths, workers, args.batch_size, folder),
                 "DataLoader": _TorchLoader(paths, workers, args.batch_size)}
      seconds: dict[str, list[float]] = {name: [] for name in loaders}
      cpu: dict[str, list[float]] = {name: [] for name in loaders}
      for repeat in range(args.repeats + 1):
        for name, batch in loaders.items():
          for _ in range(10 * workers + 5):  # more than either loader buffers, all stages counted
            batch()
          used, start = _cpu_seconds(), time.perf_counter()
          for _ in range(args.batches):
            batch()
          if repeat:  # the first measurement warms up
            seconds[name].append(time.perf_counter() - start)
            cpu[name].append(_cpu_seconds() - used)
          time.sleep(1.0)  # buffers fill up now, not during the other loader's measurement
      for batch in loaders.values():
        batch.close()
      images = args.batch_size * args.batches
      for unit, values in (("images/s", seconds), ("images/CPU-s", cpu)):
        rows += [harness.row(f"{workers} workers, {name}", images / np.array(v), unit, True)
                 for name, v in values.items()]
        rows.append(harness.row(  # of neighbouring measurements
            f"{workers} workers, ratio of {unit}",
            np.array(values["DataLoader"]) / np.array(values["unilip_jax"]), "×", True))
  harness.write("benchmarks/results/input_pipeline_cpu.json", "input_pipeline",
                vars(args) | {"image_size": _SIZE, "load_average": os.getloadavg()[1]}, rows)


if __name__ == "__main__":
  main()
