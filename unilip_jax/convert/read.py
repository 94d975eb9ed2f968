"""PyTorch weight files as lazy mappings of numpy arrays: safetensors (sharded too), torch pickles.

Only the tensors that are asked for are read, and each keeps its dtype (bfloat16 as ml_dtypes'). The
safetensors format is read here directly: its package knows no bfloat16 in numpy. Pickles go through
torch.load(weights_only=True), which never runs code from the file.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import json
import math
import pathlib
import re

import ml_dtypes
import numpy as np

SAFETENSORS = ".safetensors"
PICKLES = (".pth", ".pt", ".bin")
# Names under which libraries save a whole model, in the order in which they are taken.
_STANDARD = (
    "model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors", "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin.index.json", "pytorch_model.bin", "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors")
_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
    "BOOL": np.bool_}


class ReadError(ValueError):
  """A weight file is absent, damaged or not a plain table of tensors; the message names it."""


@dataclasses.dataclass(frozen=True)
class _Entry:
  shape: tuple[int, ...]
  dtype: np.dtype
  file: pathlib.Path
  read: Callable[[], np.ndarray]


class Tensors(Mapping[str, np.ndarray]):
  """Tensors by name, read when asked for.

  Attributes:
    shapes: {name: shape}, known without reading.
    dtypes: {name: numpy dtype}.
  """

  def __init__(self, entries: Mapping[str, _Entry]):
    self._entries = dict(entries)
    self.shapes = {name: entry.shape for name, entry in self._entries.items()}
    self.dtypes = {name: entry.dtype for name, entry in self._entries.items()}

  def __getitem__(self, name: str) -> np.ndarray:
    return self._entries[name].read()

  def __iter__(self) -> Iterator[str]:
    return iter(self._entries)

  def __len__(self) -> int:
    return len(self._entries)


def open_folder(folder: pathlib.Path) -> Tensors:
  """The tensors of a model folder, from the first of the standard file names or numbered shards.

  Raises:
    ReadError: if it holds no weights, lacks a shard, or a file is damaged.
  """
  for name in _STANDARD:
    if (folder / name).exists():
      return _open_sharded(folder / name) if name.endswith(".json") else open_file(folder / name)
  shards = sorted(folder.glob("*-of-*.safetensors"))
  if shards:
    total = int(re.search(r"-of-0*(\d+)\.safetensors$", shards[0].name)[1])
    if len(shards) != total:
      raise ReadError(f"{folder}: {len(shards)} of {total} shards are there; download the rest")
    return merge([open_file(shard) for shard in shards])
  found = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "nothing"
  raise ReadError(
      f"{folder} holds no weights: expected one of {', '.join(_STANDARD)} or numbered shards; "
      f"found {found}. Was the download complete (git-lfs pointers are not weights)?")


def is_model_folder(folder: pathlib.Path) -> bool:
  """Whether `open_folder` would find its weights under a standard name."""
  return any((folder / name).exists() for name in _STANDARD) or any(
      folder.glob("*-of-*.safetensors"))


def open_file(path: pathlib.Path) -> Tensors:
  """The tensors of one file.

  Raises:
    ReadError: if it is absent, damaged, holds code, or has another suffix.
  """
  if not path.is_file():
    raise ReadError(f"{path}: no such file")
  if path.suffix == SAFETENSORS:
    return Tensors(_safetensors_entries(path))
  if path.suffix in PICKLES:
    return Tensors({
        name: _Entry(tuple(t.shape), _numpy_dtype(t, path, name), path, lambda t=t: _numpy(t))
        for name, t in _load_pickle(path).items()})
  raise ReadError(f"{path}: unknown kind of file; expected {SAFETENSORS} or {', '.join(PICKLES)}")


def merge(parts: list[Tensors]) -> Tensors:
  """One mapping of several.

  Raises:
    ReadError: if two hold the same name.
  """
  entries: dict[str, _Entry] = {}
  for part in parts:
    for name, entry in part._entries.items():
      if name in entries:
        raise ReadError(f"doubled: {name} stands in {entries[name].file} and in {entry.file}")
      entries[name] = entry
  return Tensors(entries)


def read_config(folder: pathlib.Path) -> dict | None:
  """config.json of a folder, None if there is none.

  Raises:
    ReadError: if it is no JSON object.
  """
  path = folder / "config.json"
  return _read_json(path) if path.is_file() else None


def _open_sharded(index: pathlib.Path) -> Tensors:
  weight_map = _read_json(index).get("weight_map", {})
  odd = [name for name in weight_map.values() if not isinstance(name, str) or "/" in name
         or "\\" in name] if isinstance(weight_map, dict) else [type(weight_map).__name__]
  if odd:
    raise ReadError(f"{index} is damaged: weight_map names {odd[0]!r} in place of a file beside it")
  names = sorted(set(weight_map.values()))
  absent = [n for n in names if not (index.parent / n).is_file()]
  if absent or not names:
    raise ReadError(f"{index}: shards {absent or 'none'} are absent from {index.parent}; "
                    "download the rest")
  shards = merge([open_file(index.parent / name) for name in names])
  lost = sorted(set(weight_map) - set(shards))
  extra = sorted(set(shards) - set(weight_map))
  if lost or extra:
    raise ReadError(f"{index} and its shards disagree: the shards lack {lost[:8]}, "
                    f"the index lacks {extra[:8]}")
  return shards


def _read_json(path: pathlib.Path) -> dict:
  try:
    return _parse(path.read_bytes())
  except ValueError as error:
    raise ReadError(f"{path} is damaged: {error}") from error


def _parse(text: bytes) -> dict:
  """A JSON object.

  Raises:
    ValueError: if it is none, or one of its objects has a name twice.
  """
  try:
    value = json.loads(text, object_pairs_hook=_once)
  except RecursionError as error:
    raise ValueError("it is nested without end") from error
  if not isinstance(value, dict):
    raise ValueError(f"a JSON {type(value).__name__} in place of an object")
  return value


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    raise ValueError(f"doubled: {next(n for n in names if names.count(n) > 1)!r} stands there twice")
  return found


def _safetensors_entries(path: pathlib.Path) -> dict[str, _Entry]:
  """Reads the header: 8 bytes of length, JSON, then the tensors one after the other."""
  size = path.stat().st_size
  with path.open("rb") as file:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if start.startswith(b"version "):
      raise ReadError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` there")
    if len(start) < 8 or 8 + length > size:
      raise ReadError(f"{path} is damaged or truncated: {size} bytes do not hold its header; "
                      "download it again")
    try:
      header = _parse(file.read(length))
    except ValueError as error:
      raise ReadError(f"{path} is damaged: its header: {error}; download it again") from error
  header.pop("__metadata__", None)
  entries, spans = {}, []
  for name, info in header.items():
    dtype, shape, begin, end = _entry_of(path, name, info)
    if end - begin != math.prod(shape) * dtype.itemsize:
      raise ReadError(f"{path} is damaged: {name} {shape} {dtype} has {end - begin} bytes")
    if 8 + length + end > size:
      raise ReadError(f"{path} is truncated: {name} ends at byte {8 + length + end}, the file has "
                      f"{size}; download it again")
    spans.append((begin, end, name))
    entries[name] = _Entry(shape, dtype, path, functools.partial(
        _mapped, path, dtype, 8 + length + begin, shape))
  _check_spans(path, sorted(spans), size - 8 - length)
  return entries


def _entry_of(path: pathlib.Path, name: str, info) -> tuple[np.dtype, tuple[int, ...], int, int]:
  """(dtype, shape, first byte, byte behind the last) of one entry of a header."""
  natural = lambda values: isinstance(values, list) and all(
      isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values)
  if not isinstance(info, dict) or not natural(info.get("shape")) or not natural(
      info.get("data_offsets")) or len(info["data_offsets"]) != 2:
    raise ReadError(f"{path} is damaged: header of {name}: {str(info)[:200]}")
  if not isinstance(info.get("dtype"), str) or info["dtype"] not in _DTYPES:
    raise ReadError(f"{path}: {name} has dtype {info.get('dtype')}; known: {', '.join(_DTYPES)}")
  return np.dtype(_DTYPES[info["dtype"]]), tuple(info["shape"]), *info["data_offsets"]


def _check_spans(path: pathlib.Path, spans: list[tuple[int, int, str]], size: int) -> None:
  """Raises ReadError unless the tensors fill the file one behind the other, as the format demands."""
  place = 0
  for begin, end, name in spans:
    if begin != place:
      raise ReadError(f"{path} is damaged: {name} begins at byte {begin} of the data, the tensor before "
                      f"it ends at {place}; download it again")
    place = end
  if place != size:
    raise ReadError(f"{path} is damaged or truncated: its tensors have {place} bytes, the file has "
                    f"{size} for them; download it again")


def _mapped(path: pathlib.Path, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> np.ndarray:
  """An array whose pages come from the disk as they are copied, and go again under pressure."""
  if math.prod(shape) == 0:
    return np.zeros(shape, dtype)
  return np.memmap(path, dtype, "r", offset, shape or (1,)).reshape(shape)


def _load_pickle(path: pathlib.Path) -> dict:
  """The file's {name: torch tensor}, mapped from disk where its format allows."""
  try:
    import torch
  except ImportError as error:
    raise ReadError(f"{path}: reading {path.suffix} needs PyTorch (pip install torch); training "
                    "does not, and safetensors files need none") from error
  with path.open("rb") as file:
    zipped = file.read(2) == b"PK"  # torch's own format since 1.6; older files cannot be mapped
  try:
    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
  except Exception as error:  # damaged files make torch and its unpickler raise nearly every kind
    code = re.search(r"GLOBAL ([\w.]+)", str(error))
    if code:
      raise ReadError(
          f"{path} is refused: it wants to run {code[1]}. Only tables of tensors are read; code in "
          "a weight file is never run. Get the weights from a source you trust") from error
    # torch's own text advises to switch the guard off; only its cause is passed on.
    detail = re.search(r"WeightsUnpickler error: (.+)", str(error))
    reason = detail[1] if detail else str(error).strip().split("\n")[0]
    if "weights_only" in reason or not reason:
      reason = type(error).__name__
    raise ReadError(f"{path} is damaged, truncated or no torch file ({reason[:160]}); "
                    "download it again") from error
  odd = [f"{k!r}: {type(v).__name__}" for k, v in loaded.items()
         if not isinstance(k, str) or not isinstance(v, torch.Tensor)
         ] if isinstance(loaded, Mapping) else [type(loaded).__name__]
  if odd:
    raise ReadError(f"{path} is not a flat table of tensors: it holds {', '.join(odd[:6])}")
  return dict(loaded)


def _numpy(tensor) -> np.ndarray:
  """A torch tensor as numpy without loss; bfloat16 goes through its bits."""
  import torch

  tensor = tensor.detach().contiguous()
  if tensor.dtype == torch.bfloat16:
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  return tensor.numpy()


def _numpy_dtype(tensor, path: pathlib.Path, name: str) -> np.dtype:
  text = str(tensor.dtype).removeprefix("torch.")
  if text == "bfloat16":
    return np.dtype(ml_dtypes.bfloat16)
  try:
    return np.dtype(text)
  except TypeError as error:
    raise ReadError(f"{path}: {name} has dtype {text}, which is not read") from error
