"""Runs all benchmarks for one GPU with 80 GB, the most telling first, within a time limit.

  python -m benchmarks.gpu --budget=540 --out=results_gpu [--only=gen2] [--dry_run]

First training steps of 1b in bfloat16 (gen2, stage 448) and samples (20 steps, 4 steps) next to PyTorch,
which take the first 540 seconds, then the rest, each by its own module and process. Results are written at
once, here and into --out. A command that runs too long is ended and reported; what it had measured stays.
The same call again continues: commands that are done are left out, and the others find the programs that
were compiled in OUT/cache. benchmarks/README.md lists what the machine needs.
"""

import argparse
from collections.abc import Mapping, Sequence
import importlib.util
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
_DONE = "done"
_TAIL = 4000  # characters of a command's output that are kept


class Entry(NamedTuple):
  """Holds a name, a module of benchmarks with its arguments, and a limit in seconds."""

  name: str
  arguments: str
  seconds: float

  def command(self, size: str, dtype: str, out: pathlib.Path) -> list[str]:
    """Returns the arguments of Python; sizes and folders are filled in."""
    module, *rest = self.arguments.split()
    return ["-m", f"benchmarks.{module}", *(
        part.format(size=size, dtype=dtype, results=out) for part in rest)]


_STEP = "train_step --size={size} --dtype={dtype} --repeats=5 --warmup=2"
_GEN2 = f"{_STEP} --stages=gen2 --batch_size=32 --set=data.part_multiple=8"  # 24 + 8 of 32
_INFER = "--size={size} --dtype={dtype} --repeats=7"
ENTRIES = (
    Entry("gen2", f"{_GEN2} --torch=eager,compile --out={{results}}/gen2.json", 230),
    Entry("stage448",
          f"{_STEP} --stages=stage448 --batch_size=8 --torch=eager --out={{results}}/stage448.json", 150),
    Entry("sample 20 steps", f"sample {_INFER} --batch_sizes=1,16", 100),
    Entry("sample 4 steps",
          f"sample {_INFER} --batch_sizes=1,16 --steps=4 --guidance=1 --suffix=_4_steps", 60),
    Entry("attention", "attention", 120),
    Entry("convolutions", "convolutions --size={size} --dtype={dtype} --batch_size=8", 90),
    Entry("upsampling", "upsampling", 120),
    Entry("stage448 compiled", f"{_STEP} --stages=stage448 --batch_size=8 --torch=compile "
          "--out={results}/stage448_compiled.json", 300),
    Entry("sample compiled", f"sample {_INFER} --batch_sizes=1,16 --compile --suffix=_compiled", 300),
    Entry("stage448 with 32 images",
          f"{_STEP} --stages=stage448 --batch_size=32 --remat=none --remat=decoder=full "
          "--torch=eager,eager+checkpointing --out={results}/stage448_32.json", 400),
    Entry("gen2 in other forms", f"{_GEN2} --remat=dit=full,llm=full "
          "--torch=eager+checkpointing,eager+whole --out={results}/gen2_forms.json", 300),
    Entry("cached latents",
          f"{_GEN2} --cached_latents --torch=eager,compile --out={{results}}/gen2_cached.json", 300),
    Entry("stage448 with loss networks in bfloat16",
          f"{_STEP} --stages=stage448 --batch_size=8 --set=loss.perceptual_dtype=bfloat16 "
          "--set=loss.teacher_dtype=bfloat16 --torch=eager --out={results}/stage448_bf16.json", 240),
    Entry("stages at 224 px", f"{_STEP} --stages=stage1,stage2,stage2_gan --batch_size=32 "
          "--torch=eager,compile --out={results}/stages224.json", 540),
    Entry("chat", f"chat {_INFER} --compile", 240),
    Entry("tokenizer", f"tokenizer {_INFER} --compile", 240),
    Entry("gen2 at 3b", f"{_GEN2} --size=3b --remat=dit=full,llm=full --torch=eager+checkpointing "
          "--out={results}/gen2_3b.json", 300),
)


def environment(cache: pathlib.Path) -> dict[str, str]:
  """Returns the environment of the commands: compiled programs of both frameworks are kept in `cache`."""
  return os.environ | {
      # Where both frameworks share a process, JAX must leave memory to PyTorch.
      "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
      "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
      "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
      "TRITON_CACHE_DIR": str(cache / "triton")}


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
    outcome = _DONE if process.returncode == 0 else f"status {process.returncode}"
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    outcome = f"ended after {limit:.0f} s"
  print(output[-_TAIL:], flush=True)
  return {"seconds": time.monotonic() - begin, "outcome": outcome, "output": output[-_TAIL:]}


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--budget", type=float, default=540.0, help="seconds for all")
  parser.add_argument("--out", default="results_gpu", help="folder for all that is measured")
  parser.add_argument("--only", default="", help="parts of names, comma-separated")
  parser.add_argument("--size", default="1b")
  parser.add_argument("--dtype", default="bfloat16")
  parser.add_argument("--again", action="store_true", help="also what an earlier call has done")
  parser.add_argument("--dry_run", action="store_true", help="print the commands")
  args = parser.parse_args()
  out = pathlib.Path(args.out).resolve()
  wanted = [part for part in args.only.split(",") if part]
  commands = [(entry.name, [sys.executable, *entry.command(args.size, args.dtype, out)], entry.seconds)
              for entry in ENTRIES if not wanted or any(part in entry.name for part in wanted)]
  if args.dry_run:
    for name, argv, seconds in commands:
      print(f"# {name}, at most {seconds:.0f} s\n{shlex.join(argv)}")
    return
  if importlib.util.find_spec("diffusers") is None:
    raise SystemExit("PyTorch's networks are those of diffusers, which is not installed: "
                     "benchmarks/README.md, \"On one GPU\"")
  out.mkdir(parents=True, exist_ok=True)
  started, runs = time.time(), out / "runs.json"
  earlier = json.loads(runs.read_text()) if runs.exists() and not args.again else []
  earlier = [one for one in earlier if one["outcome"] == _DONE]
  done = {one["command"] for one in earlier}

  def save(outcomes: list[dict[str, Any]]) -> None:
    runs.write_text(json.dumps(earlier + outcomes, indent=1) + "\n")
    for path in _RESULTS.glob("*.json"):  # of modules without --out
      if path.stat().st_mtime > started:
        shutil.copy(path, out / path.name)

  run_all([one for one in commands if shlex.join(one[1]) not in done], args.budget, save,
          environment(out / "cache"))


if __name__ == "__main__":
  main()
