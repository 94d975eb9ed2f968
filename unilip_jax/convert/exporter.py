"""Exports weights as PyTorch files, by the rules that read the same files; a round trip is bit-equal.

A few arrays at a time are read and written: memory holds them and one file's worth of tensors.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import math
import posixpath
import shutil
from typing import Any

from etils import epath
import jax
import ml_dtypes
import numpy as np
from safetensors import numpy as safetensors
import tokenizers

from unilip_jax.common import arguments, atomic_io, paths, tree
from unilip_jax.convert import (
  card,
  choices,
  diffusers_folder,
  engine,
  modules,
  pickles,
  qwen2,
  unilip,
)
from unilip_jax.data import text as text_lib
from unilip_jax.models import lora, quantization
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import folder as folder_lib
from unilip_jax.weights import language, sources
from unilip_jax.weights import stored as stored_lib

DTYPES, FORMATS = choices.EXPORT_DTYPES, choices.FORMATS
SHARD_BYTES = 1_000_000_000  # of one safetensors file
_READ_BYTES = 2**28  # of arrays that are read together
_LAYOUTS = {"unilip": unilip.folder_files, "components": unilip.component_files,
            "diffusers": diffusers_folder.files}


def export_weights(
    path: str, fmt: str, out: str, dtype: str = "float32", *, overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES
) -> list[str]:
  """Writes PyTorch's files; they appear only when they are complete.

  Args:
    path: a run's workdir or checkpoint, or imported weights. Of a run, its EMA.
    fmt: one of FORMATS.
    out: folder to write, or file for "pth"; local or gs://.
    dtype: "float32", "bfloat16", or "source": that of each module before it was imported
      (float32 for weights that were trained here).
    overwrite: replace an earlier export at `out`.
    shard_bytes: size at which a safetensors file is closed.

  Returns:
    Lines for the user.

  Raises:
    FileNotFoundError: if no weights are at `path`.
    ValueError: if they lack modules of the format, or `out` exists; before anything is read, if PyTorch is
      absent, which "pth" needs.
  """
  arguments.choice("format", fmt, FORMATS)
  arguments.choice("dtype", dtype, DTYPES)
  if fmt == "pth":
    pickles.import_torch(out, "writing .pth")
  weights = _Weights(sources.open_weights(path), dtype)
  few_step = weights.model.get("generate", {}).get("few_step")
  if few_step and fmt != "pth":
    raise ValueError(
        f"{path} was distilled to a few steps ({few_step}): diffusers' SANA has no input for the length of "
        f"a step and no such sampler, so that the format {fmt} would describe it wrongly. Format pth holds "
        "its tokenizer; export the checkpoint that it was distilled from instead")
  log = [f"{name}: {weights.dtype_of(name)}" for name in sorted(weights.names)] * (dtype == "source")
  if fmt == "pth":
    return [*log, _write_pth(weights, out, overwrite)]
  text, tokenizer_json = _tokenizer_of(path, weights.model)
  if fmt != "components" and text is None:
    raise ValueError(f"no tokenizer.json was found for {path}; put the language model's there")
  files = _LAYOUTS[fmt](weights.names, weights.dims, weights.model.get("generate"), text)
  rows = []
  with atomic_io.Folder(out, overwrite=overwrite, replaceable=card.is_export) as folder:
    for file in files:
      _write_configs(file, folder.path / file.folder, text, tokenizer_json)
      counts, line = _write_tensors(weights, file, folder.path / file.folder, shard_bytes)
      rows += [(file.folder, name, n, weights.dtype_of(name)) for name, n in counts.items()]
      log.append(line)
    (folder.path / card.NAME).write_text(card.text(path, weights.model, fmt, rows))
    folder.finish()
  if rest := sorted(weights.names - {name for file in files for name in file.tables}):
    log.append(f"not in this format: {', '.join(rest)}")
  return [*log, f"wrote {out}"]


@dataclasses.dataclass(frozen=True)
class _Weights:
  """The weights of an export, read a few arrays at a time.

  Attributes:
    stored: where they are.
    dtype: of the export, one of DTYPES.
  """

  stored: stored_lib.Stored
  dtype: str

  @property
  def names(self) -> set[str]:
    return self.stored.modules

  @property
  def model(self) -> Mapping[str, Any]:
    return self.stored.model

  @property
  def dims(self) -> dict[str, Any]:
    """{module: parsed dimensions} of the modules that have some."""
    return {name: modules.parse_dims(name, dims)
            for name, dims in dims_lib.module_dims(self.model).items() if name in self.names}

  def dtype_of(self, module: str) -> str:
    if self.dtype != "source":
      return self.dtype
    return self.model.get("dtypes", {}).get(module, "float32")

  def tensors(
      self, module: str, rules: Sequence[engine.Rule]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (PyTorch name, tensor) of one module, its adapters merged.

    Raises:
      ConversionError: for arrays without a rule.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    saved = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
             for path, leaf in self.stored.shapes.items() if path.split("/")[0] == module}
    adapters = self.stored.restore({p: saved.pop(p) for p in [*saved] if lora.is_adapter(p)})
    if scales := [path for path in saved if path.endswith(quantization.SCALE)]:
      raise ValueError(f"{self.stored.origin} holds {module} in int8 ({scales[0]}), which PyTorch's "
                       "formats do not; export its adapters with --lora, or train them on a bfloat16 base "
                       "(lora.base_dtype)")
    if unknown := saved.keys() - {rule.path for rule in rules}:
      raise engine.ConversionError(
          f"{self.stored.origin}: no rule reads {', '.join(sorted(unknown)[:8])}")
    for group in _groups(rules, saved):
      arrays = self.stored.restore(
          {rule.path: saved[rule.path] for rule in group if rule.path in saved})
      own = {p: x for p, x in adapters.items() if f"{p.split(f'/{lora.NAME}/')[0]}/kernel" in arrays}
      merged = lora.merge(tree.unflatten(arrays | own)) if own else tree.unflatten(arrays)
      tensors = engine.to_torch(merged, group, self.dtype_of(module))
      del arrays
      while tensors:
        name = next(iter(tensors))
        yield name, tensors.pop(name)


def _groups(
    rules: Sequence[engine.Rule], saved: Mapping[str, jax.ShapeDtypeStruct]
) -> Iterator[list[engine.Rule]]:
  """Yields rules whose arrays have about _READ_BYTES together."""
  group, size = [], 0
  for rule in rules:
    leaf = saved.get(rule.path)
    new = 0 if leaf is None else math.prod(leaf.shape) * leaf.dtype.itemsize
    if group and size + new > _READ_BYTES:
      yield group
      group, size = [], 0
    group.append(rule)
    size += new
  if group:
    yield group


def _write_configs(
    file: unilip.File, folder: epath.Path, text: tokenizers.Tokenizer | None, tokenizer_json: str
) -> None:
  """Writes the files of one model that are stored with its weights, and the tokenizer's."""
  folder.mkdir(parents=True, exist_ok=True)
  contents = dict(file.configs)
  if file.language is not None and text is not None:
    contents |= {posixpath.join(file.language, folder_lib.TOKENIZER_FILE): tokenizer_json,
                 posixpath.join(file.language, "tokenizer_config.json"): qwen2.tokenizer_config()}
  for name, content in contents.items():
    place = folder
    for part in name.split("/"):
      place = place.parent if part == ".." else place / part
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(content if isinstance(content, str) else json.dumps(content, indent=2) + "\n")


