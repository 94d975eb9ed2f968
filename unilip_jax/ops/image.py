"""Pixel ranges and resizes on the device: the only file in which pixels change range.

Ranges: pixels uint8 0..255; unit float32 [0, 1]; signed float32 [-1, 1] (the decoder's output);
imagenet (the ViT's input): unit minus mean over standard deviation per channel.

Resizes follow torch.nn.functional.interpolate: two multiplications by weight matrices of static size. There
are two bicubic kernels: PyTorch's interpolate uses a = −0.75 (position embeddings), PIL and antialiased
resizing a = −0.5 (images, data/).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def unit_from_pixels(pixels: jax.Array) -> jax.Array:
  """Converts uint8[..., 3] in 0..255 to float32 in [0, 1]."""
  return pixels.astype(jnp.float32) / 255.0


def pixels_from_unit(unit: jax.Array) -> jax.Array:
  """Converts float32[..., 3] to uint8, clamped to [0, 1] and rounded to the nearest."""
  return jnp.round(jnp.clip(unit.astype(jnp.float32), 0.0, 1.0) * 255.0).astype(jnp.uint8)


def round_to_8bit(unit: jax.Array) -> jax.Array:
  """Clamps float32 to [0, 1] and rounds it to multiples of 1/255, for evaluation."""
  return jnp.round(jnp.clip(unit.astype(jnp.float32), 0.0, 1.0) * 255.0) / 255.0


def signed_from_unit(unit: jax.Array) -> jax.Array:
  """Converts [0, 1] to float32 in [-1, 1]."""
  return unit.astype(jnp.float32) * 2.0 - 1.0


def unit_from_signed(signed: jax.Array) -> jax.Array:
  """Converts [-1, 1] to float32 in [0, 1], without clamping."""
  return (signed.astype(jnp.float32) + 1.0) / 2.0


def imagenet_from_unit(unit: jax.Array) -> jax.Array:
  """Converts [0, 1] to float32 of zero mean and unit variance per channel of ImageNet."""
  lead = (1,) * (unit.ndim - 1)
  mean = jnp.asarray(IMAGENET_MEAN, jnp.float32).reshape(*lead, 3)
  std = jnp.asarray(IMAGENET_STD, jnp.float32).reshape(*lead, 3)
  return (unit.astype(jnp.float32) - mean) / std


def unit_from_imagenet(image: jax.Array) -> jax.Array:
  """Inverts `imagenet_from_unit`, in float32."""
  lead = (1,) * (image.ndim - 1)
  mean = jnp.asarray(IMAGENET_MEAN, jnp.float32).reshape(*lead, 3)
  std = jnp.asarray(IMAGENET_STD, jnp.float32).reshape(*lead, 3)
  return image.astype(jnp.float32) * std + mean


@functools.cache
def bilinear_weights(
    src: int, dst: int, align_corners: bool = False, antialias: bool = False
) -> np.ndarray:
  """Computes float32[dst, src] weights of a 1-D linear resize in PyTorch's conventions."""
  out = np.arange(dst, dtype=np.float64)
  scale = src / dst
  if antialias:
    support = max(scale, 1.0)  # the triangle widens when shrinking
    centres = (out + 0.5) * scale
    distance = np.abs(np.arange(src)[None] + 0.5 - centres[:, None]) / support
    weights = np.maximum(1.0 - distance, 0.0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
  if align_corners:
    where = out * ((src - 1) / (dst - 1) if dst > 1 else 0.0)
  else:
    where = np.maximum((out + 0.5) * scale - 0.5, 0.0)
  low = np.minimum(np.floor(where).astype(int), src - 1)
  high = np.minimum(low + 1, src - 1)
  fraction = where - low
  weights = np.zeros((dst, src))
  np.add.at(weights, (np.arange(dst), low), 1.0 - fraction)
  np.add.at(weights, (np.arange(dst), high), fraction)
  return weights.astype(np.float32)


@functools.cache
def _bicubic_weights(src: int, dst: int) -> np.ndarray:
  """Computes float32[dst, src] weights of torch's bicubic: a = −0.75, half-pixel centres, clamped edges."""
  a = -0.75
  where = (np.arange(dst, dtype=np.float64) + 0.5) * (src / dst) - 0.5
  low = np.floor(where).astype(int)
  weights = np.zeros((dst, src))
  for tap in range(-1, 3):
    d = np.abs(where - (low + tap))
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    column = np.clip(low + tap, 0, src - 1)
    np.add.at(weights, (np.arange(dst), column), np.where(d <= 1, near, far))
  return weights.astype(np.float32)


def _apply(x: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
  """Resizes [B, H, W, C] along H by `rows` and along W by `columns`, in float32."""
  x = jnp.einsum("oh,bhwc->bowc", rows, x.astype(jnp.float32), precision="highest")
  return jnp.einsum("ow,bhwc->bhoc", columns, x, precision="highest")


def resize_bilinear(
    x: jax.Array, height: int, width: int, *, align_corners: bool = False, antialias: bool = False
) -> jax.Array:
  """Computes torch.nn.functional.interpolate(mode="bilinear").

  Args:
    x: float[B, H, W, C].
    height: of the result.
    width: of the result.
    align_corners: corner pixels map to corner pixels; otherwise half-pixel centres.
    antialias: widen the kernel when shrinking; excludes align_corners.

  Returns:
    float32[B, height, width, C].

  Raises:
    ValueError: for antialias together with align_corners.
  """
  if antialias and align_corners:
    raise ValueError("resize_bilinear: antialias and align_corners exclude each other")
  return _apply(x, bilinear_weights(x.shape[1], height, align_corners, antialias),
                bilinear_weights(x.shape[2], width, align_corners, antialias))


def resize_bicubic(x: jax.Array, height: int, width: int) -> jax.Array:
  """Computes interpolate(mode="bicubic") of PyTorch, no antialias: float32[B, height, width, C]."""
  return _apply(x, _bicubic_weights(x.shape[1], height), _bicubic_weights(x.shape[2], width))


def pad_to_multiple(x: jax.Array, multiple: int) -> tuple[jax.Array, tuple[int, int]]:
  """Reflect-pads right and bottom so that both sides divide by `multiple`.

  Args:
    x: [B, H, W, C].
    multiple: pixels, e.g. the side of one token.

  Returns:
    ([B, H', W', C], (H, W) for `unpad`).

  Raises:
    ValueError: if a side is too short to be reflected that far, as in PyTorch.
  """
  height, width = x.shape[1:3]
  below, right = -height % multiple, -width % multiple
  if below >= height or right >= width:
    raise ValueError(f"image {height}×{width} is too small to reflect to a multiple of {multiple}; "
                     "enlarge it first")
  more = ((0, 0), (0, below), (0, right), (0, 0))
  return jnp.pad(x, more, mode="reflect"), (height, width)


def unpad(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Inverts `pad_to_multiple`."""
  return x[:, :size[0], :size[1]]
