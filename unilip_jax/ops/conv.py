"""Convolutions: the one place that picks a formulation per backend.

XLA's CPU backend runs dense convolutions well but depthwise ones badly: with gradients, 3×3 over
[32, 8, 8, 1024] takes 251 ms as a grouped convolution and 31 ms as nine shifted products on two
cores (benchmarks/depthwise.py). TPUs and GPUs keep the grouped convolution.
"""

import jax
import jax.numpy as jnp

_DIMS = ("NHWC", "HWIO", "NHWC")


def conv(x: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
  """Dense 2-D convolution with PyTorch's padding of k // 2 on every side.

  Args:
    x: float[B, H, W, C].
    kernel: float[k, k, C, O], k odd.
    stride: of both axes.

  Returns:
    float[B, ⌈H/stride⌉, ⌈W/stride⌉, O].
  """
  pad = kernel.shape[0] // 2
  return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=_DIMS)


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


def depthwise_shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`depthwise` as a sum of k² shifted products."""
  side = kernel.shape[0]
  pad = side // 2
  _, h, w, _ = x.shape
  padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  return sum(
      padded[:, i:i + h, j:j + w] * kernel[i, j][None, None]
      for i in range(side) for j in range(side))
