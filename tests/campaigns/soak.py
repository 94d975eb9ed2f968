"""Samples memory, threads and file handles of long runs.

  python -m tests.campaigns.soak --minutes=15 --calls=500

Two parts, each in a forked child (forks.py) that is sampled from outside:

  train  stage 1 at `--size` (tiny or micro) without end, with evaluation, samples and a checkpoint every 5
         steps; sampled after a warm-up of 300 steps, stopped by SIGTERM after the minutes
  calls  UniLIP.load("shapes:gen3"), then generate, edit, chat, reconstruct and encode in a random order,
         with images of random sizes and batches of random lengths

Two kinds of memory are sampled. What is in use, the bytes of malloc's blocks and the number of Python's,
is what a leak makes grow. What is resident has the holes between those blocks too: it creeps up by steps in
the first hundreds of updates, however long these take (docs/reliability.md).

The slope is that of the floor: after the first third of the samples, the least of each of 20 windows, and
the median of the slopes between any two of them (Theil and Sen) with its 95 % interval. A part fails if

  in use, blocks     the interval is above 0 and the slope would double them within 1000 minutes (train) or
                     10 000 calls
  memory             what is resident rises by more than 3 % from the first to the last five windows
  threads, files     the second half has over 4 more than the first ever had
"""

import argparse
import ctypes
import dataclasses
import json
import operator
import os
import pathlib
import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from typing import Any

import numpy as np
from scipy import stats

from tests.campaigns import forks

_EVERY = 0.1  # seconds between samples
_WINDOWS = 20
_STEPS = 5  # between checkpoints, evaluations and samples: steps alone do not grow, these might
_DOUBLES = {"train": 1000, "calls": 10_000}  # minutes, calls
_RISE = 0.03  # of resident memory
_ENDS = 5  # windows whose median is compared, at both ends
_SPARE = 4  # threads and file handles that come and go; a leak at every checkpoint exceeds it
_ENDLESS = 10**6


@dataclasses.dataclass(frozen=True)
class Sample:
  """The state of a process.

  Attributes:
    at: minutes since the start, or number of calls.
    memory: private resident bytes. Pages of mapped files are not counted: the system takes them away and
      reads them again as it likes.
    in_use: bytes of malloc's blocks that are not free.
    blocks: Python's own blocks.
    threads: number of threads.
    files: number of open file handles.
  """

  at: float
  memory: int
  in_use: int
  blocks: int
  threads: int
  files: int


class _Mallinfo(ctypes.Structure):
  """glibc's struct mallinfo2."""

  _fields_ = [(name, ctypes.c_size_t) for name in (
      "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
      "keepcost")]


def write_in_use(file: str) -> None:
  """Starts a thread that writes bytes in use and Python's blocks of this process, twice a second."""
  mallinfo = ctypes.CDLL(None).mallinfo2
  mallinfo.restype = _Mallinfo

  def write() -> None:
    new = pathlib.Path(f"{file}.new")
    while True:
      info = mallinfo()
      new.write_text(f"{info.uordblks + info.hblkhd} {sys.getallocatedblocks()}")
      new.replace(file)
      time.sleep(0.5)

  threading.Thread(target=write, daemon=True).start()


def train(in_use: str, workdir: str, cache: str, images: str, size: str) -> None:
  """Trains until SIGTERM."""
  write_in_use(in_use)
  import jax

  from tests import micro
  from unilip_jax import train as train_lib
  from unilip_jax.configs import stage1

  if size == "micro":
    micro.install()
    jax.config.update("jax_disable_most_optimizations", True)
    config = micro.config("stage1", images)
  else:
    config = stage1.get_config("tiny")
  config.compilation_cache = cache
  config.total_steps = _ENDLESS
  config.eval.every_steps = config.sample_every_steps = config.checkpoint_every_steps = _STEPS
  config.eval.max_examples, config.eval.at_start = 64, False
  config.log_every_steps = _STEPS
  train_lib.train(config, workdir)


