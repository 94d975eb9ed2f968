"""PyTorch's weight files and folders as lazy mappings of NumPy arrays: safetensors (sharded too), pickles.

One tensor is read at a time, on request, and keeps its dtype (bfloat16 as ml_dtypes'). Pickles
go through torch.load(weights_only=True), which never runs code from the file.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import json
import math
import pathlib
import re
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from unilip_jax.convert import hub

SAFETENSORS = ".safetensors"
PICKLES = (".pth", ".pt", ".bin")
# Names under which libraries save a model, in the order in which they are tried.
_STANDARD = (
    "model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors", "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin.index.json", "pytorch_model.bin", "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors")
_SHARDS = "*-of-*.safetensors"
# Folders of components, in the order in which they are read.
_COMPONENTS = ("mllm", "mllm_hf", "dit", "vae", "unilip")
_TRANSFORMER = "transformer"  # within a diffusers pipeline
_DTYPES = {name: np.dtype(dtype) for name, dtype in {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
    "BOOL": np.bool_}.items()}


class ReadError(ValueError):
  """A weight file is absent, damaged or not a flat table of tensors; the message names it."""


@dataclasses.dataclass(frozen=True)
class _Entry:
  shape: tuple[int, ...]
  dtype: np.dtype
  file: pathlib.Path
  read: Callable[[], np.ndarray]


class Tensors(Mapping[str, np.ndarray]):
  """Tensors by name, read on request.

  Attributes:
    shapes: {name: shape}, available without reading.
    dtypes: {name: NumPy dtype}.
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


@dataclasses.dataclass(frozen=True)
class Source:
  """One set of PyTorch tensors.

  Attributes:
    path: of the folder or file.
    config: its config.json; {} if there is none.
    tensors: read on request.
  """

  path: pathlib.Path
  config: dict[str, Any]
  tensors: Tensors


def find(location: str) -> list[Source]:
  """Opens a location that a user gives.

  Args:
    location: a file, a folder with one model, a diffusers pipeline (its transformer is read), a folder of
      component folders, a folder of separate weight files, or hf://org/name.

  Raises:
    ReadError: if there is nothing to read.
    hub.HubError: if a download fails.
  """
  if location.startswith(hub.PREFIX):
    path = hub.download(location)
  elif "://" in location:
    raise ReadError(f"{location}: give a local path (copy it first) or {hub.PREFIX}org/name")
  else:
    path = pathlib.Path(location).expanduser()
  if path.is_file():
    return [Source(path, {}, open_file(path))]
  if not path.is_dir():
    raise ReadError(
        f"{location}: no such file or folder; a Hugging Face repository is written "
        f"{hub.PREFIX}org/name, and without a network its files are copied here (docs/weights.md)")
  if (path / "model.json").exists():
    raise ReadError(f"{path} is already imported (or a run's workdir)")
  config = read_config(path)
  if config is None and not any((path / name).exists() for name in _STANDARD) and not any(
      path.glob(_SHARDS)):
    if (path / _TRANSFORMER / "config.json").is_file():
      return find(str(path / _TRANSFORMER))
    if components := [path / name for name in _COMPONENTS if (path / name).is_dir()]:
      return [source for component in components for source in find(str(component))]
    if files := sorted(p for p in path.iterdir() if p.suffix in (SAFETENSORS, *PICKLES)):
      return [Source(p, {}, open_file(p)) for p in files]
  return [Source(path, config or {}, open_folder(path))]


def open_folder(folder: pathlib.Path) -> Tensors:
  """Opens a model folder: the first of the standard file names, or numbered shards.

  Raises:
    ReadError: if it holds no weights, lacks a shard, or a file is damaged.
  """
  for name in _STANDARD:
    if (folder / name).exists():
      return _open_sharded(folder / name) if name.endswith(".json") else open_file(folder / name)
  if shards := sorted(folder.glob(_SHARDS)):
    total = int(re.search(r"-of-0*(\d+)\.safetensors$", shards[0].name)[1])
    if len(shards) != total:
      raise ReadError(f"{folder}: {len(shards)} of {total} shards are there; download the rest")
    return merge([open_file(shard) for shard in shards])
  names = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "nothing"
  raise ReadError(
      f"{folder} holds no weights: expected one of {', '.join(_STANDARD)} or numbered shards; "
      f"found {names}. Was the download complete (git-lfs pointers are not weights)?")


def open_file(path: pathlib.Path) -> Tensors:
  """Opens one file.

  Raises:
    ReadError: if it is absent, damaged, holds code, or has another suffix.
  """
  if not path.is_file():
    raise ReadError(f"{path}: no such file")
  if path.suffix == SAFETENSORS:
    return _open_safetensors(path)
  if path.suffix in PICKLES:
    return Tensors({
        name: _Entry(tuple(t.shape), _numpy_dtype(t, path, name), path, functools.partial(_numpy, t))
        for name, t in _load_pickle(path).items()})
  raise ReadError(f"{path}: unknown kind of file; expected {SAFETENSORS} or {', '.join(PICKLES)}")


