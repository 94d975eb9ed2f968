"""PyTorch's pickles, the only files here that need PyTorch; none of their code is ever run.

torch.load(weights_only=True) refuses a file with code.
"""

from collections.abc import Mapping
import importlib
import pathlib
import re
from typing import Any
import zipfile

import ml_dtypes
import numpy as np

SUFFIXES = (".pth", ".pt", ".bin")


class ReadError(ValueError):
  """A weight file is absent, damaged or not a flat table of tensors; the message names it."""


def import_torch(path: pathlib.Path | str, what: str) -> Any:
  """Imports PyTorch, which only pickles need.

  Args:
    path: of the file, for the message.
    what: e.g. "reading .pth".

  Raises:
    ReadError: if it is not installed.
  """
  try:
    return importlib.import_module("torch")
  except ImportError as error:
    raise ReadError(f"{path}: {what} needs PyTorch (pip install torch); safetensors files need none, nor "
                    "does training") from error


def load(path: pathlib.Path) -> dict[str, Any]:
  """Returns the file's {name: torch tensor}, mapped from disk if its format allows it."""
  torch = import_torch(path, f"reading {path.suffix}")
  with path.open("rb") as file:
    zipped = file.read(2) == b"PK"  # torch's own format since 1.6; older files cannot be mapped
  try:
    if zipped:
      _check_crcs(path)
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


def _check_crcs(path: pathlib.Path) -> None:
  """Compares the parts of a zipped file with their checksums, which torch.load ignores."""
  with zipfile.ZipFile(path) as archive:
    if (part := archive.testzip()) is not None:
      raise ValueError(f"the checksum of {part} differs")


def to_numpy(tensor) -> np.ndarray:
  """Returns a torch tensor as a NumPy array without loss; bfloat16 goes through its bits."""
  torch = importlib.import_module("torch")
  tensor = tensor.detach().contiguous()
  if tensor.dtype == torch.bfloat16:
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  return tensor.numpy()


def numpy_dtype(tensor, path: pathlib.Path, name: str) -> np.dtype:
  text = str(tensor.dtype).removeprefix("torch.")
  try:
    return np.dtype(ml_dtypes.bfloat16 if text == "bfloat16" else text)
  except TypeError as error:
    raise ReadError(f"{path}: {name} has dtype {text}, which is not read") from error
