"""Inception-v3 features of images by the preprocessing of each program, whose numbers differ.

torch-fidelity  UniLIP's kind, the default: TensorFlow 1's bilinear resize to 299 pixels (source i · in/299,
                no half pixel), then (x − 128)/128
unilip          the same after the loss of levels in UniLIP's evaluation; inception score of one part
pytorch-fid     PyTorch's bilinear resize (half-pixel centres, no antialias) in [0, 1], then 2x − 1
clean-fid       PIL's bicubic resize with antialias, clipped, not rounded, then (x − 128)/128
legacy_pytorch  clean-fid's mode of that name: as pytorch-fid, but resized in [0, 255]
legacy_tensorflow  clean-fid's mode of that name: its network resizes as TensorFlow 1, as torch-fidelity

UniLIP computes the network in float64, the others in float32, as here. pytorch-fid and clean-fid have no
inception score; here it is torch-fidelity's (10 parts) of the same logits. The kernel distance of clean-fid
and its modes chooses subsets by clean-fid's rule, that of the others by torch-fidelity's.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unilip_jax.common import paths
from unilip_jax.models import inception, presets
from unilip_jax.ops import image as image_ops
from unilip_jax.sharding import activations
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import restore, stored

MODULE = "inception"


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How images become features.

  Attributes:
    weights: (pixels of a side) -> float32[299, pixels], the resize along one axis.
    in_unit: whether values are resized in [0, 1].
    two_x_minus_1: whether values in [0, 1] are scaled by 2x − 1, instead of (x − 128)/128 of [0, 255].
    clipped: whether the resize is clipped to [0, 255].
    truncated: whether levels are lost as in UniLIP's evaluation.
    splits: parts of the inception score.
    subsets: whose subsets the kernel distance takes, a key of feature_statistics.SUBSETS.
  """

  weights: Callable[[int], np.ndarray]
  in_unit: bool = False
  two_x_minus_1: bool = False
  clipped: bool = False
  truncated: bool = False
  splits: int = 10
  subsets: str = "torch-fidelity"


@functools.cache
def _tensorflow1_weights(size: int) -> np.ndarray:
  """Weights of TensorFlow 1's bilinear resize without align_corners."""
  where = np.arange(inception.SIDE, dtype=np.float32) * np.float32(size / inception.SIDE)
  low = np.minimum(np.floor(where).astype(int), size - 1)
  weights = np.zeros((inception.SIDE, size), np.float32)
  rows = np.arange(inception.SIDE)
  np.add.at(weights, (rows, low), 1 - (where - low))
  np.add.at(weights, (rows, np.minimum(low + 1, size - 1)), where - low)
  return weights


@functools.cache
def _pil_bicubic_weights(size: int) -> np.ndarray:
  """Weights of PIL's bicubic resize: a = −0.5, widened when it shrinks."""
  scale = size / inception.SIDE
  centres = (np.arange(inception.SIDE) + 0.5) * scale
  d = np.abs(np.arange(size)[None] + 0.5 - centres[:, None]) / max(scale, 1.0)
  near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
  weights = np.where(d < 1, near, np.where(d < 2, far, 0.0))
  return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _pytorch_weights(size: int) -> np.ndarray:
  return image_ops.bilinear_weights(size, inception.SIDE)


PROTOCOLS: Mapping[str, Protocol] = {
    "torch-fidelity": Protocol(_tensorflow1_weights),
    "unilip": Protocol(_tensorflow1_weights, truncated=True, splits=1),
    "pytorch-fid": Protocol(_pytorch_weights, in_unit=True, two_x_minus_1=True),
    "clean-fid": Protocol(_pil_bicubic_weights, clipped=True, subsets="clean-fid"),
    "legacy_pytorch": Protocol(_pytorch_weights, two_x_minus_1=True, subsets="clean-fid"),
    "legacy_tensorflow": Protocol(_tensorflow1_weights, subsets="clean-fid")}


def find_protocol(name: str, setting: str = "--protocol") -> Protocol:
  """Returns the protocol of a name.

  Raises:
    ValueError: for an unknown name.
  """
  if name not in PROTOCOLS:
    raise ValueError(f"{setting}={name!r}: choose {', '.join(PROTOCOLS)}")
  return PROTOCOLS[name]


