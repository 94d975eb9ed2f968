"""Our weights -> PyTorch files, by the same tables that read them; a round trip is bit-equal.

A few arrays at a time are read and written: memory holds them and one file's worth of tensors.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
import math
import os
import shutil
from typing import Any

from etils import epath
import jax
import ml_dtypes
import numpy as np
from safetensors import numpy as safetensors
import tokenizers

from unilip_jax.common import atomic_io, tree
from unilip_jax.convert import card, configs_out, layouts
from unilip_jax.convert import rules as engine
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import folder as folder_lib
from unilip_jax.weights import sources, stored

DTYPES = ("float32", "bfloat16", "source")
FORMATS = ("unilip", "pth", "components")
SHARD_BYTES = 1_000_000_000  # of one safetensors file
_READ_BYTES = 2**28  # of arrays that are read together


def export_weights(
    path: str, fmt: str, out: str, dtype: str = "float32", *, overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES
) -> list[str]:
  """Writes PyTorch's files; they appear only when they are whole.

  Args:
    path: a run's workdir or checkpoint, or imported weights. Of a run, its average (EMA).
    fmt: one of FORMATS.
    out: folder to write, or file for "pth"; local or gs://.
    dtype: "float32", "bfloat16", or "source": what each module had before it was imported
      (float32 for weights that were trained here).
    overwrite: replace what an earlier export left at `out`.
    shard_bytes: a safetensors file is closed when it holds as much.

  Returns:
    Lines for the user.

  Raises:
    FileNotFoundError: if no weights are at `path`.
    ValueError: if they lack what the format holds, or `out` exists.
  """
  stored = sources.open_weights(path)
  modules = _Modules(stored, dtype)
  if fmt == "pth":
    return modules.log + _pth(modules, out, overwrite)
  text, tokenizer_json = _tokenizer_of(path, stored.model)
  if fmt == "unilip" and text is None:
    raise ValueError(f"no tokenizer.json was found for {path}; put the language model's there")
  make = {"unilip": layouts.unilip, "components": layouts.components}[fmt]
  files = make(_held(stored), text)
  left = sorted(modules.names - {m for file in files for m in file.tables})
  with atomic_io.Folder(out, overwrite=overwrite, replaceable=card.is_export) as folder:
    lines = []
    for file in files:
      lines += _write(modules, file, folder.path, text, tokenizer_json, shard_bytes)
    (folder.path / card.NAME).write_text(card.text(path, stored.model, files, modules, fmt))
    folder.finish()
  if left:
    lines.append(f"not in this format: {', '.join(left)}")
  return [*modules.log, *lines, f"wrote {out}"]


class _Modules:
  """Reads a few arrays at a time, and says once in which dtype a module leaves.

  Attributes:
    names: of the modules that are held.
    counts: {module: parameters} of what was read.
    log: lines for the user.
  """

  def __init__(self, stored: stored.Stored, dtype: str):
    self._stored, self._dtype = stored, dtype
    self.names = stored.modules
    self.counts: dict[str, int] = {}
    self.log = [f"{name}: {self.dtype(name)}" for name in sorted(self.names)
                ] if dtype == "source" else []

  @property
  def origin(self) -> str:
    return self._stored.origin

  @property
  def model(self) -> Mapping[str, Any]:
    return self._stored.model

  def dtype(self, name: str) -> str:
    if self._dtype != "source":
      return self._dtype
    return self._stored.model.get("dtypes", {}).get(name, "float32")

  def tensors(
      self, name: str, table: Sequence[engine.Rule]) -> Iterator[tuple[str, np.ndarray]]:
    """(PyTorch name, tensor) of one module.

    Raises:
      ConversionError: for arrays that the table does not name.
    """
    here = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    held = {path: leaf for path, leaf in self._stored.shapes.items()
            if path.split("/")[0] == name}
    if unknown := held.keys() - set(engine.paths(table)):
      raise engine.ConversionError(
          f"{self.origin}: no rule takes {', '.join(sorted(unknown)[:8])}")
    self.counts[name] = 0
    for rules in self._groups(table):
      arrays = self._stored.restore({
          path: jax.ShapeDtypeStruct(held[path].shape, held[path].dtype, sharding=here)
          for path in engine.paths(rules) if path in held})
      made = engine.to_torch(tree.unflatten(arrays), rules, self.dtype(name))
      del arrays
      self.counts[name] += sum(tensor.size for tensor in made.values())
      while made:
        tensor = next(iter(made))
        yield tensor, made.pop(tensor)

  def _groups(self, table: Sequence[engine.Rule]) -> Iterator[list[engine.Rule]]:
    """Rules whose arrays have about _READ_BYTES together."""
    group, size = [], 0
    for rule in table:
      shapes = [self._stored.shapes[p] for p in engine.paths([rule]) if p in self._stored.shapes]
      new = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes)
      if group and size + new > _READ_BYTES:
        yield group
        group, size = [], 0
      group.append(rule)
      size += new
    if group:
      yield group


def _held(stored: stored.Stored) -> dict[str, Any]:
  """model.json with the modules alone that have weights."""
  dims = {m: d for m, d in dims_lib.module_dims(stored.model).items() if m in stored.modules}
  return {**stored.model, "modules": dims}


def _write(modules, file: layouts.File, folder: epath.Path, text, tokenizer_json, shard_bytes):
  """Writes one model's folder; returns a line."""
  target = folder / file.folder
  target.mkdir(parents=True, exist_ok=True)
  for name, content in file.configs.items():
    place = epath.Path(os.path.normpath(target / name)) if ".." in name else target / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(content, indent=2) + "\n")
  if file.language and text is not None:
    (target / folder_lib.TOKENIZER_FILE).write_text(tokenizer_json)
    (target / "tokenizer_config.json").write_text(
        json.dumps(configs_out.tokenizer(text), indent=2) + "\n")
  shards = _Shards(target, file.name, shard_bytes)
  for name, table in file.tables.items():
    for tensor, array in modules.tensors(name, table):
      shards.add(tensor, array)
  count = shards.finish()
  return [f"  {file.folder or '.'}: {', '.join(file.tables)}; {shards.bytes / 1e6:.1f} MB in {count} "
          f"file{'s' * (count > 1)}"]