def _write_tensors(
    weights: _Weights, file: unilip.File, folder: epath.Path, shard_bytes: int
) -> tuple[dict[str, int], str]:
  """Writes one model's safetensors files; returns ({module: parameters}, a line for the user)."""
  shards, counts = _Shards(folder, file.name, shard_bytes), dict.fromkeys(file.tables, 0)
  for module, rules in file.tables.items():
    for name, tensor in weights.tensors(module, rules):
      counts[module] += tensor.size
      shards.add(name, tensor)
  number = shards.finish()
  return counts, (f"  {file.folder or '.'}: {', '.join(file.tables)}; {shards.bytes / 1e6:.1f} MB in "
                  f"{number} file{'s' * (number > 1)}")


class _Shards:
  """safetensors files of bounded size, with the index that transformers and diffusers read."""

  def __init__(self, folder: epath.Path, name: str, limit: int):
    self._folder, self._name, self._limit = folder, name, limit
    self._open: dict[str, np.ndarray] = {}
    self._closed: list[list[str]] = []
    self._size = self.bytes = 0

  def add(self, name: str, tensor: np.ndarray) -> None:
    if self._open and self._size + tensor.nbytes > self._limit:
      self._close()
    self._open[name] = tensor
    self._size += tensor.nbytes
    self.bytes += tensor.nbytes

  def _close(self) -> None:
    file = self._folder / f"{self._name}-{len(self._closed):05d}.part"
    if "://" in str(file):
      file.write_bytes(safetensors.save(self._open, metadata={"format": "pt"}))
    else:
      safetensors.save_file(self._open, str(file), metadata={"format": "pt"})
      shutil.copymode(self._folder / "config.json", file)  # safetensors lets the owner alone read it
    self._closed.append(list(self._open))
    self._open, self._size = {}, 0

  def finish(self) -> int:
    """Names the files, whose number is known only now; returns it."""
    self._close()
    total, weight_map = len(self._closed), {}
    for i, names in enumerate(self._closed):
      final = f"{self._name}.safetensors" if total == 1 else (
          f"{self._name}-{i + 1:05d}-of-{total:05d}.safetensors")
      (self._folder / f"{self._name}-{i:05d}.part").rename(self._folder / final)
      weight_map |= dict.fromkeys(names, final)
    if total > 1:
      (self._folder / f"{self._name}.safetensors.index.json").write_text(json.dumps(
          {"metadata": {"total_size": self.bytes}, "weight_map": weight_map}, indent=2) + "\n")
    return total