def call(in_use: str, count_file: str, count: int, seed: int) -> None:
  """Calls UniLIP `count` times; writes the number of finished calls to a file."""
  write_in_use(in_use)
  from unilip_jax import UniLIP

  model, rng = UniLIP.load("shapes:gen3"), random.Random(seed)
  noise = np.random.default_rng(seed)
  prompts = ["a red square", "a yellow cross and a red square", "two blue circles"]

  def images(number: int) -> list[np.ndarray]:
    return [noise.integers(0, 256, (rng.choice((64, 112, 150)), rng.choice((80, 112)), 3)).astype(np.uint8)
            for _ in range(number)]

  def batch() -> int:
    return rng.randint(1, 2)

  actions = (
      lambda n: model.generate([rng.choice(prompts) for _ in range(n)], steps=4, seed=rng.randrange(100)),
      lambda n: model.edit(images(n), ["make the square blue"] * n, steps=4),
      lambda n: model.chat(images(n), ["How many objects are there?"] * n, max_new_tokens=4),
      lambda n: model.reconstruct(images(n)), lambda n: model.encode(images(n)))
  for i in range(count):
    rng.choice(actions)(batch())
    pathlib.Path(count_file).write_text(str(i + 1))


def sample(pid: int, at: float, in_use: pathlib.Path) -> Sample:
  """Reads the state of a process from /proc and from the file of `write_in_use`."""
  folder = pathlib.Path(f"/proc/{pid}")
  memory = int(re.search(r"RssAnon:\s+(\d+) kB", (folder / "status").read_text())[1]) * 1024
  return Sample(at, memory, *map(int, in_use.read_text().split()), len(list((folder / "task").iterdir())),
                len(os.listdir(folder / "fd")))


