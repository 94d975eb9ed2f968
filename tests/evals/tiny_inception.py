"""Imported weights of Inception-v3 with a sixteenth of its channels."""

import pathlib

import jax
import numpy as np
import torch

from unilip_jax.common import tree
from unilip_jax.convert import importer
from unilip_jax.convert import inception as conversion
from unilip_jax.models import inception

DIMS = inception.InceptionDims(divisor=16, classes=12)
FEATURES = DIMS.features


def tensors() -> dict[str, np.ndarray]:
  """Random tensors by PyTorch's names, counters of batch norm included."""
  x = jax.ShapeDtypeStruct((1, inception.SIDE, inception.SIDE, 3), np.float32)
  shapes = tree.flatten(jax.eval_shape(inception.Inception(DIMS).init, jax.random.key(0), x)["params"])
  random, result = np.random.default_rng(0), {}
  for rule in conversion.rules():
    path = rule.path.removeprefix("inception/")
    shape = shapes[path].shape
    if len(shape) > 1:
      value = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
    else:
      value = random.uniform(0.5, 1, shape)
    if rule.torch == "fc.weight":
      value *= 10  # images then differ in their classes
    result[rule.torch] = rule.move.to_torch(value.astype(np.float32)).copy()
    if rule.torch.endswith("running_var"):
      result[rule.torch.replace("running_var", "num_batches_tracked")] = np.array(0)
  return result


def write(folder: pathlib.Path) -> str:
  """Writes a .pth, imports it and returns the folder of weights."""
  torch.save({name: torch.from_numpy(np.asarray(value)) for name, value in tensors().items()},
             folder / "inception.pth")
  importer.import_weights([str(folder / "inception.pth")], str(folder / "inception"))
  return str(folder / "inception")
