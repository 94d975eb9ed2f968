"""Measures records per second and peak memory of preparing a synthetic GPT-Image-Edit-1.5M.

  python -m benchmarks.data_prepare [--repeats=3]

Converts pairs of a JPEG and a PNG of 256×256, in the downloaded layout, to tars of 500 records. The pairs
are hard links to 50 different ones, so the input comes from the page cache. Times are those of the complete
command, its start included. Measurements alternate. CPU seconds depend little on the machine's other load.
Peak memory is that of the largest process.
Writes benchmarks/results/data_prepare_cpu.json.
"""

import argparse
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

from benchmarks import harness

_SIZE, _DISTINCT = 256, 50


def _image(seed: int, fmt: str) -> bytes:
  """Encodes smooth colours with a little noise; the files are as large as of photographs and drawings."""
  rng = np.random.default_rng(seed)
  coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8))
  pixels = np.asarray(coarse.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)).astype(int)
  pixels = np.clip(pixels + rng.integers(-3, 4, pixels.shape), 0, 255).astype(np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, fmt)
  return buffer.getvalue()


def write_source(root: pathlib.Path, count: int) -> int:
  """Writes `count` pairs in GPT-Image-Edit's layout; returns the mean bytes of a pair."""
  images = root / "gpt-edit/hqedit"
  for i, (folder, fmt) in enumerate((("input", "JPEG"), ("output", "PNG"))):
    (images / folder).mkdir(parents=True)
    for k in range(_DISTINCT):
      (root / f"{folder}{k}").write_bytes(_image(2 * k + i, fmt))
    for k in range(count):
      os.link(root / f"{folder}{k % _DISTINCT}", images / folder / f"{k:06d}.png")
  entries = [{"image": [f"input/{k:06d}.png", f"output/{k:06d}.png"],
              "conversations": [{"from": "human", "value": f"<image>\nmake it look like number {k}"}]}
             for k in range(count)]
  (root / "hqedit.json").write_text(json.dumps(entries))
  (root / "gptedit.txt").write_text("gpt-edit/hqedit,hqedit.json,false\n")
  return sum((root / f"{f}{k}").stat().st_size for f in ("input", "output")
             for k in range(_DISTINCT)) // _DISTINCT


def prepare(source: pathlib.Path, out: pathlib.Path, *options: str) -> tuple[float, float, float]:
  """Runs one preparation; returns (seconds, CPU seconds, peak memory in MB of the largest process)."""
  start = time.perf_counter()
  process = subprocess.Popen(
      [sys.executable, "-m", "unilip_jax.data.prepare", "gpt_image_edit", f"--source={source}",
       f"--out={out}", "--records_per_shard=500", "--quiet", *options], stdout=subprocess.DEVNULL)
  _, status, usage = os.wait4(process.pid, 0)
  seconds = time.perf_counter() - start
  process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise SystemExit(f"the preparation failed with status {process.returncode}")
  shutil.rmtree(out)
  return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--records", type=int, default=4000)
  parser.add_argument("--memory_records", default="2000,20000")
  args = parser.parse_args()
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    pair_bytes = write_source(root / "source", args.records)
    runs = {f"{w} workers, --verify={v}": (f"--workers={w}", f"--verify={v}")
            for v in ("full", "header") for w in (1, 2)}
    seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in runs}
    for _ in range(args.repeats):
      for name, options in runs.items():
        seconds[name].append(prepare(root / "source", root / "out", *options)[:2])
    for i, unit in enumerate(("records/s", "records/CPU-s")):
      rows += [harness.row(name, args.records / np.array(s)[:, i], unit, True)
               for name, s in seconds.items()]
    for count in map(int, args.memory_records.split(",")):
      write_source(root / f"source{count}", count)
      peak = prepare(root / f"source{count}", root / "out", "--workers=2", "--verify=header")[2]
      rows.append(harness.row(f"peak memory, {count} records, 2 workers", [peak], "MB"))
  harness.write("benchmarks/results/data_prepare_cpu.json", "data_prepare",
                vars(args) | {"pair_bytes": pair_bytes, "load_average": os.getloadavg()[1]}, rows)


if __name__ == "__main__":
  main()
