"""Packs and unpacks recorded runs of image metrics: `metrics.tar.xz`.

  python -m tests.golden.metrics --source=DIR    # the complete recordings

Keeps inputs complete (images, features, covariances), and of large outputs the arrays and positions of
`_ARRAYS`. The random weights of the networks are not stored: their rule is `tensor`.
"""

import argparse
from collections.abc import Sequence
import io
import pathlib
import re
import zlib

import numpy as np

from tests.golden import unpack as recordings

_ARCHIVE = pathlib.Path(__file__).parent / "metrics.tar.xz"
_FILES = ("fid/*", "images/[01235].png", "psnr_ssim/noisy_[01235].png", "psnr_ssim/scores.json",
          "lpips/distances.json", "recon/*", "inception/keys.json")
# {file: (regular expression of its arrays, every n-th value is kept)}
_ARRAYS = {
    "inception/activations_torch_fidelity": (r"3\..*\.(mean|corner)", 1),
    "inception/outputs_torch_fidelity_float32": (r"[01235]\.(64|192|768|2048|logits_unbiased|logits)", 4),
    "inception/outputs_unilip_float64": (r".*", 4),
    "inception/outputs_pytorch_fid": (r"[01235]\.2048", 4),
    "inception/outputs_clean_fid": (r"[01235]\.(clean|legacy_pytorch)\.2048", 4),
    "inception/resized_inputs": (r"(tf1|pytorch|clean|clean_legacy_pytorch)_resized_[13]", 1)}
_SEED = 303


def unpack(folder: pathlib.Path) -> pathlib.Path:
  """Writes the recordings into an empty folder; returns it."""
  return recordings.extract(_ARCHIVE, folder)


def tensor(name: str, shape: Sequence[int]) -> np.ndarray:
  """Makes the random weights of a recorded network: float32 of a generator that the name seeds."""
  random = np.random.RandomState((zlib.crc32(name.encode()) + _SEED) % 2**32)
  if name.endswith((".bn.weight", ".running_var")):
    value = random.uniform(0.8, 1.2, shape)
  elif name.endswith((".bn.bias", ".running_mean")):
    value = random.uniform(-0.1, 0.1, shape)
  elif name.startswith("fc."):
    value = random.standard_normal(shape) * (0.05 if name == "fc.weight" else 0.1)
  elif name.endswith("weight"):  # of a convolution
    value = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
  else:
    value = random.standard_normal(shape) * 0.05
  return value.astype(np.float32)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--source", required=True, type=pathlib.Path)
  source = parser.parse_args().source
  paths = [path for pattern in _FILES for path in sorted(source.glob(pattern))]
  files = {str(path.relative_to(source)): path.read_bytes() for path in paths}
  for name, (pattern, step) in _ARRAYS.items():
    arrays, buffer = np.load(source / f"{name}.npz"), io.BytesIO()
    np.savez(buffer, **{key: arrays[key][::step] for key in arrays if re.fullmatch(pattern, key)})
    files[f"{name}.npz"] = buffer.getvalue()
  _ARCHIVE.write_bytes(recordings.archive(files))
  print(f"{_ARCHIVE.name}: {len(files)} files, {_ARCHIVE.stat().st_size:,} bytes")


if __name__ == "__main__":
  main()
