"""Computes image similarity per example: PSNR, SSIM (Wang et al. 2004) and L1, float32 on the devices.

Images are in [0, 1]. `ssim` is the standard SSIM: Gaussian window of 11 × 11 with σ = 1.5, K1 = 0.01,
K2 = 0.03, population covariances, mean over channels and over the pixels whose window lies inside the
image, as in the authors' code and in scikit-image (gaussian_weights=True).

Two other variants take data_range=2 on images in [0, 1], which gives higher values. `ssim_official` is that
of UniLIP's evaluation, from which the published scores are: scikit-image's default, a uniform window of
7 × 7 with sample covariances. `ssim_torchmetrics` is torchmetrics' (since 1.4.2): the Gaussian window,
averaged over all pixels, reflected at the borders.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_WINDOW = 11
_SIGMA = 1.5
_UNIFORM = 7  # pixels of scikit-image's default window
_K1, _K2 = 0.01, 0.03
# The infinite PSNR of identical images would make every mean infinite: they count as 120 dB. An image of
# 1000 × 1000 pixels with one 8-bit value off by one has 113 dB.
_MIN_MSE = 1e-12


def mse(a: jax.Array, b: jax.Array) -> jax.Array:
  """Computes the mean squared error: float32[B, H, W, 3] twice -> float32[B]."""
  return _mean(jnp.square(a - b))


def l1(a: jax.Array, b: jax.Array) -> jax.Array:
  """Computes the mean absolute error: float32[B, H, W, 3] twice -> float32[B]."""
  return _mean(jnp.abs(a - b))


def psnr(a: jax.Array, b: jax.Array) -> jax.Array:
  """Computes the peak signal-to-noise ratio of each pair; the peak is 1.

  Args:
    a: float32[B, H, W, 3] in [0, 1].
    b: the same.

  Returns:
    float32[B] in decibels, at most 120.
  """
  return -10.0 * jnp.log10(jnp.maximum(mse(a, b), _MIN_MSE))


@functools.partial(jax.jit, static_argnames=("data_range", "border"))
def ssim(
    a: jax.Array, b: jax.Array, *, data_range: float = 1.0, border: str = "crop"
) -> jax.Array:
  """Computes the structural similarity of each pair.

  Args:
    a: float32[B, H, W, C] in [0, 1], sides of at least 11 pixels.
    b: the same.
    data_range: of the stabilising constants; 1 is the standard for [0, 1].
    border: "crop" averages where the window lies inside the image, "reflect" over all pixels of the
      image, reflected at its borders without repeating the edge pixel.

  Returns:
    float32[B], at most 1.

  Raises:
    ValueError: for images smaller than the window, or another border.
  """
  height, width = a.shape[1:3]
  if min(height, width) < _WINDOW:
    raise ValueError(f"ssim: images of {height}×{width} are smaller than the window of {_WINDOW}")
  if border not in ("crop", "reflect"):
    raise ValueError(f"ssim: unknown border {border!r}; choose crop or reflect")
  rows, columns = _window_matrix(height, border), _window_matrix(width, border)

  def blur(x):  # [B, H, W, C] -> [B, H - 10, W - 10, C], or the same size with border reflect
    # Matrix multiplications instead of depthwise convolutions, which are slow on every backend. Full
    # precision, since the variances below are differences of nearly equal numbers.
    x = jnp.einsum("yH,BHWc->ByWc", rows, x, precision="highest")
    return jnp.einsum("xW,ByWc->Byxc", columns, x, precision="highest")

  # Variances are differences of squares; around 0.5 these are a quarter as large, and so is the rounding.
  a, b = a - 0.5, b - 0.5
  mean_a, mean_b = blur(a), blur(b)
  var_a = jnp.maximum(blur(a * a) - mean_a * mean_a, 0.0)
  var_b = jnp.maximum(blur(b * b) - mean_b * mean_b, 0.0)
  covariance = blur(a * b) - mean_a * mean_b
  mean_a, mean_b = mean_a + 0.5, mean_b + 0.5
  c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
  luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
  structure = (2 * covariance + c2) / (var_a + var_b + c2)
  return _mean(luminance * structure)


def ssim_torchmetrics(a: jax.Array, b: jax.Array) -> jax.Array:
  """Computes torchmetrics' SSIM with data_range=2; arguments and result as of `ssim`."""
  return ssim(a, b, data_range=2.0, border="reflect")


@functools.partial(jax.jit, static_argnames="data_range")
def ssim_official(a: jax.Array, b: jax.Array, *, data_range: float = 2.0) -> jax.Array:
  """Computes the SSIM of UniLIP's evaluation: uniform window of 7 × 7, sample covariances.

  Sums over a window and their products are integers of less than 32 bits: variances have no rounding.

  Args:
    a: float32[B, H, W, C] in [0, 1], of 8-bit values; sides of at least 7 pixels.
    b: the same.
    data_range: of the stabilising constants; 2 is UniLIP's, 1 the standard for [0, 1].

  Returns:
    float32[B], at most 1.

  Raises:
    ValueError: for images smaller than the window.
  """
  height, width = a.shape[1:3]
  if min(height, width) < _UNIFORM:
    raise ValueError(f"ssim_official: images of {height}×{width} are smaller than the window of {_UNIFORM}")
  a, b = (jnp.round(x * 255.0).astype(jnp.int32) for x in (a, b))
  window = (1, _UNIFORM, _UNIFORM, 1)
  window_sum = lambda x: jax.lax.reduce_window(x, np.int32(0), jax.lax.add, window, (1,) * 4, "VALID")
  count = _UNIFORM**2
  sum_a, sum_b = window_sum(a), window_sum(b)
  spread = lambda x, y, sum_x, sum_y: (
      (count * window_sum(x * y) - sum_x * sum_y).astype(jnp.float32) / (count * (count - 1)))
  mean_a, mean_b = (x.astype(jnp.float32) / count for x in (sum_a, sum_b))
  c1, c2 = (_K1 * data_range * 255) ** 2, (_K2 * data_range * 255) ** 2
  luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
  structure = (2 * spread(a, b, sum_a, sum_b) + c2) / (
      spread(a, a, sum_a, sum_a) + spread(b, b, sum_b, sum_b) + c2)
  return _mean(luminance * structure)


def _mean(x: jax.Array) -> jax.Array:
  """Averages each example, [B, H, W, C] -> [B], rows first.

  XLA may add all values of a single mean one after another: error 1.7e-6 at 32 px; in three steps the error
  is 2.5e-7 at every size.
  """
  return jnp.mean(jnp.mean(jnp.mean(x, axis=2), axis=1), axis=1)


def _window_matrix(size: int, border: str) -> np.ndarray:
  """Makes the matrix of the blur along one axis: row i is the Gaussian window around output pixel i.

  Returns:
    float32[size - 10, size] for border crop, float32[size, size] for reflect.
  """
  half = _WINDOW // 2
  offsets = np.arange(-half, half + 1)
  window = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
  window /= window.sum()
  centres = np.arange(half, size - half) if border == "crop" else np.arange(size)
  matrix = np.zeros((len(centres), size))
  for row, centre in enumerate(centres):
    positions = np.abs(centre + offsets)  # reflected at 0, then at size - 1
    positions = np.where(positions >= size, 2 * (size - 1) - positions, positions)
    np.add.at(matrix[row], positions, window)
  return matrix.astype(np.float32)
