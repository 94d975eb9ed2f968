"""Reads adapters of PEFT and diffusers: safetensors only, and nothing is guessed silently.

PEFT's folder is adapter_config.json and adapter_model.safetensors, with keys below `base_model.model.`.
diffusers' file is pytorch_lora_weights.safetensors, with keys below `transformer.` and PEFT's configuration
in the header. What their loaders skip or leave at its first value (missing, unknown and unprefixed tensors,
wrong ranks) is an error here.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
import pathlib
import re
from typing import Any

from absl import logging
import ml_dtypes
import numpy as np

from unilip_jax.common import arguments, errors, json_file, tree
from unilip_jax.convert import io, lora_names
from unilip_jax.models import lora

CONFIG, PEFT_FILE, DIFFUSERS_FILE = (
    "adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors")
PEFT_PREFIX, DIFFUSERS_PREFIX, METADATA = "base_model.model.", "transformer.", "lora_adapter_metadata"
_KEY = re.compile(r"(.+)\.lora_([AB])\.weight")
# Variants of LoRA, by the entry that turns them on: with any of them the output is another one.
_REFUSED = ("use_dora", "lora_bias", "target_parameters", "layer_replication", "modules_to_save",
            "alora_invocation_tokens", "trainable_token_indices", "use_qalora", "use_bdlora", "kasa_config",
            "velora_config", "monteclora_config", "arrow_config", "fan_in_fan_out")
# Ways to start that leave the base weights as they are; PiSSA, OLoRA, LoftQ and others change them.
_INITS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclasses.dataclass(frozen=True)
class _Config:
  """What of PEFT's configuration decides about the output."""

  origin: str
  entries: Mapping[str, Any]

  def rank(self, layer: str) -> int:
    return self._pattern("rank_pattern", layer, self.entries["r"])

  def scale(self, layer: str) -> float:
    alpha, rank = self._pattern("alpha_pattern", layer, self.entries["lora_alpha"]), self.rank(layer)
    return alpha / (math.sqrt(rank) if self.entries.get("use_rslora") else rank)

  def _pattern(self, name: str, layer: str, default: Any) -> Any:
    """Returns the value of the first key that matches, as PEFT does: at the end of the layer's path."""
    for pattern, value in (self.entries.get(name) or {}).items():
      if re.match(rf"(.*\.)?({pattern})$", layer):
        return value
    return default

  def targets(self, layer: str) -> bool:
    """Returns whether PEFT would give the layer an adapter."""
    excluded, wanted = self.entries.get("exclude_modules"), self.entries["target_modules"]
    if not _matches(wanted, layer) or (excluded and _matches(excluded, layer)):
      return False
    numbers = self.entries.get("layers_to_transform")
    if numbers is None or isinstance(wanted, str):
      return True
    found = re.search(r"\.(\d+)\.", layer)
    return found is not None and int(found[1]) in (numbers if isinstance(numbers, list) else [numbers])


def _matches(wanted: str | list[str], layer: str) -> bool:
  if isinstance(wanted, str):
    return re.fullmatch(wanted, layer) is not None
  return any(layer == name or layer.endswith(f".{name}") for name in wanted)


def read(path: str, dims: Mapping[str, Any]) -> dict[str, Any]:
  """Reads adapters.

  Args:
    path: a folder of PEFT or diffusers, or a .safetensors file.
    dims: {module: parsed dimensions} of the model that they are for.

  Returns:
    adapters as models/lora.py describes them, nested dict of float32 arrays.

  Raises:
    FileNotFoundError: if there is no file of adapters.
    ValueError: for variants of LoRA that are not implemented, and for tensors that are missing, unknown or
      of another rank than the configuration's.
  """
  file = _file_of(pathlib.Path(path))
  tensors, header = io.open_file(file), io.safetensors_header(file).get("__metadata__", {})
  layers = _layers(tensors, file)
  prefix = PEFT_PREFIX if all(name.startswith(PEFT_PREFIX) for name in layers) else DIFFUSERS_PREFIX
  if wrong := [name for name in layers if not name.startswith(prefix)]:
    raise ValueError(f"{file}: adapters begin with {PEFT_PREFIX!r} (PEFT) or {DIFFUSERS_PREFIX!r} "
                     f"(diffusers), not as {wrong[0]!r}")
  if prefix == PEFT_PREFIX:
    config = _checked(json_file.read(file.parent / CONFIG, remedy=(
        "PEFT stores it next to the tensors; without it their scale is unknown")), file.parent / CONFIG)
  else:
    config = _of_header(header, layers, file)
  layers = {name.removeprefix(prefix): pair for name, pair in layers.items()}
  places = _places(layers, dims, file)
  expected = {name for name in places if config.targets(name)}
  errors.check_shapes(
      dict.fromkeys(layers, "there"), dict.fromkeys(expected, "there"),
      f"{file} does not hold the layers of target_modules in {config.origin}", source="file")
  return _tree({name: (places[name], *pair) for name, pair in layers.items()}, config, file)


