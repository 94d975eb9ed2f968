"""Measures what a user waits for: --help, the first image, the first update; each in a process of its own.

  python -m benchmarks.starts [--stages=stage1,stage2,gen3] [--repeats=3] [--cores=1]

"cold" has no compiled programs. "cached" has those of an earlier start, in two ways: by JAX's cache alone
($UNILIP_PROGRAM_STORE=0), and as the package stores them (ops/program_store.py). Images and metrics of all
starts must be equal, bit for bit. Rows are CPU seconds, which other processes of the machine disturb less
than the clock; `wall_seconds` has the clock. Python's own cache of bytecode is filled first, as after any
earlier start. A training start renders its data before, makes one update and saves it. Writes
benchmarks/results/starts_<device>.json after every question.
"""

import argparse
import hashlib
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax

from benchmarks import harness
from unilip_jax.ops import program_store

_QUIET = (  # nothing but the start, one update and its checkpoint
    "total_steps=1", "eval.at_start=False", "eval.every_steps=0", "sample_every_steps=0",
    "checkpoint_every_steps=0", "log_every_steps=1")
_PROMPT = "a yellow cross and a red square"
_SIDES = {"JAX's cache": "0", "stored programs": "1"}


class Starts:
  """Starts commands with a folder of their own for caches, data and results."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder

  def time(self, words: list[str], store: str = "1") -> tuple[float, float]:
    """Returns (CPU seconds, seconds) of a command."""
    env = os.environ | {"PYTHONPYCACHEPREFIX": str(self._folder / "bytecode"), program_store.SWITCH: store}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode and "--help" not in words:  # absl's ends with 1
      raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-3000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall

  def prepare(self, stage: str) -> None:
    """Renders the data of a stage and indexes it."""
    data = self._folder / f"{stage}_data"
    self.time(["-c", f"""
from unilip_jax.configs import {stage}
from unilip_jax.data import pipeline
config = {stage}.get_config("tiny")
config.data.render_dir, config.data.index_dir = "{data}/render", "{data}/index"
pipeline.train_stream(config, start_position=0, process_index=0, process_count=1, workdir="{data}")"""])

  def images(self, cache: str, store: str) -> tuple[tuple[float, float], str]:
    """Makes the first image; returns its seconds, and its hash."""
    out = self._folder / "images"
    seconds = self.time([
        "-m", "unilip_jax.infer", "generate", "--checkpoint=shapes:gen3", "--prompts", _PROMPT,
        f"--out={out}", f"--compilation_cache={self._folder / cache}"], store)
    return seconds, hashlib.sha256((out / "0000.png").read_bytes()).hexdigest()

  def update(self, stage: str, cache: str, store: str) -> tuple[tuple[float, float], str]:
    """Makes the first update of a new run; returns its seconds, and its metrics."""
    workdir = self._folder / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    fields = [*_QUIET, f"compilation_cache={self._folder / cache}",
              f"data.render_dir={self._folder}/{stage}_data/render",
              f"data.index_dir={self._folder}/{stage}_data/index"]
    seconds = self.time([
        "-m", "unilip_jax.main", f"--config=configs/{stage}.py:tiny", f"--workdir={workdir}",
        *(f"--config.{field}" for field in fields)], store)
    row = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
    return seconds, str({name: value for name, value in row.items() if name.startswith("train/")})


def _rows(name: str, start: Any, repeats: int) -> list[dict[str, Any]]:
  """Measures cold and cached starts of both sides, taking turns; `start(cache, store)` starts one."""
  seconds: dict[str, list[tuple[float, float]]] = {}
  results = set()
  for turn in range(1 + repeats):
    for side, store in _SIDES.items():
      took, result = start(f"{name} {store}".replace(" ", "_"), store)
      results.add(result)
      seconds.setdefault(f"{name}, {'cached' if turn else 'cold'}, {side}", []).append(took)
  if len(results) > 1:
    raise SystemExit(f"{name}: the sides differ: {results}")
  return [harness.row(what, [cpu for cpu, _ in values], "CPU s")
          | {"wall_seconds": min(wall for _, wall in values)} for what, values in seconds.items()]


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--stages", default="stage1,stage2,gen3")
  parser.add_argument("--repeats", type=int, default=3, help="of cached starts")
  parser.add_argument("--cores", type=int, default=1)
  args = parser.parse_args()
  harness.pin(args.cores)
  jax.devices()
  folder = pathlib.Path(tempfile.mkdtemp(prefix="starts_"))
  starts, rows = Starts(folder), []
  path = f"benchmarks/results/starts_{harness.label()}.json"

  def add(new: list[dict[str, Any]]) -> None:
    rows.extend(new)
    harness.write(path, "starts", vars(args), rows)

  try:
    starts.time(["-c", "import unilip_jax.train, unilip_jax.infer.model, unilip_jax.shapes.source"])
    for words in (["--help"], ["train", "--help"]):
      took = [starts.time(["-m", "unilip_jax.common.cli", *words]) for _ in range(1 + args.repeats)][1:]
      add([harness.row(f"unilip {' '.join(words)}", [cpu for cpu, _ in took], "CPU s")
           | {"wall_seconds": min(wall for _, wall in took)}])
    add(_rows("first image", starts.images, args.repeats))
    for stage in args.stages.split(","):
      starts.prepare(stage)
      add(_rows(f"first update of {stage}", lambda cache, store, stage=stage: starts.update(
          stage, cache, store), args.repeats))
  finally:
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
  main()
