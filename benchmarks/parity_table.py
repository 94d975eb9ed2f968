"""Writes the tables of parity: the worst relative error of each module, from the tests that record it.

  python -m benchmarks.parity_table --write=docs/parity.md [--fullsize]

Runs those tests and collects what tests/parity.py records. --fullsize also runs the comparisons at the
published dimensions (14 GB, half an hour); without it, their table in the file is kept.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

_TESTS = ("tests/models", "tests/losses", "tests/ops", "tests/optim", "tests/evals", "tests/sampling",
          "tests/infer", "tests/tasks/generate_test.py")
_FULLSIZE = "## At the published dimensions"
_HEAD = """# Parity with PyTorch

float32, max |JAX − PyTorch| / max |PyTorch|. "golden" is a recorded run of the official code
(tests/golden). Made by `python -m benchmarks.parity_table --write=docs/parity.md`.

"""
_FULLSIZE_HEAD = f"""{_FULLSIZE}

The networks of UniLIP-1B with random weights against transformers and diffusers: `pytest -m fullsize`.
Seconds (of PyTorch and JAX, compilation included) and peak resident memory of each test, on {{machine}}.

"""


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--write", default="", help="Markdown file for the tables")
  parser.add_argument("--fullsize", action="store_true", help="also run tests/fullsize")
  parser.add_argument("--record", default="", help="records of earlier test runs; runs none")
  parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores", help="for the table")
  args = parser.parse_args()
  path = pathlib.Path(args.write) if args.write else None
  if args.record:
    records = [json.loads(line) for line in pathlib.Path(args.record).read_text().splitlines()]
  else:
    records = _run("not fullsize", *_TESTS) + (_run("fullsize", "tests/fullsize") if args.fullsize else [])
  fullsize = [row for row in records if row["test"].startswith("tests/fullsize/")]
  small = [row for row in records if row not in fullsize]
  before = path.read_text() if path and path.exists() else ""
  text = _HEAD + _table(small) if small else before.partition(_FULLSIZE)[0].rstrip()
  if fullsize:
    text += "\n\n" + _FULLSIZE_HEAD.format(machine=args.machine) + _fullsize_table(fullsize)
  elif _FULLSIZE in before:
    text += "\n\n" + before[before.index(_FULLSIZE):].rstrip()
  print(text)
  if path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def _run(marks: str, *tests: str) -> list[dict]:
  """Runs tests that compare with PyTorch, compiled as for users; returns their records."""
  with tempfile.TemporaryDirectory() as folder:
    record = pathlib.Path(folder) / "parity.jsonl"
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", marks, *tests],
                          env=os.environ | {"UNILIP_PARITY_RECORD": str(record),
                                            "UNILIP_TEST_OPTIMIZED": "1"}, check=False)
    if done.returncode:
      sys.exit(done.returncode)
    return [json.loads(line) for line in record.read_text().splitlines()]


def _worst(rows: list[dict]) -> dict[tuple[str, str], list[float]]:
  """{(module, reference): errors}."""
  errors: dict[tuple[str, str], list[float]] = {}
  for row in rows:
    errors.setdefault((row["module"], row["reference"]), []).append(row["error"])
  return errors


def _table(rows: list[dict]) -> str:
  lines = ["| module | reference | comparisons | worst relative error |", "|---|---|---|---|"]
  lines += [f"| {module} | {reference} | {len(errors)} | {max(errors):.1e} |"
            for (module, reference), errors in sorted(_worst(rows).items())]
  return "\n".join(lines)


def _fullsize_table(records: list[dict]) -> str:
  lines = ["| network | reference | comparisons | worst relative error | s | GB |",
           "|---|---|---|---|---|---|"]
  for test in dict.fromkeys(row["test"] for row in records):
    *rows, usage = (row for row in records if row["test"] == test)
    cost = f"{usage['seconds']:.0f} | {usage['peak_gb']:.1f}"
    for (module, reference), errors in _worst(rows).items():
      lines.append(f"| {module} | {reference} | {len(errors)} | {max(errors):.1e} | {cost} |")
      cost = " | "
  return "\n".join(lines)


if __name__ == "__main__":
  main()