def _file_of(path: pathlib.Path) -> pathlib.Path:
  if path.is_file():
    if path.suffix != io.SAFETENSORS:
      raise ValueError(f"{path}: adapters are read from {io.SAFETENSORS} files alone: pickles run code")
    return path
  for name in (PEFT_FILE, DIFFUSERS_FILE):
    if (path / name).is_file():
      return path / name
  found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "no folder"
  raise FileNotFoundError(f"{path} holds no adapter: expected {PEFT_FILE} with {CONFIG} (PEFT), "
                          f"{DIFFUSERS_FILE} (diffusers), or the workdir of a run; found {found}")


def _layers(tensors: io.Tensors, file: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns {layer with its prefix: (A, B)}, float32, without the axes of a 1×1 convolution."""
  pairs: dict[str, dict[str, np.ndarray]] = {}
  for name in tensors:
    match = _KEY.fullmatch(name)
    if match is None:
      kohya = "lora_down" in name or "lora_up" in name or name.endswith(".alpha")
      raise ValueError(f"{file}: {name} is no matrix of PEFT's layout (….lora_A.weight, .lora_B.weight)" + (
          "; it is kohya's layout, which diffusers does not read for SANA either: convert it first"
          if kohya else ""))
    if not np.issubdtype(tensors.dtypes[name], np.floating) and tensors.dtypes[name] != ml_dtypes.bfloat16:
      raise ValueError(f"{file}: {name} is {tensors.dtypes[name]}; adapters of whole numbers have no known "
                       "scale")
    array = np.asarray(tensors[name], np.float32)
    if array.ndim == 4 and array.shape[2:] == (1, 1):
      array = array[:, :, 0, 0]
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
      raise ValueError(f"{file}: {name} {array.shape} is no finite matrix of a dense layer or a 1×1 "
                       "convolution")
    pairs.setdefault(match[1], {})[match[2]] = array
  if half := [name for name, pair in pairs.items() if len(pair) < 2]:
    raise ValueError(f"{file}: {half[0]} has only one of lora_A and lora_B")
  if not pairs:
    raise ValueError(f"{file} holds no tensors")
  return {name: (pair["A"], pair["B"]) for name, pair in pairs.items()}


def _of_header(header: Mapping[str, str], layers: Mapping[str, Any], file: pathlib.Path) -> _Config:
  """Returns the configuration in a header of diffusers; without one, what diffusers assumes."""
  if METADATA in header:
    try:
      entries = json.loads(header[METADATA])
    except (ValueError, RecursionError) as error:
      raise ValueError(f"{file}: {METADATA} in its header is no JSON: {error}") from error
    if not isinstance(entries, dict):
      raise ValueError(f"{file}: {METADATA} in its header is a {type(entries).__name__}, not an object")
    return _checked({name.removeprefix(DIFFUSERS_PREFIX): value for name, value in entries.items()
                     if name.startswith(DIFFUSERS_PREFIX)}, f"the header of {file}")
  logging.warning(
      "%s has no configuration in its header: alpha = rank is assumed for every layer, as diffusers does. "
      "If it was trained with another alpha, its effect is wrong by that factor: ask its author, and give "
      "the weight alpha / rank", file)
  names = [name.removeprefix(DIFFUSERS_PREFIX) for name in layers]
  ranks = {re.escape(name): len(a) for name, (a, _) in zip(names, layers.values())}
  return _Config(str(file), {"r": 1, "lora_alpha": 1, "rank_pattern": ranks, "alpha_pattern": ranks,
                             "target_modules": names})


def _checked(entries: Mapping[str, Any], origin: Any) -> _Config:
  """Refuses configurations whose adapters are something else than (A, B, scale)."""
  if entries.get("peft_type", "LORA") != "LORA":
    raise ValueError(f"{origin}: peft_type is {entries['peft_type']!r}; only LORA is implemented")
  if absent := [name for name in ("r", "lora_alpha", "target_modules") if entries.get(name) is None]:
    raise ValueError(f"{origin} lacks {', '.join(absent)}, without which its output is unknown; ask the "
                     "author of the adapter")
  _check_values(entries, origin)
  wrong = [f"{name}={entries[name]!r}" for name in _REFUSED if entries.get(name)]
  if entries.get("bias", "none") != "none":
    wrong.append(f"bias={entries['bias']!r}")
  init = entries.get("init_lora_weights")
  if init not in _INITS:
    wrong.append(f"init_lora_weights={init!r} (it changes the base weights; PEFT can save such an adapter "
                 "as plain LoRA)")
  if wrong:
    raise ValueError(f"{origin}: not implemented: {', '.join(wrong)}")
  return _Config(str(origin), entries)


def _check_values(entries: Mapping[str, Any], origin: Any) -> None:
  """Refuses values that decide about the output and have another type than PEFT gives them."""
  table = lambda name: entries.get(name) or {}
  if not isinstance(table("rank_pattern"), Mapping) or not isinstance(table("alpha_pattern"), Mapping):
    raise ValueError(f"{origin}: rank_pattern and alpha_pattern are objects {{layer: number}}")
  for name, value in {"r": entries["r"], **table("rank_pattern")}.items():
    arguments.integer(f"{origin}: rank of {name}", value, 1)
  for name, value in {"lora_alpha": entries["lora_alpha"], **table("alpha_pattern")}.items():
    arguments.number(f"{origin}: alpha of {name}", value, 0.0, open_below=True)
  arguments.flag(f"{origin}: use_rslora", entries.get("use_rslora") or False)
  patterns = [f"({pattern})$" for pattern in (*table("rank_pattern"), *table("alpha_pattern"))]
  for name in ("target_modules", "exclude_modules"):
    value = entries.get(name) or []
    if isinstance(value, str):
      patterns.append(value)
    elif not isinstance(value, list) or not all(isinstance(layer, str) for layer in value):
      raise ValueError(f"{origin}: {name}={value!r} is neither a pattern nor a list of names")
  layers = entries.get("layers_to_transform")
  for number in layers if isinstance(layers, list) else [0 if layers is None else layers]:
    arguments.integer(f"{origin}: layers_to_transform", number, 0)
  for pattern in patterns:
    try:
      re.compile(pattern)
    except re.error as error:
      raise ValueError(f"{origin}: {pattern!r} is no regular expression: {error}") from error


def _places(
    layers: Mapping[str, Any], dims: Mapping[str, Any], file: pathlib.Path) -> dict[str, lora_names.Place]:
  """Returns the layers of the layout that has all of `layers`.

  Raises:
    ValueError: naming the layers that the nearest layout lacks.
  """
  candidates = [layout.places(dims) for layout in lora_names.LAYOUTS]
  best = min(candidates, key=lambda places: len(layers.keys() - places.keys()))
  if unknown := sorted(layers.keys() - best.keys()):
    raise ValueError(f"{file} adapts layers that this model does not have:\n"
                     + errors.listed([f"  {name}" for name in unknown]))
  return best


def _tree(
    layers: Mapping[str, tuple[lora_names.Place, np.ndarray, np.ndarray]], config: _Config,
    file: pathlib.Path) -> dict[str, Any]:
  """Stacks the layers of scans; ranks that differ are padded with zeros."""
  parts: dict[tuple[str, str], list[tuple[lora_names.Place, np.ndarray, np.ndarray, float]]] = {}
  for name, (place, a, b) in layers.items():
    if len(a) != config.rank(name) or b.shape[1] != len(a):
      raise ValueError(f"{file}: {name}: A {a.shape} and B {b.shape}, but {config.origin} has rank "
                       f"{config.rank(name)}")
    parts.setdefault((place.dense, place.part), []).append((place, a, b, config.scale(name)))
  flat = {}
  for (dense, part), rows in parts.items():
    rank = max(len(a) for _, a, _, _ in rows)
    count, width, size = rows[0][0].layers, rows[0][1].shape[1], rows[0][2].shape[0]
    lead = (count,) if count else ()
    leaf = {"a": np.zeros((*lead, width, rank), np.float32), "b": np.zeros((*lead, rank, size), np.float32),
            "scale": np.zeros((*lead, rank), np.float32)}
    for place, a, b, scale in rows:
      if a.shape[1] != width or len(b) != size:
        raise ValueError(f"{file}: the layers of {dense} differ in size: A {a.shape}, B {b.shape}")
      at = () if place.layer is None else (place.layer,)
      leaf["a"][(*at, slice(None), slice(len(a)))] = a.T
      leaf["b"][(*at, slice(len(a)))] = b.T
      leaf["scale"][(*at, slice(len(a)))] = scale
    flat |= {f"{dense}/{lora.NAME}/{part}/{key}": value for key, value in leaf.items()}
  return tree.unflatten(flat)
