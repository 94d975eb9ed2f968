"""XLA's flags for several CPU devices in one process. Imports no JAX, so that it can run before it."""

import os
import pathlib

# Tests compile for longer than they compute. With these a program compiles in two thirds of the time; what
# it computes differs in the order of sums alone. $UNILIP_TEST_OPTIMIZED=1 leaves them out.
_QUICK_COMPILATION = (
    "--xla_cpu_opt_preset=FAST_COMPILE", "--xla_cpu_use_fusion_emitters=false",
    "--xla_llvm_enable_alias_scope_metadata=false", "--xla_llvm_enable_noalias_metadata=false")


def xla_flags(count: int) -> str:
  """The value of XLA_FLAGS for `count` CPU devices."""
  quick = () if os.environ.get("UNILIP_TEST_OPTIMIZED") else _QUICK_COMPILATION
  # Without the second flag XLA's CPU runtime goes on past a loop before the collectives inside it are
  # done. A device that does so waits in a later collective while the others wait for it in the loop,
  # until XLA aborts the process (seen with jaxlib 0.10.2: stage 2 with 8-way fsdp, every time).
  return (f"--xla_force_host_platform_device_count={count} "
          "--xla_cpu_enable_concurrency_optimized_scheduler=false " + " ".join(quick)).strip()


def environment(count: int = 1) -> dict[str, str]:
  """The environment of a process with `count` CPU devices that runs this working tree.

  It compiles quickly, and shares every compiled program with others if $JAX_COMPILATION_CACHE_DIR is set.
  """
  return os.environ | {
      "PYTHONPATH": str(pathlib.Path(__file__).resolve().parents[1]), "JAX_PLATFORMS": "cpu",
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "XLA_FLAGS": xla_flags(count)}
