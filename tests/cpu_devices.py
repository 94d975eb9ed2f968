"""XLA's flags for several CPU devices in one process. Imports nothing, so that it can run before JAX."""


def xla_flags(count: int) -> str:
  """The value of XLA_FLAGS for `count` CPU devices."""
  # Without the second flag XLA's CPU runtime goes on past a loop before the collectives inside it are
  # done. A device that does so waits in a later collective while the others wait for it in the loop,
  # until XLA aborts the process (seen with jaxlib 0.10.2: stage 2 with 8-way fsdp, every time).
  return (f"--xla_force_host_platform_device_count={count} "
          "--xla_cpu_enable_concurrency_optimized_scheduler=false")