def floors(samples: list[Sample], kind: str) -> list[Sample]:
  """Returns the sample with the least `kind` of each window after the first third.

  Memory rises and falls within each evaluation and checkpoint, and Python collects cycles at long
  intervals: the least memory of a window shows a leak, single samples do not.
  """
  windows = np.array_split(np.arange(len(samples) // 3, len(samples)), _WINDOWS)
  return [min((samples[i] for i in window), key=operator.attrgetter(kind)) for window in windows]


def slope(floors: list[Sample], kind: str) -> tuple[float, float, float]:
  """Returns the growth of the floor per unit of `at`, and the ends of its 95 % interval."""
  found = stats.theilslopes([getattr(s, kind) for s in floors], [s.at for s in floors], alpha=.95)
  return float(found.slope), float(found.low_slope), float(found.high_slope)


def report(part: str, samples: list[Sample]) -> dict[str, Any]:
  """Summarises a part; `failed` lists what grows."""
  if len(samples) < 2 * _WINDOWS:
    raise ValueError(f"{part}: {len(samples)} samples say nothing; let it run longer")
  half = len(samples) // 2
  first, second = samples[:half], samples[half:]
  unit = {"train": "minute", "calls": "call"}[part]
  floor = {kind: floors(samples, kind) for kind in ("memory", "in_use", "blocks")}
  slopes = {kind: slope(floor[kind], kind) for kind in floor}
  level = lambda windows: statistics.median(s.memory for s in windows)
  rise = level(floor["memory"][-_ENDS:]) / level(floor["memory"][:_ENDS]) - 1
  row = lambda s: [round(s.at, 2), *dataclasses.astuple(s)[1:]]
  failed = ["memory"] * (rise > _RISE)
  failed += [kind for kind in ("in_use", "blocks")
             if slopes[kind][1] > 0 and slopes[kind][0] * _DOUBLES[part] > getattr(floor[kind][-1], kind)]
  failed += [name for name in ("threads", "files")
             if max(getattr(s, name) for s in second) > max(getattr(s, name) for s in first) + _SPARE]
  return {
      "samples": len(samples), unit + "s": round(samples[-1].at, 2),
      "memory_mb": {"half": round(second[0].memory / 1e6, 1), "end": round(second[-1].memory / 1e6, 1),
                    "most": round(max(s.memory for s in samples) / 1e6, 1)},
      "memory_rise": round(rise, 4),
      f"slopes_of_floors_kb_per_{unit}": {
          kind: [round(x / 1e3, 2) for x in slopes[kind]] for kind in ("memory", "in_use")},
      f"slope_of_blocks_per_{unit}": [round(x, 1) for x in slopes["blocks"]],
      "threads": [max(s.threads for s in first), max(s.threads for s in second)],
      "files": [max(s.files for s in first), max(s.files for s in second)], "failed": failed,
      "floors_mb": {kind: [round(getattr(s, kind) / 1e6, 1) for s in floor[kind]]
                    for kind in ("memory", "in_use")},
      "floors_blocks": [s.blocks for s in floor["blocks"]],
      "curve": [row(s) for s in samples[::max(1, len(samples) // 60)]]}


def soak_train(
    server: forks.Server, folder: pathlib.Path, warm_up: int, minutes: float, size: str
) -> dict[str, Any]:
  """Trains for `warm_up` steps, at least to the first checkpoint, then for `minutes` that are sampled."""
  from tests import micro
  from unilip_jax.training import metrics

  images = micro.write_images(folder / "images")
  workdir, cache = folder / "run", os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(folder / "xla")
  in_use = folder / "in_use_train"
  child = server.start("tests.campaigns.soak:train", str(in_use), str(workdir), cache, str(images), size,
                       log=folder / "train.log")
  while _step(workdir) < max(warm_up, _STEPS):  # from the first checkpoint on all programs are compiled
    _check(child)
    time.sleep(_EVERY)
  begin, samples = time.monotonic(), []
  while (at := (time.monotonic() - begin) / 60) < minutes:
    _check(child)
    samples.append(sample(child.pid, at, in_use))
    time.sleep(_EVERY)
  os.kill(child.pid, signal.SIGTERM)
  status = child.wait(120)
  if status:
    raise RuntimeError(f"training ended with status {status}:\n{child.output()[-2000:]}")
  rows = metrics.read(workdir)
  return report("train", samples) | {
      "size": size, "warm_up_steps": warm_up, "steps": rows[-1]["step"],
      "evaluations": sum(any(k.startswith("eval/") for k in row) for row in rows),
      "grids": len(list((workdir / "samples").glob("*.png")))}


def soak_calls(server: forks.Server, folder: pathlib.Path, calls: int) -> dict[str, Any]:
  """Calls UniLIP and samples after each call."""
  in_use, file, samples = folder / "in_use_calls", folder / "calls", []
  child = server.start("tests.campaigns.soak:call", str(in_use), str(file), calls, 0,
                       log=folder / "calls.log")
  done = 0
  while child.poll() is None:
    now = int(file.read_text() or 0) if file.exists() else 0
    if now > done and now < calls:
      done = now
      try:
        samples.append(sample(child.pid, done, in_use))
      except (FileNotFoundError, ProcessLookupError):
        break  # it has ended
    time.sleep(0.01)
  if status := child.wait(60):
    raise RuntimeError(f"the calls ended with status {status}:\n{child.output()[-2000:]}")
  return report("calls", samples)


def _step(workdir: pathlib.Path) -> int:
  """Returns the step of the newest checkpoint, 0 before the first."""
  folder = workdir / "checkpoints"
  names = os.listdir(folder) if folder.exists() else []
  return max((int(name) for name in names if name.isdecimal()), default=0)


def _check(child: forks.Child) -> None:
  if (status := child.poll()) is not None:
    raise RuntimeError(f"training ended with status {status}:\n{child.output()[-2000:]}")


def main() -> int:
  """Runs both parts; returns 1 if something grows."""
  from unilip_jax.common import machine

  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--minutes", type=float, default=15, help="of training; 0 trains none")
  parser.add_argument("--warm_up", type=int, default=300, help="steps of training before the samples")
  parser.add_argument("--calls", type=int, default=500, help="of UniLIP; 0 calls none")
  parser.add_argument("--size", default="tiny", choices=["tiny", "micro"])
  parser.add_argument("--out", default="", help="JSON file")
  args = parser.parse_args()
  parts = {}
  with tempfile.TemporaryDirectory(prefix="soak-") as folder, forks.Server() as server:
    if args.minutes:
      parts["train"] = soak_train(server, pathlib.Path(folder), args.warm_up, args.minutes, args.size)
      summary = {name: x for name, x in parts["train"].items() if name != "curve"}
      print(json.dumps({"train": summary}), file=sys.stderr, flush=True)  # kept if the calls fail
    if args.calls:
      parts["calls"] = soak_calls(server, pathlib.Path(folder), args.calls)
  result = {"command": f"python -m tests.campaigns.soak --minutes={args.minutes:g} "
                       f"--warm_up={args.warm_up} --calls={args.calls} --size={args.size}",
            "machine": f"{os.cpu_count()} cores {machine.processor()}"} | parts
  text = json.dumps(result, indent=2)
  print(json.dumps({k: {n: x for n, x in v.items() if n != "curve"} if isinstance(v, dict) else v
                    for k, v in result.items()}, indent=2))
  if args.out:
    pathlib.Path(args.out).write_text(text + "\n")
  return int(any(part["failed"] for part in parts.values()))


if __name__ == "__main__":
  sys.exit(main())
