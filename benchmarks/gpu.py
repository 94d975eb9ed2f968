"""Runs all benchmarks for one GPU with 80 GB, in order of interest, within a time limit.

  python -m benchmarks.gpu --budget=1500 --out=results_gpu [--only=gen2] [--dry_run]

Training steps of 1b in bfloat16 (gen2, stage 448, gen2 with cached latents), sampling, then the rest, each
by its own module and process. Results are written at once, here and into --out. A command that runs
too long is ended and reported. benchmarks/README.md lists what the machine needs.
"""

import argparse
from collections.abc import Mapping, Sequence
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

_RESULTS = pathlib.Path(__file__).resolve().parent / "results"
_TAIL = 4000  # characters of a command's output that are kept


class Entry(NamedTuple):
  """Holds a name, a module of benchmarks with its arguments, and a limit in seconds."""

  name: str
  arguments: str
  seconds: float


_STEP = "train_step --size=1b --dtype=bfloat16 --repeats=5 --warmup=2"
_MIX = "--set=data.part_multiple=8"  # 24 + 8 of 32
_INFER = "--size=1b --dtype=bfloat16 --compile --repeats=7"
ENTRIES = (
    Entry("gen2", f"{_STEP} --stages=gen2 --batch_size=32 {_MIX} --remat=none --remat=dit=full,llm=full "
          "--torch=eager,compile,eager+checkpointing,eager+whole --out={results}/gen2_1b.json", 540),
    Entry("stage448", f"{_STEP} --stages=stage448 --batch_size=32 --remat=none --remat=decoder=full "
          "--torch=eager,compile,eager+checkpointing --out={results}/stage448_1b.json", 540),
    Entry("cached latents", f"{_STEP} --stages=gen2 --batch_size=32 {_MIX} --cached_latents "
          "--torch=eager,compile --out={results}/gen2_cached_1b.json", 300),
    Entry("upsampling", "upsampling", 120),
    Entry("attention", "attention", 120),
    Entry("sampling", f"sample {_INFER} --batch_sizes=1,16", 300),
    Entry("stage448, small batch", f"{_STEP} --stages=stage448 --batch_size=8 --torch=eager,compile "
          "--out={results}/stage448_b8_1b.json", 300),
    Entry("stage448, loss networks in bfloat16",
          f"{_STEP} --stages=stage448 --batch_size=8 --set=loss.perceptual_dtype=bfloat16 "
          "--set=loss.teacher_dtype=bfloat16 --torch=eager --out={results}/stage448_bf16_1b.json", 240),
    Entry("stages at 224 px", f"{_STEP} --stages=stage1,stage2,stage2_gan --batch_size=32 "
          "--torch=eager,compile --out={results}/stages224_1b.json", 540),
    Entry("chat", f"chat {_INFER}", 240),
    Entry("tokenizer", f"tokenizer {_INFER}", 240),
    Entry("gen2 at 3b", f"{_STEP} --size=3b --stages=gen2 --batch_size=32 {_MIX} "
          "--remat=dit=full,llm=full --torch=eager+checkpointing --out={results}/gen2_3b.json", 300),
)


def run_all(
    commands: Sequence[tuple[str, Sequence[str], float]], budget: float, save,
    env: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
  """Runs commands one after another.

  Args:
    commands: (name, argv, most seconds).
    budget: seconds for all.
    save: called with the list of outcomes after each.
    env: of the commands; None keeps this process's.

  Returns:
    [{"name", "command", "seconds", "outcome", "output"}].
  """
  end, outcomes = time.monotonic() + budget, []
  for name, argv, limit in commands:
    left = min(limit, end - time.monotonic())
    one = {"name": name, "command": shlex.join(argv)}
    if left <= 0:
      outcomes.append(one | {"outcome": "no time was left"})
    else:
      print(f"--- {name}: {one['command']}", flush=True)
      outcomes.append(one | _run(argv, left, env))
    save(outcomes)
  return outcomes


def _run(argv: Sequence[str], limit: float, env) -> dict[str, Any]:
  begin = time.monotonic()
  process = subprocess.Popen(  # a group of its own: its sides end with it
      argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=env,
      start_new_session=True)
  try:
    output, _ = process.communicate(timeout=limit)
    outcome = "done" if process.returncode == 0 else f"status {process.returncode}"
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    outcome = f"ended after {limit:.0f} s"
  print(output[-_TAIL:], flush=True)
  return {"seconds": time.monotonic() - begin, "outcome": outcome, "output": output[-_TAIL:]}


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--budget", type=float, default=1500.0, help="seconds for all")
  parser.add_argument("--out", default="results_gpu", help="folder for all that is measured")
  parser.add_argument("--only", default="", help="parts of names, comma-separated")
  parser.add_argument("--dry_run", action="store_true", help="print the commands")
  args = parser.parse_args()
  out = pathlib.Path(args.out).resolve()
  wanted = [part for part in args.only.split(",") if part]
  commands = []
  for entry in ENTRIES:
    if not wanted or any(part in entry.name for part in wanted):
      module, *rest = entry.arguments.replace("{results}", str(out)).split()
      commands.append((entry.name, [sys.executable, "-m", f"benchmarks.{module}", *rest], entry.seconds))
  if args.dry_run:
    for name, argv, seconds in commands:
      print(f"# {name}, at most {seconds:.0f} s\n{shlex.join(argv)}")
    return
  out.mkdir(parents=True, exist_ok=True)
  started = time.time()

  def save(outcomes: list[dict[str, Any]]) -> None:
    (out / "runs.json").write_text(json.dumps(outcomes, indent=1) + "\n")
    for path in _RESULTS.glob("*.json"):  # of modules without --out
      if path.stat().st_mtime > started:
        shutil.copy(path, out / path.name)

  # Where both frameworks share a process, JAX must leave memory to PyTorch.
  run_all(commands, args.budget, save, os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})


if __name__ == "__main__":
  main()
