"""The kind of device that a program is traced for: JAX's own, or one that planning compiles for.

Formulations differ by backend (ops/matmul.py, ops/conv.py, ops/resample.py, ops/attention.py,
models/layers.py). Planning for a TPU on a laptop must trace the TPU's.
"""

from collections.abc import Iterator
import contextlib
import contextvars

import jax

from unilip_jax.common import paths

# (platform, device_kind)
_planned: contextvars.ContextVar[tuple[str, str] | None] = contextvars.ContextVar("planned", default=None)


def name() -> str:
  """Returns "cpu", "gpu" or "tpu"."""
  return _planned.get()[0] if planned() else jax.default_backend()


def device_kind() -> str:
  """Returns JAX's name of the device model, e.g. "TPU v5 lite"; "" where a plan names none."""
  return _planned.get()[1] if planned() else jax.devices()[0].device_kind


def planned() -> bool:
  """Returns whether tracing is for devices that this machine need not have."""
  return _planned.get() is not None


def on_one_device(batch: int) -> int:
  """Returns the examples on each device of the current mesh; 0 if they do not divide or it is unknown."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return batch if planned() or jax.device_count() == 1 else 0
  return 0 if batch % mesh.size else batch // mesh.size


@contextlib.contextmanager
def planning(platform: str, kind: str = "") -> Iterator[None]:
  """Traces programs for another device inside the context; they can be counted or compiled, not run.

  Args:
    platform: as `name`.
    kind: as `device_kind`. "" traces what every device of the platform can run, without recomputing
      anything to save a particular model's memory: this is how the work of a network is counted.
  """
  token = _planned.set((platform, kind))
  jax.clear_caches()  # programs traced for another platform must not be reused
  try:
    yield
  finally:
    _planned.reset(token)
    jax.clear_caches()


def configure(compilation_cache: str, float32_matmul_precision: str) -> None:
  """Sets JAX's process-wide options from a run's config."""
  enable_compilation_cache(compilation_cache)
  jax.config.update("jax_default_matmul_precision", float32_matmul_precision)


def enable_compilation_cache(folder: str) -> None:
  """Stores compiled programs on disk, so that the next process starts faster; "" stores none."""
  if folder:
    jax.config.update("jax_compilation_cache_dir", paths.absolute(folder, "compilation_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
