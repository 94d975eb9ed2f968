"""The kind of device that a program is traced for: JAX's own, or one that plan.py compiles for.

Formulations differ by backend (ops/matmul.py, ops/conv.py, ops/attention.py, models/layers.py). Who plans
a TPU on a laptop must trace the TPU's.
"""

from collections.abc import Iterator
import contextlib
import contextvars
import functools
import os

import jax

# (platform, device_kind)
_planned: contextvars.ContextVar[tuple[str, str] | None] = contextvars.ContextVar("planned", default=None)


def name() -> str:
  """"cpu" | "gpu" | "tpu"."""
  return _planned.get()[0] if planned() else jax.default_backend()


def device_kind() -> str:
  """The maker's name of the device, as JAX gives it: "TPU v5 lite"; "" where a plan does not say."""
  return _planned.get()[1] if planned() else jax.devices()[0].device_kind


def planned() -> bool:
  """Whether tracing is for devices that this machine need not have."""
  return _planned.get() is not None


@functools.cache
def cpu_has_amx() -> bool:
  """Whether this machine's CPU has matrix units for bfloat16: Intel's of servers since 2023, on Linux."""
  try:
    with open("/proc/cpuinfo", encoding="utf-8") as f:
      return any("amx_bf16" in line for line in f if line.startswith("flags"))
  except FileNotFoundError:  # not Linux
    return False


@contextlib.contextmanager
def planning(platform: str, kind: str = "") -> Iterator[None]:
  """Inside, programs are traced for another device; they cannot run here, only be counted or compiled.

  Args:
    platform: as `name`.
    kind: as `device_kind`. "" traces what every device of the platform can run, and nothing is made
      twice to spare a particular one's memory: so traced, the work of a model is counted.
  """
  token = _planned.set((platform, kind))
  jax.clear_caches()  # what was traced for another platform must not be found again
  try:
    yield
  finally:
    _planned.reset(token)
    jax.clear_caches()


def configure(compilation_cache: str, float32_matmul_precision: str) -> None:
  """Sets JAX's process-wide options from a run's config."""
  keep_compiled(compilation_cache)
  jax.config.update("jax_default_matmul_precision", float32_matmul_precision)


def keep_compiled(folder: str) -> None:
  """Keeps compiled programs on disk, so that the next process starts faster; "" keeps none."""
  if folder:
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
