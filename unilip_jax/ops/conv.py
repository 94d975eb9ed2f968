"""Convolutions: the one place that picks a formulation per backend.

XLA's CPU backend runs dense convolutions well but depthwise ones badly: with gradients, 3×3 over
[32, 8, 8, 1024] takes 388 ms as a grouped convolution and 29 ms as nine shifted products on one
core (benchmarks/depthwise.py). TPUs and GPUs keep the grouped convolution.
"""

import jax
import jax.numpy as jnp

_DIMS = ("NHWC", "HWIO", "NHWC")


def conv(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, nested: bool = False) -> jax.Array:
  """Dense 2-D convolution with PyTorch's padding of k // 2 on every side.

  Args:
    x: float[B, H, W, C].
    kernel: float[k, k, C, O], k odd.
    stride: of both axes.
    nested: the call stands inside a lax.cond or loop. XLA's CPU backend runs the gradients of
      convolutions badly there (the tiny discriminator: 7.8 s in place of 0.6 s), so a CPU then takes
      products of patches.

  Returns:
    float[B, ⌈H/stride⌉, ⌈W/stride⌉, O].
  """
  if nested and stride == 1 and jax.default_backend() == "cpu":
    return conv_patches(x, kernel)
  pad = kernel.shape[0] // 2
  return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=_DIMS)


def conv_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`conv` at stride 1 as one product over k×k patches."""
  side, _, channels, features = kernel.shape
  pad = side // 2
  b, h, w, _ = x.shape
  padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  patches = jnp.concatenate(
      [padded[:, i:i + h, j:j + w] for i in range(side) for j in range(side)], axis=-1)
  y = patches.reshape(-1, side * side * channels) @ kernel.reshape(-1, features)
  return y.reshape(b, h, w, features)


def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Each channel with its own kernel, stride 1, padding k // 2.

  Args:
    x: float[B, H, W, C].
    kernel: float[k, k, 1, C], k odd.

  Returns:
    float[B, H, W, C].
  """
  if jax.default_backend() == "cpu":
    return depthwise_shifts(x, kernel)
  return depthwise_grouped(x, kernel)


def depthwise_grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`depthwise` as a grouped convolution."""
  pad = kernel.shape[0] // 2
  return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), [(pad, pad)] * 2, dimension_numbers=_DIMS,
      feature_group_count=x.shape[-1])


@jax.custom_vjp
def depthwise_shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`depthwise` as a sum of k² shifted products."""
  side = kernel.shape[0]
  _, h, w, _ = x.shape
  padded = _pad(x, side)
  return sum(
      padded[:, i:i + h, j:j + w] * kernel[i, j][None, None]
      for i in range(side) for j in range(side))


def _pad(x: jax.Array, side: int) -> jax.Array:
  pad = side // 2
  return jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def _shifts_forward(x: jax.Array, kernel: jax.Array):
  return depthwise_shifts(x, kernel), (x, kernel)


def _shifts_backward(saved, dy: jax.Array):
  """The kernel's gradient goes image by image, for the cache: at once, k² products of the whole batch
  are written out and read again, which takes 2 to 6 times as long."""
  x, kernel = saved
  side = kernel.shape[0]
  _, h, w, c = x.shape

  def add(total, image):
    padded, d = image
    return total + jnp.stack([
        (padded[i:i + h, j:j + w] * d).astype(jnp.float32).sum((0, 1))
        for i in range(side) for j in range(side)]), None

  total, _ = jax.lax.scan(add, jnp.zeros((side**2, c), jnp.float32), (_pad(x, side), dy))
  dkernel = total.reshape(side, side, 1, c).astype(kernel.dtype)
  return depthwise_shifts(dy, kernel[::-1, ::-1]), dkernel


depthwise_shifts.defvjp(_shifts_forward, _shifts_backward)