def _write_pth(weights: _Weights, out: str, overwrite: bool) -> str:
  """Writes UniLIP's tokenizer checkpoint; returns a line for the user."""
  torch = pickles.import_torch(out, "writing .pth")
  place = paths.path(out, "--out")
  if place.exists() and not overwrite:
    raise ValueError(f"{out} exists; choose another file or pass --overwrite")
  if absent := [name for name in ("vision_tower", "mlp1", "latent_head", "decoder")
                if name not in weights.names]:
    raise ValueError(
        f"{weights.stored.origin} lacks {', '.join(absent)}, which the format pth holds; it has "
        f"{', '.join(sorted(weights.names))}. Export a trained tokenizer or an imported complete one")
  tensors = {}
  for module, rules in unilip.tables(unilip.PTH, weights.names, weights.dims).items():
    for name, array in weights.tensors(module, rules):
      tensors[name] = (torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
                       if array.dtype == ml_dtypes.bfloat16 else torch.from_numpy(array))
  place.parent.mkdir(parents=True, exist_ok=True)
  with atomic_io.open_file(out) as file:
    torch.save(tensors, file)
  size = sum(t.nbytes for t in tensors.values())
  return f"wrote {out}: {len(tensors)} tensors, {size / 1e6:.1f} MB"


def _tokenizer_of(path: str, model: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer | None, str]:
  """Returns (tokenizer, its JSON) of imported weights or of the run they are from; (None, "") without."""
  named = language.language_of(path, model)
  file = None if named is None else text_lib.tokenizer_file(named[0])
  if file is None or not file.exists():
    return None, ""
  text = file.read_text()
  return tokenizers.Tokenizer.from_str(text), text
