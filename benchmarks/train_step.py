"""Measures training steps in JAX and PyTorch, side by side on this machine.

  python -m benchmarks.train_step --stages=stage1,stage2,stage448,gen2               # tiny, one core
  python -m benchmarks.train_step --stages=gen2 --size=1b --dtype=bfloat16 --batch_size=32 \
      --torch=eager,compile,eager+checkpointing,eager+whole --remat=none --remat=dit=full   # one GPU

Same networks (of transformers and diffusers), batch, loss, clipping, AdamW and EMA; random weights. Every
side is a process of its own (step_worker.py). One that runs out of memory or cannot be built gives a row
with the error. On a CPU all run at once and take turns, step by step. On one GPU they run one after
another, each with all of the memory.

MFU is the model's own work (training/flops.py: frozen parts forward only, nothing counted twice) over time
× the best rate of a large matrix multiplication in the run's dtype, of all sides of this run. Writes
benchmarks/results/train_step_<device>.json, or --out.
"""

import argparse
from collections.abc import Callable
import json
import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np

from benchmarks import harness, steps

JAX = "unilip_jax"


class Worker:
  """Runs the process of one side."""

  def __init__(self, spec: dict[str, Any], timeout: float):
    env = dict(os.environ)
    if spec["side"] == "jax":  # alone on its device
      env |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "true", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
    else:  # JAX counts there at most; it must not take the GPU's memory
      env["JAX_PLATFORMS"] = "cpu"
    self._process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.step_worker", json.dumps(spec)], text=True, env=env,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    self._timeout, self.error, self.facts = timeout, None, {}

  def start(self) -> bool:
    """Waits until it is built and warm; returns False and sets `error` if it failed."""
    self.facts = self._read("ready") or {}
    return self.error is None

  def seconds(self, count: int) -> float | None:
    """Measures seconds of one update, over `count`; returns None and sets `error` if it failed."""
    try:
      self._process.stdin.write(f"{count}\n")
      self._process.stdin.flush()
    except BrokenPipeError:
      pass  # `_read` sets the reason
    return self._read("seconds")

  def finish(self) -> None:
    """Ends the process and adds its last message to `facts`."""
    if self.error is None:
      self._process.stdin.close()
      last = self._read("done") or {}
      rate = max((f.get("matmul_flops_per_second", 0) for f in (self.facts, last)), default=0)
      self.facts |= last | {"matmul_flops_per_second": rate}
    if self._process.poll() is None:
      self._process.kill()
    self._process.wait()

  def _read(self, key: str) -> Any:
    timer = threading.Timer(self._timeout, self._process.kill)
    timer.start()
    line = self._process.stdout.readline()
    late = not timer.is_alive()
    timer.cancel()
    if not line:
      code = self._process.wait()
      self.error = f"no answer in {self._timeout:.0f} s" if late else (
          "killed by the system, out of memory?" if code == -9 else f"ended with status {code}")
      return None
    message = json.loads(line)
    self.error = message.get("error")
    return message.get(key)


def sides(args: argparse.Namespace) -> list[tuple[str, str, dict[str, str]]]:
  """Lists (name in the results, side, remat) of all sides."""
  found = []
  for text in args.remat or [""]:
    policies = {} if text in ("", "none") else dict(p.split("=") for p in text.split(","))
    found.append((JAX + (f", remat {text}" if policies else ""), "jax", policies))
  return found + [(f"PyTorch {v}", v, {}) for v in args.torch.split(",") if v]


def measure(stage: str, args: argparse.Namespace, save: Callable[..., None]) -> None:
  """Measures every side of one stage.

  Args:
    stage: of steps.STAGES.
    args: of `parser`.
    save: called with (rows, facts of the stage) when there are new ones: a later side may fail.
  """
  kept = {"dtype": args.dtype, "batch_size": args.batch_size, "cached_latents": args.cached_latents,
          "fields": args.set}
  config = steps.make_config(stage, args.size, **kept)
  base = {"stage": stage, "size": args.size, "threads": args.threads, "pin": args.on_cpu,
          "cpu": args.on_cpu, "warmup": args.warmup, "repeats": args.repeats,
          "clock": "process_time" if args.on_cpu and args.threads == 1 else "perf_counter"}
  counter = Worker(base | {"side": "flops", "config": kept}, args.timeout)
  workers, seconds = {}, {}
  facts = {"batch_size": config.batch_size, "image_size": config.image_size, "dtype": config.dtype}

  def count() -> None:
    counted = counter.start()
    counter.finish()
    if not counted:
      raise SystemExit(f"{stage}: counting FLOPs: {counter.error}")

  def write() -> None:
    if not counter.facts:  # on one GPU it counts while the first side is built
      count()
    save(rows(stage, config, counter.facts["flops"], workers, seconds), facts)

  def begin(name, side, remat) -> bool:
    print(f"{stage}: {name}: building", file=sys.stderr, flush=True)
    worker = Worker(base | {"side": side, "config": kept | {"remat": remat}}, args.timeout)
    workers[name], seconds[name] = worker, []
    return worker.start()

  def turn(name) -> None:
    if workers[name].error is None:
      took = workers[name].seconds(args.steps)
      if took is not None:
        seconds[name].append(took)

  everyone = sides(args)
  if args.on_cpu:  # together, taking turns
    count()
    for one in everyone:
      begin(*one)
    for _ in range(args.repeats):
      for name in workers:
        turn(name)
    for worker in workers.values():
      worker.finish()
    write()
  else:
    for one in everyone:
      if begin(*one):
        for _ in range(args.repeats):
          turn(one[0])
      workers[one[0]].finish()
      write()


