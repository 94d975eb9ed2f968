"""Writes tables of measured training steps between their marks in docs/performance.md.

  python -m benchmarks.performance_table --write=docs/performance.md

Every pair of marks `<!-- steps FILE -->` and `<!-- end of steps -->` gets the table of
benchmarks/results/FILE, as benchmarks.train_step wrote it.
"""

import argparse
import json
import pathlib
import re
from typing import Any

_RESULTS = pathlib.Path(__file__).resolve().parent / "results"
_MARKS = re.compile(r"(<!-- steps (\S+) -->\n).*?(<!-- end of steps -->)", re.DOTALL)
_HEAD = ("| stage | side | images/s | spread | JAX / PyTorch | MFU | peak memory | by the compiler | "
         "built in |\n" + "|---" * 9 + "|")


def table(result: dict[str, Any]) -> str:
  """Makes the Markdown of one result, followed by a line with machine, versions and settings."""
  rows = result["rows"]
  ratios = {r["name"]: r for r in rows if r["unit"] == "×"}
  lines = [_HEAD]
  for r in rows:
    if r["unit"] != "images/s":
      continue
    stage, side = r["name"].split(", ", 1)
    if "error" in r:
      lines.append(f"| {stage} | {side} | {r['error']} |" + " |" * 6)
      continue
    ratio = next((x for name, x in ratios.items() if name.startswith(f"{stage}, ")
                  and name.endswith(f" / {side}")), None)
    peak = r["peak_device_bytes"] or r["peak_host_bytes"]
    compiled = r.get("memory_analysis_bytes")
    lines.append("| " + " | ".join([
        stage, side, f"{r['median']:.1f}", f"{r['spread']:.0%}",
        f"{ratio['median']:.2f}" if ratio else "", f"{r['mfu']:.0%}", f"{peak / 2**30:.2f} GiB",
        f"{compiled / 2**30:.2f} GiB" if compiled else "",
        f"{r.get('compile_seconds', r['first_step_seconds']):.0f} s"]) + " |")
  return "\n".join([*lines, "", _below(result)])


def _below(result: dict[str, Any]) -> str:
  settings, machine = result["settings"], result["machine"]
  stages = "; ".join(
      f"{name}: {s['batch_size']} images of {s['image_size']} px, {s['dtype']}"
      for name, s in settings["stages"].items())
  first = next((r for r in result["rows"] if "device" in r), {})
  device = machine["cpu"] if first.get("device") == "cpu" else first.get("device", "")
  cores = f", {settings['threads']} core{'s' * (settings['threads'] > 1)}" if settings["on_cpu"] else ""
  versions = result["versions"]
  loads = machine.get("load")
  return (f"`{result['command']}`. {stages}. {device}{cores}; jax {versions['jax']}, torch "
          f"{versions['torch']}, transformers {versions['transformers']}, diffusers "
          f"{versions['diffusers']}; medians of {settings['repeats']} turns"
          + (f"; load average {loads[0]} at the end" if loads else "") + ".")


def write(path: pathlib.Path, results: pathlib.Path = _RESULTS) -> None:
  """Fills the marks of a Markdown file.

  Raises:
    ValueError: if it has none.
  """
  text = path.read_text()
  if not _MARKS.search(text):
    raise ValueError(f"{path}: no marks <!-- steps FILE --> and <!-- end of steps -->")
  fill = lambda m: f"{m[1]}{table(json.loads((results / m[2]).read_text()))}\n{m[3]}"
  path.write_text(_MARKS.sub(fill, text))


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--write", default="docs/performance.md", help="Markdown file with the marks")
  write(pathlib.Path(parser.parse_args().write))


if __name__ == "__main__":
  main()
