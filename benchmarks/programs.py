"""Estimates the time of functions on a TPU chip that is not here, or times them on this machine."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from benchmarks import harness
from unilip_jax.plan import hlo, timing, topology


def estimated(
    name: str, function: Callable[..., Any], specs: Sequence[Any], where: topology.Topology,
    options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Estimates a function on one chip of `where`; call it inside `backend.planning`.

  Args:
    name: of the row.
    function: of arrays.
    specs: shapes of its arguments, on that chip (topology.one_chip).
    where: a TPU topology.
    options: of the compiler.

  Returns:
    A row of harness.py: the compiler's estimate of cycles at the chip's clock, with FLOPs, traffic with HBM
    and temporaries of the program.
  """
  program = jax.jit(function).lower(*specs).compile(compiler_options=options)
  work = timing.work(hlo.Program(program.as_text()), where.chip)
  return harness.row(name, [1e3 * work.cycles / where.chip.clock], "ms") | {
      "flops": work.flops, "hbm_bytes": work.hbm_bytes,
      "temporary_bytes": program.memory_analysis().temp_size_in_bytes}


def timed(
    programs: Iterable[tuple[str, Callable[..., Any], Sequence[Any]]], repeats: int
) -> list[dict[str, Any]]:
  """Times functions in turns on this machine's accelerator.

  Args:
    programs: (name, function, its arguments).
    repeats: turns of each.
  """
  runs = {}
  for name, function, arguments in programs:
    program = jax.jit(function).lower(*arguments).compile()
    runs[name] = lambda p=program, a=arguments: jax.block_until_ready(p(*a))
  return [harness.row(name, [1e3 * s for s in seconds], "ms")
          for name, seconds in harness.interleave(runs, repeats=repeats).items()]
