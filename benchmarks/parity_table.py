"""The table of parity: module, twin, worst relative error, from the tests that compare with PyTorch.

  python -m benchmarks.parity_table [--write=docs/parity.md]

Runs those tests (the recordings of the official code must be at hand, see tests/conftest.py) and
collects what `tests.parity.assert_parity` saw.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

_TESTS = ("tests/models", "tests/losses", "tests/ops", "tests/evals", "tests/sampling", "tests/infer",
          "tests/tasks/generate_test.py", "tests/schedules_test.py", "tests/optimizer_test.py")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--write", default="", help="Markdown file for the table")
  parser.add_argument("--record", default="", help="what an earlier run of the tests recorded")
  args = parser.parse_args()
  table = _table(_rows(args.record) if args.record else _run_tests())
  print(table)
  if args.write:
    path = pathlib.Path(args.write)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "# Parity with PyTorch\n\nfloat32, max |ours − twin| / max |twin|. Made by "
        f"`python -m benchmarks.parity_table --write={args.write}`.\n\n{table}\n")


def _run_tests() -> list[dict]:
  """Runs the tests that compare with PyTorch, in the environment of a tester."""
  with tempfile.TemporaryDirectory() as folder:
    record = pathlib.Path(folder) / "parity.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not fullsize", *_TESTS],
        env=os.environ | {"UNILIP_PARITY_RECORD": str(record)}, check=False)
    if done.returncode:
      sys.exit(done.returncode)
    return _rows(record)


def _rows(record: str | pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in pathlib.Path(record).read_text().splitlines()]


def _table(rows: list[dict]) -> str:
  worst: dict[tuple[str, str], list[float]] = {}
  for row in rows:
    worst.setdefault((row["module"], row["twin"]), []).append(row["error"])
  lines = ["| module | twin | comparisons | worst relative error |", "|---|---|---|---|"]
  lines += [f"| {module} | {twin} | {len(errors)} | {max(errors):.1e} |"
            for (module, twin), errors in sorted(worst.items())]
  return "\n".join(lines)


if __name__ == "__main__":
  main()
