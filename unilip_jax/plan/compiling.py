"""Compiles the train step for TPUs that nobody here owns, in a process of its own.

Code generation takes nine tenths of a compilation's time and changes neither the schedule, nor the
collectives, nor the memory: the compiler writes these out before (xla_dump_to), and unless its cycle
estimates are asked for, the process is then ended.
"""

from collections.abc import Mapping
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import tempfile
import time
import traceback
from typing import Any

from unilip_jax.plan import memory, topology
from unilip_jax.training import step as step_lib

_TEXT = "*.after_optimizations.txt"
_GENERATED = "*.after_codegen.txt"
_BUFFERS = "*.after_optimizations-buffer-assignment.txt"
_POLL_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What came of it.

  Attributes:
    text: the scheduled program; "" where it does not fit.
    buffers: the compiler's buffer assignment.
    refusal: {"needed", "available"} bytes where the program does not fit.
    traced: what was counted before compiling, see `_trace`.
    stats: compiled.memory_analysis() in bytes, with code generation only.
    seconds: it took.
  """

  text: str
  buffers: str
  refusal: Mapping[str, float] | None
  traced: Mapping[str, Any]
  stats: Mapping[str, int] | None
  seconds: float


class CompileError(RuntimeError):
  """The compiler failed for another reason than memory."""


def compile_step(
    config: Any, where: topology.Topology, *, codegen: bool, timeout: float) -> Compiled:
  """Traces and compiles.

  Args:
    config: of a run; its mesh and batch are taken as they are.
    where: a TPU topology.
    codegen: go on to machine code, whose estimates of cycles are then in the text.
    timeout: seconds after which to give up.

  Raises:
    ValueError: for a config that cannot run there, with what to change.
    CompileError: if the compiler fails, or takes longer than `timeout`.
  """
  begin = time.monotonic()
  context = multiprocessing.get_context("spawn")
  receiving, sending = context.Pipe(duplex=False)
  with tempfile.TemporaryDirectory(prefix="plan_") as folder:
    dump = pathlib.Path(folder)
    process = context.Process(target=_child, args=(config, where, folder, sending), daemon=True)
    with _environment(JAX_PLATFORMS="cpu", JAX_ENABLE_COMPILATION_CACHE="0", XLA_FLAGS="",
                      TF_CPP_MIN_LOG_LEVEL="3"):
      process.start()
    sending.close()
    try:
      traced, ended = _follow(process, receiving, dump, codegen, begin + timeout)
    finally:
      process.kill()  # libtpu answers gentler signals with a report of a crash
      process.join()
    refusal = stats = None
    if ended is not None:
      kind, value = ended
      if kind == "compiled":
        stats = value
      elif kind == "user error":
        raise ValueError(value)
      else:
        refusal = memory.too_large(value)
        if refusal is None:
          raise CompileError(f"plan: the compiler failed for {where.name}:\n{value}")
    text = "" if refusal else _read(dump, _GENERATED if stats else _TEXT)
    buffers = "" if refusal else _read(dump, _BUFFERS)
  return Compiled(text, buffers, refusal, traced, stats, time.monotonic() - begin)


def _follow(process, receiving, dump, codegen, deadline) -> tuple[dict[str, Any], Any]:
  """Waits for the child: (what it traced, its last word or None where the dump was enough)."""
  traced: dict[str, Any] = {}
  size = -1
  while True:
    if receiving.poll(_POLL_SECONDS):
      try:
        kind, value = receiving.recv()
      except EOFError:
        process.join(10)
        raise CompileError(
            f"plan: the compiling process ended with status {process.exitcode}; a negative one names "
            "the signal, -9 mostly means that the machine's memory was not enough") from None
      if kind != "traced":
        return traced, (kind, value)
      traced = value
    elif not codegen and traced:
      files = [*dump.glob(_TEXT), *dump.glob(_BUFFERS)]
      now = sum(f.stat().st_size for f in files)
      if len(files) == 2 and now == size:  # both written, and not growing any more
        return traced, None
      size = now if len(files) == 2 else -1
    if time.monotonic() > deadline:
      raise CompileError("plan: compiling took longer than the time given to it (--plan_timeout)")


def _read(dump: pathlib.Path, pattern: str) -> str:
  files = sorted(dump.glob(pattern))
  if len(files) != 1:
    raise CompileError(f"plan: the compiler wrote {len(files)} files {pattern}, not one; its options "
                       "or names have changed")
  return files[0].read_text()


class _environment:
  """Environment variables for a child that is started inside."""

  def __init__(self, **values: str):
    self._values = values

  def __enter__(self) -> None:
    self._before = {k: os.environ.get(k) for k in self._values}
    os.environ.update(self._values)

  def __exit__(self, *_: Any) -> None:
    for key, value in self._before.items():
      if value is None:
        del os.environ[key]
      else:
        os.environ[key] = value


# ---- in the child


def _child(config: Any, where: topology.Topology, folder: str, sending: Any) -> None:
  try:
    import jax
    jax.config.update("jax_default_matmul_precision", config.float32_matmul_precision)
    from unilip_jax.ops import backend
    with backend.planning("tpu", where.chip.device_kind):
      step, counted = _trace(config, where)
      sending.send(("traced", counted))
      compiled = step_lib.compile_traced(
          step, config.compiler_options, xla_dump_to=folder, xla_dump_hlo_as_text=True)
    found = compiled.memory_analysis()
    sending.send(("compiled", {
        name: int(getattr(found, f"{name}_size_in_bytes"))
        for name in ("argument", "output", "alias", "temp", "generated_code")}))
  except ValueError as error:
    sending.send(("user error", str(error)))
  except Exception:  # sent to the parent, which raises it
    sending.send(("failed", traceback.format_exc()))


def _trace(config: Any, where: topology.Topology) -> tuple[Any, dict[str, Any]]:
  """(the traced step, counts over its trace: state and batch bytes per device, FLOPs of all devices)."""
  import jax

  from unilip_jax import tasks
  from unilip_jax.data import batch as batch_lib
  from unilip_jax.training import flops, initial_state

  mesh = topology.mesh(where, config)
  batch_lib.check_divides(config, mesh)
  task = tasks.make(config)
  step = step_lib.trace_step(task, config, mesh)
  abstract = initial_state.abstract_state(task, config, mesh)
  batch = task.batch_spec(config.batch_size)
  leaves = jax.tree.leaves(batch)
  return step, {
      "mesh": dict(mesh.shape),
      "state_bytes": memory.state_bytes(abstract),
      "batch_bytes": sum(x.size * x.dtype.itemsize for x in leaves) // mesh.size,
      "hardware_flops": flops.count_jaxpr(step.jaxpr),
      "saved_bytes_estimate": memory.traced_saved_bytes(step.jaxpr, len(leaves)) // mesh.size}