def prepare(pixels: Any, protocol: Protocol) -> Any:
  """Resizes and scales images.

  Args:
    pixels: uint8[B, H, W, 3]; a NumPy array is computed on the host, which compiles nothing for each size.
    protocol: of PROTOCOLS.

  Returns:
    float32[B, 299, 299, 3], the input of the network.
  """
  np_like, options = (np, {"optimize": True}) if isinstance(pixels, np.ndarray) else (
      jnp, {"precision": "highest"})
  x = pixels.astype(np.float32)
  if protocol.in_unit:
    x = x / np.float32(255)
  rows, columns = (protocol.weights(size) for size in x.shape[1:3])
  x = np_like.einsum("ow,bhwc->bhoc", columns, x, **options)
  x = np_like.einsum("oh,bhwc->bowc", rows, x, **options)
  if protocol.clipped:
    x = np_like.clip(x, 0, 255)
  if protocol.two_x_minus_1:
    return 2 * (x if protocol.in_unit else x / np.float32(255)) - 1
  return (x - 128) / 128


def levels(protocol: Protocol, *, is_real: bool) -> np.ndarray:
  """Returns uint8[256, 3]: the level that stands for each 8-bit level of a channel.

  UniLIP brings originals to ImageNet's mean and deviation and back, reconstructions to [-1, 1] and back,
  in float32, and truncates. That lowers 95 levels of reconstructions, and 62, 39, 36 of originals.
  """
  level = np.repeat(np.arange(256, dtype=np.float32)[:, None], 3, 1)
  if not protocol.truncated:
    return level.astype(np.uint8)
  if is_real:
    mean, std = (np.array([v], np.float32) for v in (image_ops.IMAGENET_MEAN, image_ops.IMAGENET_STD))
    back = (level / np.float32(255) - mean) / std * std + mean
  else:
    back = ((level - np.float32(127.5)) / np.float32(127.5) + 1) / 2
  return (back * np.float32(255)).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Extractor:
  """Inception-v3 with a protocol.

  Attributes:
    dims: of the network.
    protocol: a key of PROTOCOLS.
    params: weights on the devices.
    fingerprint: of the weights.
    mesh: of the devices.
  """

  dims: inception.InceptionDims
  protocol: str
  params: Any
  fingerprint: str
  mesh: jax.sharding.Mesh

  @property
  def steps(self) -> Protocol:
    return PROTOCOLS[self.protocol]

  def outputs(self, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes (features, logits without bias) of prepared images: float32[B, D], float32[B, classes]."""
    outputs = inception.Inception(self.dims).apply({"params": params}, x)
    return outputs["2048"], outputs["logits_unbiased"]

  def __call__(self, pixels: jax.Array, *, is_real: bool) -> tuple[jax.Array, jax.Array]:
    """Computes the same of uint8[B, H, W, 3], sharded over the devices; `is_real` for originals."""
    return self._compiled(self.params, levels(self.steps, is_real=is_real), pixels)

  @functools.cached_property
  def _compiled(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """One program for originals and reconstructions: the table of levels is an argument."""
    def run(params, table, pixels):
      levels_of = jnp.stack([table[:, c][pixels[..., c]] for c in range(3)], -1)
      return self.outputs(params, prepare(levels_of, self.steps))

    return jax.jit(activations.under(self.mesh, run), out_shardings=mesh_lib.batch_sharding(self.mesh))


def open_weights(source: str, setting: str) -> tuple[inception.InceptionDims, Any, stored.Stored]:
  """Opens imported weights; reads no array.

  Returns:
    (dimensions, shapes of the parameters, where they are stored).

  Raises:
    FileNotFoundError: if the folder is absent, or holds another module.
  """
  paths.expand(source, setting)
  origins = restore.find_modules([source], [MODULE])
  if not origins:
    raise FileNotFoundError(f"{setting}={source} lacks the module {MODULE}; import "
                            "pt_inception-2015-12-05-6726825d.pth (docs/evals.md)")
  dims = presets.from_json(inception.InceptionDims, dims_lib.module_dims(origins[MODULE].model)[MODULE])
  return dims, _shapes(dims), origins[MODULE]


@functools.cache
def _shapes(dims: inception.InceptionDims) -> Any:
  image = jax.ShapeDtypeStruct((1, inception.SIDE, inception.SIDE, 3), np.float32)
  return jax.eval_shape(inception.Inception(dims).init, jax.random.key(0), image)["params"]
