"""Our weights -> PyTorch files, by the same tables that read them; a round trip is bit-equal."""

from collections.abc import Callable, Mapping
import dataclasses
import os
from typing import Any

from etils import epath
import ml_dtypes
import numpy as np

from unilip_jax import checkpoint, weights
from unilip_jax.convert import kinds, modules
from unilip_jax.convert import rules as engine

DTYPES = ("float32", "bfloat16", "source")


@dataclasses.dataclass(frozen=True)
class Format:
  """A PyTorch file format.

  Attributes:
    needs: modules that it holds.
    rules: model.json -> the table.
  """

  needs: tuple[str, ...]
  rules: Callable[[Mapping[str, Any]], list[engine.Rule]]


FORMATS = {
    "pth": Format(
        modules.TOKENIZER, lambda model: kinds.tokenizer_rules(weights.tokenizer_dims(model)))}


def export_weights(
    folder: str, fmt: str, out: str, dtype: str = "float32", *, overwrite: bool = False
) -> list[str]:
  """Writes one PyTorch file; it appears only when it is whole.

  Args:
    folder: a run's workdir or checkpoint, or imported weights. Of a run, its average (EMA).
    fmt: key of FORMATS.
    out: file to write, local or gs://.
    dtype: "float32", "bfloat16", or "source": what the weights had before they were imported
      (float32 for weights that were trained here).
    overwrite: replace a file that stands at `out`.

  Returns:
    Lines for the user.

  Raises:
    FileNotFoundError: if no weights are at `folder`.
    ValueError: if they lack a module that the format holds, or `out` exists.
  """
  if epath.Path(out).expanduser().exists() and not overwrite:
    raise ValueError(f"{out} exists; choose another file or pass --overwrite")
  arrays, model = checkpoint.load_weights(folder)
  needs = FORMATS[fmt].needs
  absent = [name for name in needs if name not in arrays]
  if absent:
    raise ValueError(
        f"{folder} lacks {', '.join(absent)}, which the format {fmt} holds; it has "
        f"{', '.join(sorted(arrays))}. Export a trained tokenizer or an imported whole one")
  table = FORMATS[fmt].rules(model)
  log, tensors = [], {}
  for name in needs:
    kept = dtype
    if dtype == "source":
      kept = model.get("dtypes", {}).get(name, "float32")
      log.append(f"{name}: {kept}")
    rules = [rule for rule in table if rule.path.startswith(f"{name}/")]
    tensors.update(engine.to_torch({name: arrays.pop(name)}, rules, kept))
  save_pth(tensors, out)
  size = sum(t.nbytes for t in tensors.values())
  return [*log, f"wrote {out}: {len(tensors)} tensors, {size / 1e6:.1f} MB"]


def save_pth(tensors: Mapping[str, np.ndarray], out: str) -> None:
  """torch.save of a flat table of tensors; a local file is renamed into place."""
  import torch

  final = epath.Path(out).expanduser()
  final.parent.mkdir(parents=True, exist_ok=True)
  remote = "://" in str(final)  # object stores show a file only when it is closed
  target = final if remote else final.with_name(final.name + ".tmp")
  state = {name: _torch(torch, array) for name, array in tensors.items()}
  try:
    with target.open("wb") as file:
      torch.save(state, file)
    if not remote:
      os.replace(target, final)
  except BaseException:
    target.unlink(missing_ok=True)
    raise


def _torch(torch, array: np.ndarray):
  if array.dtype == ml_dtypes.bfloat16:
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
  return torch.from_numpy(array)
