"""Runs one side of benchmarks.train_step in its own process, which takes commands: sides take turns.

  python -m benchmarks.step_worker '{"stage": "gen2", "side": "jax", ...}'

Writes JSON lines: first {"ready": facts}, then {"seconds": s} of one update for each line with the number
of updates to make, at last {"done": facts}. A side that runs out of memory or cannot be built writes
{"error": reason}. Standard output holds nothing but answers.
"""

from collections.abc import Callable
import json
import os
import resource
import sys
import time
from typing import Any, NamedTuple

import numpy as np

from benchmarks import harness, steps
from unilip_jax.models import presets

_CACHE_HIT = "/jax/compilation_cache/cache_hits"  # JAX's name of the event
_CPU_SIDE, _GPU_SIDE = 1024, 8192  # of the matrices whose multiplication measures the machine


class Side(NamedTuple):
  """Holds the step of one framework.

  Attributes:
    run: (number of updates) -> the last loss; returns when they are done.
    rate: FLOP/s of a large matrix multiplication in the run's dtype, measured now.
    facts: of the device and the compiled program.
    peak: bytes of device memory at the peak so far, None where the device does not report it.
  """

  run: Callable[[int], float]
  rate: Callable[[], float]
  facts: dict[str, Any]
  peak: Callable[[], int | None]


def _clock(spec: dict[str, Any]) -> Callable[[], float]:
  return time.process_time if spec["clock"] == "process_time" else time.perf_counter


def _measured_rate(multiply: Callable[[int], None], side: int, spec: dict[str, Any]) -> float:
  """Returns FLOP/s of the best round; multiply(n) returns when n multiplications are done."""
  multiply(1)
  clock, times = _clock(spec), []
  for _ in range(spec["repeats"]):
    begin = clock()
    multiply(4)
    times.append(clock() - begin)
  return 4 * 2.0 * side**3 / min(times)


def jax_side(config: Any, spec: dict[str, Any]) -> Side:
  """Makes this package's step, compiled ahead of time."""
  import jax
  import jax.numpy as jnp

  from unilip_jax import tasks
  from unilip_jax.sharding import mesh as mesh_lib
  jax.config.update("jax_default_matmul_precision", config.float32_matmul_precision)
  task = tasks.make(config)
  # Random weights are made once, with a generator and options that compile quickly.
  key = jax.random.key(0, impl="unsafe_rbg")
  make = jax.jit(lambda key: task.make_state(task.init_modules(key), jnp.uint32(0)),
                 compiler_options={"xla_backend_optimization_level": 0})
  shapes = jax.eval_shape(make, key)
  batch = steps.make_batch(config, presets.get(config.size))
  begin, cache_hits = time.perf_counter(), []
  jax.monitoring.register_event_listener(
      lambda event, **_: cache_hits.append(event) if event == _CACHE_HIT else None)
  step = jax.jit(task.train_step, donate_argnums=0).lower(shapes, batch).compile()
  compiled = time.perf_counter() - begin
  cached = bool(cache_hits)
  stats = step.memory_analysis()
  box = [make(key)]
  batch = jax.device_put(batch, mesh_lib.batch_sharding(mesh_lib.make_mesh(devices=jax.devices()[:1])))

  def run(count: int) -> float:
    for _ in range(count):
      box[0], metrics = step(box[0], batch)
    jax.block_until_ready(box[0])
    return float(metrics["loss"])

  device = jax.devices()[0]
  side = _CPU_SIDE if device.platform == "cpu" else _GPU_SIDE
  x = jax.random.normal(jax.random.key(1), (side, side), jnp.dtype(config.dtype))
  matmul = jax.jit(jnp.matmul)

  def multiply(count: int) -> None:
    for _ in range(count):
      y = matmul(x, x)
    y.block_until_ready()

  def peak() -> int | None:
    found = device.memory_stats()
    return found["peak_bytes_in_use"] if found and device.platform != "cpu" else None

  facts = {
      "device": device.device_kind, "compile_seconds": compiled,
      "compiled_before": cached,  # read from JAX's cache
      "memory_analysis_bytes": (stats.argument_size_in_bytes + stats.output_size_in_bytes
                                - stats.alias_size_in_bytes + stats.temp_size_in_bytes)}
  return Side(run, lambda: _measured_rate(multiply, side, spec), facts, peak)


def torch_side(config: Any, spec: dict[str, Any]) -> Side:
  """Makes the step of PyTorch."""
  import torch

  from benchmarks import torch_steps, torch_training
  torch.set_num_threads(spec["threads"])
  cuda = torch.cuda.is_available() and not spec["cpu"]
  device = torch.device("cuda" if cuda else "cpu")
  exact = config.float32_matmul_precision == "float32"
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not exact
  torch.backends.cudnn.benchmark = True
  preset, variant = presets.get(config.size), torch_training.Variant.parse(spec["side"])
  if config.task == "generate":
    step = torch_steps.Generate(preset, config, variant, steps.image_slot(config), str(device))
  else:
    step = torch_steps.Reconstruct(preset, config, variant, str(device))
  batch = step.to_device(steps.make_batch(config, preset))
  wait = torch.cuda.synchronize if cuda else lambda: None

  def run(count: int) -> float:
    for _ in range(count):
      metrics = step(batch)
    wait()
    return float(metrics["loss"])

  side = _GPU_SIDE if cuda else _CPU_SIDE
  x = torch.randn(side, side, device=device, dtype=getattr(torch, config.dtype))

  def multiply(count: int) -> None:
    for _ in range(count):
      x @ x
    wait()

  facts = {"device": torch.cuda.get_device_name() if cuda else "cpu"}
  return Side(run, lambda: _measured_rate(multiply, side, spec), facts,
              lambda: torch.cuda.max_memory_allocated() if cuda else None)


def count_flops(config: Any) -> dict[str, Any]:
  """Returns {"flops"} of one update."""
  return {"flops": steps.model_flops(config)}


def serve(spec: dict[str, Any], commands, answer: Callable[[dict[str, Any]], None]) -> None:
  """Builds a side and answers until `commands` end."""
  config = steps.make_config(spec["stage"], spec["size"], **spec["config"])
  if spec["side"] == "flops":
    answer({"ready": count_flops(config)})
    return
  side = (jax_side if spec["side"] == "jax" else torch_side)(config, spec)
  clock = _clock(spec)
  begin = time.perf_counter()
  side.run(1)
  first = time.perf_counter() - begin  # includes compilation
  for _ in range(spec["warmup"]):
    side.run(1)
  answer({"ready": side.facts | {"first_step_seconds": first, "matmul_flops_per_second": side.rate()}})
  for line in commands:
    count = int(line)
    begin = clock()
    loss = side.run(count)
    seconds = (clock() - begin) / count
    if not np.isfinite(loss):
      raise ValueError(f"the loss is {loss}")
    answer({"seconds": seconds})
  answer({"done": {
      "matmul_flops_per_second": side.rate(), "peak_device_bytes": side.peak(),
      "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "loss": loss}})


def main() -> None:
  spec = json.loads(sys.argv[1])
  if spec["pin"]:
    harness.pin(spec["threads"])
  out = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what libraries print goes to standard error

  def answer(message: dict[str, Any]) -> None:
    print(json.dumps(message), file=out, flush=True)

  try:
    serve(spec, sys.stdin, answer)
  except Exception as error:
    reason = harness.out_of_memory(error) or f"{type(error).__name__}: {str(error)[:400]}"
    answer({"error": reason})
    raise


if __name__ == "__main__":
  main()
