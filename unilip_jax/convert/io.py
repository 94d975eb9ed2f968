"""PyTorch's weight files and folders as lazy mappings of NumPy arrays: safetensors (sharded too), pickles.

One tensor is read at a time, on request, and keeps its dtype (bfloat16 as ml_dtypes').
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import math
import pathlib
import re
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from unilip_jax.common import json_text, paths
from unilip_jax.convert import hub, pickles
from unilip_jax.convert.pickles import ReadError

SAFETENSORS = ".safetensors"
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
    files: that hold them.
  """

  def __init__(self, entries: Mapping[str, _Entry]):
    self._entries = dict(entries)
    self.shapes = {name: entry.shape for name, entry in self._entries.items()}
    self.dtypes = {name: entry.dtype for name, entry in self._entries.items()}
    self.files = {entry.file for entry in self._entries.values()}

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
    unread: names of weight files of the folder that `tensors` does not contain.
  """

  path: pathlib.Path
  config: dict[str, Any]
  tensors: Tensors
  unread: tuple[str, ...] = ()


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
    path = pathlib.Path(paths.expand(location, "--source"))
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
    if files := _weight_files(path):
      return [Source(p, {}, open_file(p)) for p in files]
  tensors = open_folder(path)
  unread = tuple(p.name for p in _weight_files(path) if p not in tensors.files)
  return [Source(path, config or {}, tensors, unread)]


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(p for p in folder.iterdir() if p.suffix in (SAFETENSORS, *pickles.SUFFIXES))


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
  if path.suffix in pickles.SUFFIXES:
    return Tensors({
        name: _Entry(tuple(t.shape), pickles.numpy_dtype(t, path, name), path,
                     functools.partial(pickles.to_numpy, t))
        for name, t in pickles.load(path).items()})
  raise ReadError(f"{path}: unknown kind of file; expected {SAFETENSORS} or {', '.join(pickles.SUFFIXES)}")


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
  value = json_text.loads(text)
  if not isinstance(value, dict):
    raise ValueError(f"a JSON {type(value).__name__}, not an object")
  return value


def _open_safetensors(path: pathlib.Path) -> Tensors:
  """Reads the header, whose shapes and offsets the safetensors package checks against the file."""
  header = safetensors_header(path)
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
  start = path.stat().st_size - max((header[name]["data_offsets"][1] for name in dtypes), default=0)
  return Tensors({name: _Entry(shapes[name], _DTYPES[dtype], path, functools.partial(
      _read_tensor, path, name, start + header[name]["data_offsets"][0], shapes[name], _DTYPES[dtype]))
                  for name, dtype in dtypes.items()})


def safetensors_header(path: pathlib.Path) -> dict[str, Any]:
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


def _read_tensor(
    path: pathlib.Path, name: str, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Reads the bytes of one tensor. The package would parse the header again for each of them."""
  array = np.fromfile(path, dtype, math.prod(shape), offset=offset)
  if array.size != math.prod(shape):
    raise ReadError(f"{path} has become shorter since it was opened: {name} is incomplete")
  return array.reshape(shape)
