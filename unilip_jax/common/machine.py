"""Describes the machine that runs this process, for results and model cards."""

import os
import platform

from etils import epath
import jax


def describe() -> str:
  """Returns cores, processor, JAX's platform and version in one line."""
  return (f"{os.cpu_count()} cores {processor()}, {jax.devices()[0].platform}, "
          f"jax {jax.__version__}")


def processor() -> str:
  """Returns the processor's name if the system gives it, otherwise its architecture."""
  info = epath.Path("/proc/cpuinfo")
  if info.exists():
    for line in info.read_text().splitlines():
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()
