"""Compiles the train step for TPUs that are not here, in a child process.

Code generation takes nine tenths of the time of a compilation and changes neither the schedule, nor the
collectives, nor the memory. The compiler writes these to files before it (xla_dump_to), so that the child
is ended then, unless the compiler's cycle estimates are asked for.
"""

from collections.abc import Mapping
import dataclasses
import multiprocessing
import pathlib
import tempfile
import time
import traceback
from typing import Any

import jax

from unilip_jax import tasks
from unilip_jax.common import child
from unilip_jax.data import batch as batch_lib
from unilip_jax.ops import backend
from unilip_jax.plan import memory, topology
from unilip_jax.training import flops, initial_state
from unilip_jax.training import step as step_lib

_SCHEDULED = "*.after_optimizations.txt"
_GENERATED = "*.after_codegen.txt"
_BUFFERS = "*.after_optimizations-buffer-assignment.txt"
_POLL_SECONDS = 1.0
# libtpu runs without a TPU; the cache would keep what is compiled for other devices.
_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "0", "XLA_FLAGS": "",
                "TF_CPP_MIN_LOG_LEVEL": "3"}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """Result of a compilation.

  Attributes:
    text: the scheduled program, with cycle estimates after code generation; "" where it does not fit.
    buffers: the compiler's buffer assignment; "" where it does not fit.
    refusal: {"needed", "available"} bytes where the program does not fit, else None.
    traced: counts before compiling: {"mesh", "state_bytes", "batch_bytes", "hardware_flops", "seconds"},
      bytes per device, FLOPs of all devices, CPU seconds of tracing.
    seconds: duration.
  """

  text: str
  buffers: str
  refusal: Mapping[str, float] | None
  traced: Mapping[str, Any]
  seconds: float


class CompileError(RuntimeError):
  """The compiler failed for another reason than memory."""


def compile_step(
    config: Any, where: topology.Topology, *, codegen: bool, timeout: float) -> Compiled:
  """Traces and compiles the train step of `config`.

  Args:
    config: of a run; its mesh and batch are used as they are.
    where: a TPU topology.
    codegen: go on to machine code; the text then holds the compiler's cycle estimates.
    timeout: seconds for all of it.

  Raises:
    ValueError: for a config that cannot run there, with what to change.
    CompileError: if the compiler fails or takes longer than `timeout`.
  """
  begin = time.monotonic()
  context = multiprocessing.get_context("spawn")
  receiving, sending = context.Pipe(duplex=False)
  with tempfile.TemporaryDirectory(prefix="plan_") as folder:
    dump = pathlib.Path(folder)
    process = context.Process(target=_child, args=(config, where, folder, sending), daemon=True)
    with child.environment(_ENVIRONMENT):
      process.start()
    sending.close()
    try:
      traced, kind, message = _follow(process, receiving, dump, codegen, begin + timeout)
    finally:
      process.kill()  # libtpu answers gentler signals with a report of a crash
      process.join()
    if kind == "user error":
      raise ValueError(message)
    refusal = memory.too_large(message)
    if kind == "failed" and refusal is None:
      raise CompileError(f"plan: the compiler failed for {where.name}:\n{message}")
    text, buffers = ("", "") if refusal else (
        _read(dump, _GENERATED if codegen else _SCHEDULED), _read(dump, _BUFFERS))
  return Compiled(text, buffers, refusal, traced, time.monotonic() - begin)


def _follow(process, receiving, dump, codegen, deadline) -> tuple[dict[str, Any], str, str]:
  """Waits for the child, or for its files: (counts of the trace, kind of the end, message)."""
  traced: dict[str, Any] = {}
  size = -1
  while True:
    if receiving.poll(_POLL_SECONDS):
      try:
        kind, value = receiving.recv()
      except EOFError:
        process.join(10)
        raise CompileError(
            f"plan: the compiling process ended with status {process.exitcode}; a negative one is a "
            "signal's number, -9 mostly means that the machine's memory was not enough") from None
      if kind != "traced":
        return traced, kind, value
      traced = value
    elif traced and not codegen:
      files = [*dump.glob(_SCHEDULED), *dump.glob(_BUFFERS)]
      now = sum(f.stat().st_size for f in files)
      if len(files) == 2 and now == size:  # both written, and not growing any more
        return traced, "scheduled", ""
      size = now if len(files) == 2 else -1
    if time.monotonic() > deadline:
      raise CompileError("plan: compiling took longer than --plan_timeout")


def _read(dump: pathlib.Path, pattern: str) -> str:
  files = sorted(dump.glob(pattern))
  if len(files) != 1:
    raise CompileError(f"plan: the compiler wrote {len(files)} files {pattern}, not one; its options "
                       "or names have changed")
  return files[0].read_text()


# ---- in the child


def _child(config: Any, where: topology.Topology, folder: str, sending: Any) -> None:
  """Sends ("traced", counts), then ("compiled" | "user error" | "failed", message)."""
  child.end_with_parent()
  try:
    jax.config.update("jax_default_matmul_precision", config.float32_matmul_precision)
    with backend.planning("tpu", where.chip.device_kind):
      step, counts = _trace(config, where)
      sending.send(("traced", counts))
      step_lib.compile_lowered(
          step.lower(), config.compiler_options, xla_dump_to=folder, xla_dump_hlo_as_text=True)
    sending.send(("compiled", ""))
  except ValueError as error:
    sending.send(("user error", str(error)))
  except Exception:  # the parent raises it
    sending.send(("failed", traceback.format_exc()))


def _trace(config: Any, where: topology.Topology) -> tuple[Any, dict[str, Any]]:
  """Returns (the traced step, counts of its trace)."""
  mesh = topology.mesh(where, config)
  batch_lib.check_divides(config, mesh)
  task = tasks.make(config)
  begin = time.process_time()
  step = step_lib.trace_step(task, config, mesh)
  return step, {
      "seconds": time.process_time() - begin,
      "mesh": dict(mesh.shape),
      "state_bytes": memory.state_bytes(initial_state.abstract_state(task, config, mesh)),
      "batch_bytes": memory.batch_bytes(task.batch_spec(config.batch_size), mesh.size),
      "hardware_flops": flops.count_jaxpr(step.jaxpr)}
