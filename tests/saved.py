"""Small folders of weights for tests: written from arrays in memory, and read back as NumPy arrays."""

from typing import Any

from unilip_jax.weights import folder as folder_lib
from unilip_jax.weights import sources


def save(folder, modules, dims, extra=None, *, overwrite: bool = False) -> None:
  """Writes {module: nested dict of arrays} and {module: dimensions} as an imported folder."""
  with folder_lib.Writer(folder, overwrite=overwrite) as writer:
    for name, arrays in modules.items():
      writer.add(name, arrays, dims[name])
    writer.finish(extra or {})


def load(path, names=None, *, dtype: str | None = "float32") -> tuple[dict[str, Any], dict[str, Any]]:
  """({module: nested dict of arrays}, model.json) of anything that sources.open_weights opens."""
  stored = sources.open_weights(str(path))
  return stored.load(names, dtype=dtype), dict(stored.model)
