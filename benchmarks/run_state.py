"""Measures a run outside of its steps: checkpoints, and the time from the command to the first update.

  python -m benchmarks.run_state [--config=configs/gen2.py] [--size=tiny] [--repeats=5] [--no_start]

Checkpoints: the whole training state as training saves it (checkpoint.Manager: orbax, sharded, in the
background) next to torch.save and torch.load of the same arrays. "blocks the step" is how long training
waits for the save to begin; "saved" is until it is on disk. Both sides read what was just
written, from the system's page cache. Start: `python -m unilip_jax.main` as a process of its own until
its first update is done, without and with compiled programs of an earlier start. Writes
benchmarks/results/run_state_<size>_<device>.json.
"""

import argparse
from collections.abc import Callable, Mapping
import importlib
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

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import harness
from unilip_jax import tasks
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.training import checkpoint, initial_state
from unilip_jax.weights import orbax_io

_QUIET = (  # nothing but the start and one update
    "total_steps=1", "eval.at_start=False", "eval.every_steps=0", "sample_every_steps=0",
    "checkpoint_every_steps=0", "init_from=")


def _get_config(path: str, size: str) -> Any:
  module = importlib.import_module(f"unilip_jax.configs.{pathlib.Path(path).stem}")
  return module.get_config(size)


class _Orbax:
  """Saves with checkpoint.Manager in a folder."""

  def __init__(self, state: Any, abstract: Any, folder: pathlib.Path):
    self.state, self._abstract, self._step = state, abstract, 0
    self._manager = checkpoint.Manager(str(folder), keep=1)
    self._manager.save_frozen(state.frozen, {})
    self.began: list[float] = []  # seconds that save() itself took

  def save(self) -> None:
    self._step += 1
    start = time.perf_counter()
    self._manager.save(self._step, self.state, {"step": self._step})
    self.began.append(time.perf_counter() - start)
    self._manager.wait()

  def restore(self) -> None:
    jax.block_until_ready(self._manager.restore(self._abstract)[0].params)


class _Torch:
  """Saves one flat dict with torch.save."""

  def __init__(self, arrays: Mapping[str, np.ndarray], folder: pathlib.Path):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    self._tensors = {name: torch.from_numpy(x.copy()).to(device) for name, x in arrays.items()}
    folder.mkdir(parents=True)
    self._file, self._device = folder / "state.pt", device

  def save(self) -> None:
    torch.save(self._tensors, self._file)
    with self._file.open("rb") as file:
      os.fsync(file.fileno())

  def restore(self) -> None:
    torch.load(self._file, map_location=self._device, weights_only=True)


def _checkpoints(config: Any, repeats: int, folder: pathlib.Path) -> list[dict[str, Any]]:
  mesh = mesh_lib.config_mesh(config)
  task = tasks.make(config)
  abstract = initial_state.abstract_state(task, config, mesh)
  state = jax.tree.map(
      lambda s: jax.device_put(jnp.zeros(s.shape, s.dtype), s.sharding), abstract)
  saved = {"params": state.params, "ema": state.ema, "opt_state": state.opt_state, "gan": state.gan}
  arrays = {
      jax.tree_util.keystr(path): np.asarray(x)
      for path, x in jax.tree_util.tree_leaves_with_path(saved)}
  frozen = sum(np.prod(s.shape) * s.dtype.itemsize for s in jax.tree.leaves(abstract.frozen))
  megabytes = sum(x.nbytes for x in arrays.values()) / 1e6
  orbax, torch_file = _Orbax(state, abstract, folder / "orbax"), _Torch(arrays, folder / "torch")
  rows = []
  for what in ("save", "restore"):
    seconds = harness.interleave(
        {"unilip_jax": getattr(orbax, what), "torch": getattr(torch_file, what)}, repeats=repeats, warmup=1)
    for who, values in seconds.items():
      # Frozen weights are written once a run, but read at every restore.
      size = megabytes + (frozen / 1e6 if what == "restore" and who == "unilip_jax" else 0)
      rows.append(harness.row(f"{what}, {who}", values, "s"))
      rows.append(harness.row(f"{what}, {who}", [size / s for s in values], "MB/s", True))
    if what == "save":
      rows.append(harness.row("save, unilip_jax, blocks the step", orbax.began[1:], "s"))
  return [row | {"megabytes": megabytes, "frozen_megabytes": frozen / 1e6} for row in rows]


def _start(args: argparse.Namespace, folder: pathlib.Path) -> list[dict[str, Any]]:
  def first_update(name: str) -> tuple[float, float]:
    """Measures (seconds, CPU seconds) until the first update's metrics are written."""
    workdir = folder / name
    fields = [*_QUIET, f"compilation_cache={folder}/xla", f"data.render_dir={folder}/shapes",
              "log_every_steps=1", *args.fields]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "unilip_jax.main", f"--config={args.config}:{args.size}",
         f"--workdir={workdir}", *(f"--config.{f}" for f in fields)], capture_output=True, text=True)
    if done.returncode:
      raise SystemExit(f"the run failed:\n{done.stderr[-3000:]}")
    row, = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return row["time"] - begin, (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)

  rows = []
  for what in ("data prepared first", "cold", "compiled before"):
    if what == "cold":
      shutil.rmtree(folder / "xla", ignore_errors=True)
    seconds, cpu = first_update(what.replace(" ", "_"))
    if what != "data prepared first":
      rows.append(harness.row(f"start to first update, {what}", [seconds], "s")
                  | {"cpu_seconds_of_the_process": cpu})
  return rows


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="configs/gen2.py")
  parser.add_argument("--size", default="tiny", choices=("tiny", "1b", "3b"))
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--folder", default="", help="of the measured disk; default: a temporary one")
  parser.add_argument("--no_start", action="store_true", help="checkpoints alone")
  parser.add_argument("--fields", nargs="*", default=[], help="field=value, of the started runs")
  args = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  folder = orbax_io.absolute(tempfile.mkdtemp(dir=args.folder or None, prefix="run_state_"))
  folder = pathlib.Path(folder)
  checks: list[Callable[[], list]] = [
      lambda: _checkpoints(_get_config(args.config, args.size), args.repeats, folder)]
  if not args.no_start:
    checks.append(lambda: _start(args, folder))
  rows = []
  try:
    for check in checks:
      rows += check()
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  harness.write(f"benchmarks/results/run_state_{args.size}_{harness.label()}.json", "run_state",
                {k: v for k, v in vars(args).items() if k != "folder"}, rows)


if __name__ == "__main__":
  main()
