"""Convolutions: the one place that picks a formulation per backend.

TPUs and GPUs use XLA's convolutions everywhere, CPUs those of ops/cpu.py.
"""

import jax

from unilip_jax.ops import backend, cpu

DIMS = ("NHWC", "HWIO", "NHWC")


def conv(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int | None = None) -> jax.Array:
  """Computes a dense 2-D convolution with equal padding on every side.

  Args:
    x: float[B, H, W, C].
    kernel: float[k, k, C, O], k odd.
    stride: of both axes.
    padding: None is k // 2, which gives float[B, ⌈H/stride⌉, ⌈W/stride⌉, O].

  Returns:
    float[B, (H + 2·padding − k) // stride + 1, (W + 2·padding − k) // stride + 1, O].
  """
  if stride == 1 and padding is None and backend.name() == "cpu":
    return cpu.conv(x, kernel)
  return conv_xla(x, kernel, stride, padding)


def conv_xla(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int | None = None) -> jax.Array:
  """Computes `conv` as XLA's convolution."""
  pad = kernel.shape[0] // 2 if padding is None else padding
  return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=DIMS)


def depthwise(x: jax.Array, kernel: jax.Array, batch_axis: int = 0) -> jax.Array:
  """Convolves each channel with its own kernel, stride 1, padding k // 2.

  Args:
    x: float[B, H, W, C]; or float[H, W, B, C], as XLA lays it out on TPUs.
    kernel: float[k, k, 1, C], k odd.
    batch_axis: 0 or 2, that of B.

  Returns:
    float of x's shape.
  """
  if backend.name() == "cpu" and batch_axis == 0:
    return cpu.depthwise(x, kernel)
  return depthwise_grouped(x, kernel, batch_axis)


def depthwise_grouped(x: jax.Array, kernel: jax.Array, batch_axis: int = 0) -> jax.Array:
  """Computes `depthwise` as a grouped convolution."""
  pad = kernel.shape[0] // 2
  dims = ("HWNC", "HWIO", "HWNC") if batch_axis == 2 else DIMS
  return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), [(pad, pad)] * 2, dimension_numbers=dims,
      feature_group_count=x.shape[-1])