def rows(stage, config, flops: float, workers: dict[str, Worker], seconds) -> list[dict[str, Any]]:
  """Returns a rate with MFU and memory per side, and the first side over each other one."""
  rate = max((w.facts.get("matmul_flops_per_second", 0) for w in workers.values()), default=0)
  found = []
  for name, worker in workers.items():
    label = f"{stage}, {name}"
    if worker.error or not seconds[name]:
      found.append(harness.failed(label, "images/s", worker.error or "no update was made"))
      continue
    one = harness.row(label, [config.batch_size / s for s in seconds[name]], "images/s", True)
    median = float(np.median(seconds[name]))
    found.append(one | {"stage": stage, "side": name, "seconds": median, "model_flops": flops,
                        "mfu": flops / median / rate, "measured_flops_per_second": rate} | worker.facts)
  first = next(iter(workers))
  if seconds[first]:
    for name, values in seconds.items():
      if name != first and len(values) == len(seconds[first]):
        found.append(harness.row(
            f"{stage}, {first} / {name}", np.array(values) / np.array(seconds[first]), "×", True))
  return found


def device_label(found: list[dict[str, Any]]) -> str:
  """Returns the device that the sides reported, as a part of a file name."""
  names = [r["device"] for r in found if "device" in r]
  return names[0].replace(" ", "_").lower() if names else "unknown"


def parser() -> argparse.ArgumentParser:
  """Makes the parser of the command line."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--stages", default="stage1,stage2,stage448,gen2",
                      help=f"comma-separated, of {', '.join(steps.STAGES)}")
  parser.add_argument("--size", default="tiny")
  parser.add_argument("--dtype", default="", help="float32 | bfloat16; the config's if not given")
  parser.add_argument("--batch_size", type=int, default=0, help="the config's if not given")
  parser.add_argument("--torch", default="eager",
                      help="comma-separated: eager or compile, then any of +checkpointing, +channels_last, "
                      "+whole (the LLM's pass differentiated in one piece, as officially)")
  parser.add_argument("--remat", action="append",
                      help="of JAX, e.g. dit=full,llm=full; each is a side; none is the config's")
  parser.add_argument("--cached_latents", action="store_true",
                      help="gen2's target latents come with the batch")
  parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="of the config")
  parser.add_argument("--repeats", type=int, default=9)
  parser.add_argument("--steps", type=int, default=0, help="updates of one repeat; 1 on a CPU, else 5")
  parser.add_argument("--warmup", type=int, default=2)
  parser.add_argument("--threads", type=int, default=1,
                      help="cores that each side may use, on a CPU; with one, CPU time counts")
  parser.add_argument("--on_cpu", action="store_true", default=None, help="even if there is a GPU")
  parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for building, and for a turn")
  parser.add_argument("--out", default="", help="the result's file")
  return parser


def main() -> None:
  args = parser().parse_args()
  if args.on_cpu is None:
    args.on_cpu = not os.path.exists("/dev/nvidiactl")
  if args.on_cpu:
    os.environ["JAX_PLATFORMS"] = "cpu"
  args.steps = args.steps or (1 if args.on_cpu else 5)
  done, stages = [], {}

  def save(stage, rows, facts) -> None:
    stages[stage] = facts
    path = args.out or f"benchmarks/results/train_step_{device_label(done + rows)}.json"
    harness.write(path, "train_step", vars(args) | {"stages": stages}, done + rows)

  for stage in args.stages.split(","):
    latest: list[dict[str, Any]] = []

    def keep(rows, facts, stage=stage, latest=latest) -> None:
      latest[:] = rows
      save(stage, rows, facts)

    measure(stage, args, keep)
    done += latest


if __name__ == "__main__":
  main()
