"""Unpacks the recorded official runs into a folder of the layout in which they were recorded.

Two archives hold data alone, nothing that is executed: `recordings.tar.xz` (JSON, `.npz`, lossless WebP)
and `weights.xz` (bfloat16 numbers by byte planes). README.md describes both.
"""

import collections
import io
import json
import lzma
import pathlib
import tarfile

import numpy as np
from PIL import Image
from safetensors import torch as safetensors_torch
import torch

RECORDINGS, WEIGHTS = "recordings.tar.xz", "weights.xz"
TABLE = "weights.json"  # inside of the recordings: {file: {tensor name: [dtype, shape, first number]}}
_FOLDER = pathlib.Path(__file__).parent
_MEAN, _STD = (np.array(x, np.float32) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

# uint8[..., 3] to the array that was recorded of it, bit for bit: official code normalises in two ways.
RANGES = {
    "u8": lambda x: x,
    "imagenet": lambda x: (np.float32(x) / np.float32(255) - _MEAN) / _STD,
    "imagenet_fused": lambda x: (np.float32(x) - 255 * _MEAN) / (255 * _STD),
    "signed": lambda x: (np.float32(x) - np.float32(127.5)) / np.float32(127.5),
}


def unpack(folder: pathlib.Path) -> pathlib.Path:
  """Writes the recordings into an empty folder; returns it."""
  extract(_FOLDER / RECORDINGS, folder)
  for group in {image.parent for image in folder.glob("*/*.webp")}:
    _join_images(folder / f"{group.name}.npz", sorted(group.glob("*.webp")))
  _write_weights(folder)
  return folder


def extract(archive: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """Writes the files of a compressed tar into a folder; returns it."""
  with tarfile.open(archive, "r:xz") as files:
    files.extractall(folder, filter="data")
  return folder


def _join_images(file: pathlib.Path, images: list[pathlib.Path]) -> None:
  """Adds images `KEY.RANGE.LAYOUT.COUNT.webp` to the arrays of a file."""
  arrays = dict(np.load(file))
  for path in images:
    key, kind, layout, count, _ = path.name.rsplit(".", 4)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    value = RANGES[kind](pixels.reshape(int(count), -1, *pixels.shape[1:]))
    value = np.moveaxis(value, -1, 1) if layout == "nchw" else value
    arrays[key] = np.ascontiguousarray(value[0] if layout == "hwc" else value)
    path.unlink()
  images[0].parent.rmdir()
  np.savez(file, **arrays)


def _write_weights(folder: pathlib.Path) -> None:
  numbers = torch.from_numpy(join_planes(lzma.decompress((_FOLDER / WEIGHTS).read_bytes())))
  numbers = numbers.view(torch.bfloat16)
  for name, table in json.loads((folder / TABLE).read_text()).items():
    tensors = collections.OrderedDict(
        (key, numbers[first:first + int(np.prod(shape))].reshape(shape).to(getattr(torch, dtype)))
        for key, (dtype, shape, first) in table.items())
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pth":
      torch.save(tensors, path)
    else:
      safetensors_torch.save_file(tensors, path, metadata={"format": "pt"})


def split_planes(numbers: np.ndarray) -> bytes:
  """int16[N] of bfloat16 bits as N bytes of exponents, then N bytes of mantissas and signs."""
  bits = numbers.view(np.uint16)
  bits = (bits << 1) | (bits >> 15)
  return (bits >> 8).astype(np.uint8).tobytes() + (bits & 255).astype(np.uint8).tobytes()


def join_planes(data: bytes) -> np.ndarray:
  """The inverse of `split_planes`."""
  high, low = np.frombuffer(data, np.uint8).reshape(2, -1).astype(np.uint16)
  bits = (high << 8) | low
  return ((bits >> 1) | (bits << 15)).view(np.int16)


def archive(files: dict[str, bytes]) -> bytes:
  """A tar of files in the order given, without times or owners, compressed."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as out:
    for name, data in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      out.addfile(info, io.BytesIO(data))
  return lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)