class _Shards:
  """safetensors files of bounded size, with the index that transformers and diffusers read."""

  def __init__(self, folder: epath.Path, name: str, limit: int):
    self._folder, self._name, self._limit = folder, name, limit
    self._open: dict[str, np.ndarray] = {}
    self._written: list[list[str]] = []
    self._size = self.bytes = 0

  def add(self, name: str, array: np.ndarray) -> None:
    if self._open and self._size + array.nbytes > self._limit:
      self._close()
    self._open[name] = array
    self._size += array.nbytes
    self.bytes += array.nbytes

  def _close(self) -> None:
    file = self._folder / f"{self._name}-{len(self._written):05d}.part"
    if "://" in str(file):
      file.write_bytes(safetensors.save(self._open, metadata={"format": "pt"}))
    else:
      safetensors.save_file(self._open, str(file), metadata={"format": "pt"})
      shutil.copymode(self._folder / "config.json", file)  # safetensors keeps files to their owner
    self._written.append(list(self._open))
    self._open, self._size = {}, 0

  def finish(self) -> int:
    """Names the files now that their number is known; returns it."""
    self._close()
    total, weight_map = len(self._written), {}
    for i, names in enumerate(self._written):
      final = f"{self._name}.safetensors" if total == 1 else (
          f"{self._name}-{i + 1:05d}-of-{total:05d}.safetensors")
      (self._folder / f"{self._name}-{i:05d}.part").rename(self._folder / final)
      weight_map |= dict.fromkeys(names, final)
    if total > 1:
      (self._folder / f"{self._name}.safetensors.index.json").write_text(json.dumps(
          {"metadata": {"total_size": self.bytes}, "weight_map": weight_map}, indent=2) + "\n")
    return total


def _pth(modules: _Modules, out: str, overwrite: bool) -> list[str]:
  if epath.Path(out).expanduser().exists() and not overwrite:
    raise ValueError(f"{out} exists; choose another file or pass --overwrite")
  absent = [name for name in ("vision_tower", "mlp1", "latent_head", "decoder")
            if name not in modules.names]
  if absent:
    raise ValueError(
        f"{modules.origin} lacks {', '.join(absent)}, which the format pth holds; it has "
        f"{', '.join(sorted(modules.names))}. Export a trained tokenizer or an imported whole one")
  tensors: dict[str, np.ndarray] = {}
  for name, table in layouts.pth_tables(modules.model).items():
    tensors.update(modules.tensors(name, table))
  save_pth(tensors, out)
  size = sum(t.nbytes for t in tensors.values())
  return [f"wrote {out}: {len(tensors)} tensors, {size / 1e6:.1f} MB"]


def save_pth(tensors: Mapping[str, np.ndarray], out: str) -> None:
  """torch.save of a flat table of tensors."""
  import torch

  epath.Path(out).expanduser().parent.mkdir(parents=True, exist_ok=True)
  with atomic_io.open_file(out) as file:
    torch.save({name: _torch(torch, array) for name, array in tensors.items()}, file)


def _torch(torch, array: np.ndarray):
  if array.dtype == ml_dtypes.bfloat16:
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
  return torch.from_numpy(array)


def _tokenizer_of(path: str, model: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer | None, str]:
  """(tokenizer, its JSON) of imported weights, of a run, or of what ships; (None, "") without."""
  place = card.tokenizer_file(path, model)
  if place is None or not place.exists():
    return None, ""
  text = place.read_text()
  return tokenizers.Tokenizer.from_str(text), text