def merge(parts: list[Tensors]) -> Tensors:
  """Returns one mapping of several.

  Raises:
    ReadError: if two hold the same name.
  """
  entries: dict[str, _Entry] = {}
  for part in parts:
    for name, entry in part._entries.items():
      if name in entries:
        raise ReadError(f"repeated: {name} is in {entries[name].file} and in {entry.file}")
      entries[name] = entry
  return Tensors(entries)


def read_config(folder: pathlib.Path) -> dict[str, Any] | None:
  """Returns config.json of a folder, None if there is none.

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
    raise ReadError(f"{index} is damaged: weight_map contains {odd[0]!r}, not a file of the same folder")
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


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    return _parse(path.read_bytes())
  except ValueError as error:
    raise ReadError(f"{path} is damaged: {error}") from error


def _parse(text: bytes) -> dict[str, Any]:
  """Returns a JSON object.

  Raises:
    ValueError: if it is none, or one of its objects has a name twice.
  """
  def unique(pairs):
    value = dict(pairs)
    if len(value) < len(pairs):
      names = [name for name, _ in pairs]
      raise ValueError(f"repeated: {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return value

  try:
    value = json.loads(text, object_pairs_hook=unique)
  except RecursionError as error:
    raise ValueError("it is nested without end") from error
  if not isinstance(value, dict):
    raise ValueError(f"a JSON {type(value).__name__}, not an object")
  return value


def _open_safetensors(path: pathlib.Path) -> Tensors:
  """Reads the header, whose shapes and offsets the safetensors package checks against the file."""
  header = _safetensors_header(path)
  try:
    with safetensors.safe_open(path, "np") as file:
      slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
      dtypes = {name: part.get_dtype() for name, part in slices.items()}
      shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
  except safetensors.SafetensorError as error:
    raise ReadError(f"{path} is damaged or truncated: {_wrong_entry(header)}{error}; "
                    "download it again") from error
  if unknown := [name for name, dtype in dtypes.items() if dtype not in _DTYPES]:
    raise ReadError(f"{path}: {unknown[0]} has dtype {dtypes[unknown[0]]}; known: {', '.join(_DTYPES)}")
  return Tensors({name: _Entry(shapes[name], _DTYPES[dtype], path, functools.partial(
      _read_safetensors, path, name)) for name, dtype in dtypes.items()})


def _safetensors_header(path: pathlib.Path) -> dict[str, Any]:
  """Returns the header, 8 bytes of length and JSON, refusing names that the package would accept twice."""
  with path.open("rb") as file:
    start = file.read(8)
    if start.startswith(b"version "):
      raise ReadError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` there")
    length, size = int.from_bytes(start, "little"), path.stat().st_size
    if len(start) < 8 or 8 + length > size:
      raise ReadError(f"{path} is damaged or truncated: {size} bytes do not hold its header; "
                      "download it again")
    try:
      return _parse(file.read(length))
    except ValueError as error:
      raise ReadError(f"{path} is damaged: its header: {error}; download it again") from error


def _wrong_entry(header: Mapping[str, Any]) -> str:
  """Returns the first tensor whose bytes do not fit its shape, for the message; "" if there is none."""
  for name, info in header.items():
    try:
      begin, end = info["data_offsets"]
      natural = all(type(n) is int and n >= 0 for n in info["shape"])
      fits = natural and end - begin == math.prod(info["shape"]) * _DTYPES[info["dtype"]].itemsize
    except (TypeError, KeyError, ValueError):
      fits = False
    if name != "__metadata__" and not fits:
      return f"header of {name}: "
  return ""


def _read_safetensors(path: pathlib.Path, name: str) -> np.ndarray:
  """Reads one tensor; the file is closed again, so that memory holds no other tensor of it."""
  with safetensors.safe_open(path, "np") as file:
    return file.get_tensor(name)


def _load_pickle(path: pathlib.Path) -> dict[str, Any]:
  """Returns the file's {name: torch tensor}, mapped from disk if its format allows it."""
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
          f"{path} is refused: it would run {code[1]}. Only tables of tensors are read; code in "
          "a weight file is never run. Get the weights from a source you trust") from error
    # torch's own text advises to switch the check off; only its cause is repeated.
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
  """Returns a torch tensor as a NumPy array without loss; bfloat16 goes through its bits."""
  import torch

  tensor = tensor.detach().contiguous()
  if tensor.dtype == torch.bfloat16:
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  return tensor.numpy()


def _numpy_dtype(tensor, path: pathlib.Path, name: str) -> np.dtype:
  text = str(tensor.dtype).removeprefix("torch.")
  try:
    return np.dtype(ml_dtypes.bfloat16 if text == "bfloat16" else text)
  except TypeError as error:
    raise ReadError(f"{path}: {name} has dtype {text}, which is not read") from error
