"""Measures what checksums cost: verifying a folder of weights next to reading it, hashing it after a save.

  python -m benchmarks.checksums [--gigabytes=4] [--repeats=3] [--folder=DIR]

The folder holds float32 arrays of 64 MB, written by weights/orbax_io.py as weights and checkpoints are.
4 GB are about the parameters of a 1b run. "cached" reads files that were just written, from the system's
page cache; "from disk" first drops them from it (posix_fadvise). Writes
benchmarks/results/checksums_cpu.json.
"""

import argparse
import os
import pathlib
import shutil
import tempfile
import time

from absl import logging
import jax
import numpy as np

from benchmarks import harness
from unilip_jax.weights import checksums, orbax_io

_ARRAY_BYTES = 2**26


def _drop(folder: pathlib.Path) -> None:
  """Drops the files of a folder from the page cache."""
  for path in folder.rglob("*"):
    if path.is_file():
      with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _seconds(function) -> float:
  begin = time.perf_counter()
  function()
  return time.perf_counter() - begin


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--gigabytes", type=float, default=4.0)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--folder", default="", help="of the measured disk; default: a temporary one")
  args = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  base = pathlib.Path(tempfile.mkdtemp(dir=args.folder or None, prefix="checksums_"))
  folder, count = base / "weights", max(1, round(args.gigabytes * 1e9 / _ARRAY_BYTES))
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = {str(i): jax.ShapeDtypeStruct((_ARRAY_BYTES // 4096, 1024), np.float32, sharding=here)
              for i in range(count)}
  try:
    rng = np.random.default_rng(0)
    tree = {name: rng.standard_normal(s.shape, np.float32) for name, s in abstract.items()}
    begin = time.perf_counter()
    orbax_io.write_tree(folder, tree)
    total = time.perf_counter() - begin
    del tree
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e9
    assert checksums.faults(folder) == []
    functions = {
        "hash after a save": lambda: checksums.write(folder),
        "verify": lambda: checksums.faults(folder),
        "restore without verifying": lambda: jax.block_until_ready(
            orbax_io.restore_tree(folder, abstract))}
    rows = [harness.row("save, hashing included", [total], "s")]
    for state in ("cached", "from disk"):
      for name, function in functions.items():
        if state == "from disk" and name == "hash after a save":
          continue  # the files were just written
        seconds = []
        for _ in range(args.repeats):
          if state == "from disk":
            _drop(folder)
          seconds.append(_seconds(function))
        rows += [harness.row(f"{name}, {state}", seconds, "s"),
                 harness.row(f"{name}, {state}", [size / s for s in seconds], "GB/s", True)]
        print(rows[-2]["name"], rows[-2]["median"], flush=True)
  finally:
    shutil.rmtree(base)
  harness.write(f"benchmarks/results/checksums_{harness.label()}.json", "checksums",
                {"gigabytes": size, "arrays": count, "repeats": args.repeats}, rows)


if __name__ == "__main__":
  main()
