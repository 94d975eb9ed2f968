"""Writes adapters in the layouts of PEFT and diffusers.

  out/        PEFT, over the complete model with the names of UniLIP's folder; `UniLIP.load` reads it
  out/llm/    PEFT, for transformers' Qwen2ForCausalLM, vLLM and SGLang
  out/dit/    PEFT, and diffusers' file, for SanaTransformer2DModel and SanaPipeline

Folders of modules without adapters are left out. The three hold the same numbers under other names.
"""

import collections
from collections.abc import Mapping
import json
import math
from typing import Any

from etils import epath
import numpy as np
from safetensors import numpy as safetensors

from unilip_jax.common import atomic_io
from unilip_jax.convert import lora_files, lora_names, modules
from unilip_jax.models import lora
from unilip_jax.weights import adapters as adapters_lib
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import sources

_TASKS = {"llm": "CAUSAL_LM"}


def export_run(path: str, out: str, *, overwrite: bool = False) -> list[str]:
  """Writes the adapters of a run; they appear only when all are complete.

  Args:
    path: workdir or checkpoint of a run that trained adapters; of its EMA where one was kept.
    out: folder to write, local or gs://.
    overwrite: replace an earlier export at `out`.

  Returns:
    Lines for the user.

  Raises:
    FileNotFoundError: if no run is at `path`.
    ValueError: if it trained no adapters, or `out` exists.
  """
  stored = sources.open_weights(path)
  dims = {name: modules.parse_dims(name, value)
          for name, value in dims_lib.module_dims(stored.model).items() if name in stored.modules}
  shapes = {p: tuple(leaf.shape) for p, leaf in stored.shapes.items()}
  adapters = adapters_lib.open_adapter(path, dims, shapes)
  lines = []
  with atomic_io.Folder(out, overwrite=overwrite, replaceable=is_export) as folder:
    for layout, place in ((lora_names.UNILIP, ""), (lora_names.QWEN2, "llm"), (lora_names.SANA, "dit")):
      layers = layers_of(adapters, layout, dims)
      if not layers or (place and place not in dims):
        continue
      (folder.path / place).mkdir(parents=True, exist_ok=True)
      size = write_peft(folder.path / place, layers, layout, dims)
      if layout is lora_names.SANA:
        write_diffusers(folder.path / place, layers, layout, dims)
      lines.append(f"  {place or '.'}: {len(layers)} layers, {size / 1e6:.1f} MB" + (
          f"; {lora_files.DIFFUSERS_FILE} for diffusers" if layout is lora_names.SANA else ""))
    folder.finish()
  return [*lines, f"wrote {out}"]


def is_export(folder: epath.Path) -> bool:
  """Returns whether a folder is an earlier export of adapters."""
  return (folder / lora_files.CONFIG).exists()


Layers = Mapping[str, tuple[np.ndarray, np.ndarray, float]]


def layers_of(
    adapters: Mapping[str, Any], layout: lora_names.Layout, dims: Mapping[str, Any]) -> Layers:
  """Returns {PyTorch layer: (A (r, in), B (out, r), alpha)} of the modules that a layout has.

  Columns with scale 0, which pad ranks, are left out. Where the scale differs within a layer (several
  adapters in one) it is multiplied into B.
  """
  parts, layers = lora.by_part(adapters), {}
  for name, place in layout.places(dims).items():
    leaf = parts.get((place.dense, place.part))
    if leaf is None:
      continue
    a, b, scale = (np.asarray(leaf[key], np.float32)[() if place.layer is None else place.layer]
                   for key in ("a", "b", "scale"))
    used = np.flatnonzero(scale)
    if not used.size:
      continue
    a, b, scale = a[:, used].T, b[used].T, scale[used]
    if np.ptp(scale) > 0:
      b, scale = b * scale, np.ones_like(scale)
    axes = (..., None, None) if place.conv else (...,)
    layers[name] = (np.ascontiguousarray(a)[axes], np.ascontiguousarray(b)[axes],
                    _rounded(float(scale[0]) * len(a)))
  return layers


def _rounded(alpha: float) -> float | int:
  """Returns the integer that alpha is up to float32's rounding, else alpha."""
  return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-6) else alpha


def configuration(layers: Layers, layout: lora_names.Layout, dims: Mapping[str, Any]) -> dict[str, Any]:
  """Returns PEFT's configuration: the most frequent rank and alpha, and patterns for the others."""
  ranks = {name: len(a) for name, (a, _, _) in layers.items()}
  alphas = {name: alpha for name, (_, _, alpha) in layers.items()}
  usual = lambda values: collections.Counter(values.values()).most_common(1)[0][0]
  rank, alpha = usual(ranks), usual(alphas)
  return {"r": rank, "lora_alpha": alpha, "target_modules": _targets(set(layers), set(layout.places(dims))),
          "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
          "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha}}


def _targets(layers: set[str], known: set[str]) -> list[str]:
  """Returns the shortest ends of paths that name exactly `layers` of `known`; else the complete paths."""
  def end(name: str, count: int) -> str:
    words = name.split(".")
    while count < len(words) and words[-count].isdigit():
      count += 1
    return ".".join(words[-count:])

  for count in (1, 2, 3):
    ends = {end(name, count) for name in layers}
    if {name for name in known if any(name == e or name.endswith(f".{e}") for e in ends)} == layers:
      return sorted(ends)
  return sorted(layers)


def write_peft(
    folder: epath.Path, layers: Layers, layout: lora_names.Layout, dims: Mapping[str, Any]) -> int:
  """Writes PEFT's two files; returns the bytes of the tensors."""
  config = {
      "base_model_name_or_path": None, "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
      "init_lora_weights": True, "lora_dropout": 0.0, "modules_to_save": None, "peft_type": "LORA",
      "task_type": _TASKS.get(layout.name), "use_dora": False, "use_rslora": False,
      **configuration(layers, layout, dims)}
  (folder / lora_files.CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
  content = safetensors.save(_tensors(layers, lora_files.PEFT_PREFIX), metadata={"format": "pt"})
  atomic_io.write(folder / lora_files.PEFT_FILE, content)
  return len(content)


def write_diffusers(
    folder: epath.Path, layers: Layers, layout: lora_names.Layout, dims: Mapping[str, Any]) -> None:
  """Writes diffusers' file.

  The header has the entries that decide about the output and no others: an entry that the reader's PEFT
  does not know is an error there. Releases that read no header take alpha = r.
  """
  entries = {name: value for name, value in configuration(layers, layout, dims).items() if value}
  header = json.dumps({lora_files.DIFFUSERS_PREFIX + name: value for name, value in entries.items()})
  content = safetensors.save(_tensors(layers, lora_files.DIFFUSERS_PREFIX),
                             metadata={"format": "pt", lora_files.METADATA: header})
  atomic_io.write(folder / lora_files.DIFFUSERS_FILE, content)


def _tensors(layers: Layers, prefix: str) -> dict[str, np.ndarray]:
  return {f"{prefix}{name}.lora_{matrix}.weight": np.ascontiguousarray(array)
          for name, (a, b, _) in layers.items() for matrix, array in (("A", a), ("B", b))}
