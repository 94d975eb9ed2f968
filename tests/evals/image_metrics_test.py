"""PSNR, SSIM and L1 against scikit-image, live and recorded, and a numpy reference."""

import json

import numpy as np
from PIL import Image
import pytest
from skimage import metrics as sk

from tests import parity
from unilip_jax.evals import image_metrics

pytestmark = pytest.mark.optimized  # SSIM to 1e-6


def _pairs(size=48, width=None, count=4):
  """8-bit images on [0, 1]: smooth, noisy, constant and saturated."""
  rng = np.random.default_rng(0)
  shape = (count, size, width or size, 3)
  y, x = np.mgrid[:size, :shape[2]]
  smooth = np.stack([np.sin(x / 7), np.cos(y / 5), np.sin((x + y) / 9)], -1) / 2 + 0.5
  a = np.stack([smooth, rng.random(shape[1:]), np.full(shape[1:], 0.3), smooth > 0.5])
  b = np.clip(a + rng.normal(0, [[[[0.02]]], [[[0.2]]], [[[0.05]]], [[[0.1]]]], shape), 0, 1)
  return tuple(np.round(v * 255).astype(np.float32) / np.float32(255) for v in (a, b))


def test_psnr_equals_scikit_image():
  a, b = _pairs()
  reference = [sk.peak_signal_noise_ratio(x, y, data_range=1) for x, y in zip(a, b)]
  parity.assert_parity("PSNR", "scikit-image", image_metrics.psnr(a, b), reference)


def _sk_ssim(a, b, data_range):
  return [
      sk.structural_similarity(
          x.astype(np.float64), y.astype(np.float64), data_range=data_range, channel_axis=-1,
          gaussian_weights=True, sigma=1.5, use_sample_covariance=False) for x, y in zip(a, b)]


@pytest.mark.parametrize("shape", [(48, None), (33, 57), (112, None)])
@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_ssim_equals_scikit_image(shape, data_range):
  a, b = _pairs(*shape)
  value = image_metrics.ssim(a, b, data_range=data_range)
  parity.assert_parity(
      f"SSIM, data range {data_range:g}", "scikit-image", value, _sk_ssim(a, b, data_range))


@pytest.mark.parametrize("shape", [(48, None), (33, 57)])
def test_ssim_of_torchmetrics_is_data_range_2_over_the_reflected_image(shape):
  a, b = _pairs(*shape)
  # scikit-image drops the 5 pixels at each border that the padding adds: all of the image counts.
  padded = [np.pad(v, ((0, 0), (5, 5), (5, 5), (0, 0)), mode="reflect") for v in (a, b)]
  reference = _sk_ssim(*padded, data_range=2.0)
  parity.assert_parity(
      "SSIM, torchmetrics' variant", "scikit-image", image_metrics.ssim_torchmetrics(a, b), reference)


@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_official_ssim_is_the_default_of_scikit_image(data_range):
  a, b = _pairs(33, 57)
  reference = [sk.structural_similarity(x.astype(np.float64), y.astype(np.float64), channel_axis=-1,
                                        data_range=data_range) for x, y in zip(a, b)]
  parity.assert_parity("SSIM, official variant", "scikit-image",
                       image_metrics.ssim_official(a, b, data_range=data_range), reference, rtol=1e-6)


def test_psnr_and_ssim_equal_recorded_scikit_image(recorded):
  for row in json.loads((recorded / "psnr_ssim" / "scores.json").read_text()):
    i = row["image"]
    if i == 4:  # not in the trimmed recordings
      continue
    a, b = (np.asarray(Image.open(recorded / f"{name}.png"), np.float32)[None] / 255
            for name in (f"images/{i}", f"psnr_ssim/noisy_{i}"))
    values = {"psnr_float01": image_metrics.psnr(a, b), "ssim_gaussian": image_metrics.ssim(a, b),
              "ssim_float01_range1": image_metrics.ssim_official(a, b, data_range=1.0),
              "ssim_float01_range2": image_metrics.ssim_official(a, b)}
    for name, value in values.items():
      expected = min(row[name], 120.0)  # the PSNR of identical images is infinite there
      np.testing.assert_allclose(value[0], expected, rtol=1e-6, err_msg=f"{name} of image {i}")


def test_official_scores_equal_unilips_recorded_evaluation(recorded):
  expected = json.loads((recorded / "recon" / "unilip_evaluator.json").read_text())["enough_images"]
  with np.load(recorded / "recon" / "enough_images.npz") as z:
    real = z["real"].astype(np.float32) / 255
    made = np.clip(z["decoder_output"].astype(np.float32), -1, 1)
  made = np.round((made + 1) / 2 * 255).astype(np.float32) / 255
  ssim = image_metrics.ssim_official(made, real)
  np.testing.assert_allclose(image_metrics.psnr(made, real), expected["psnr_per_image"], rtol=1e-6)
  np.testing.assert_allclose(ssim, expected["ssim_data_range_2_per_image"], rtol=1e-6)
  np.testing.assert_allclose(np.mean(ssim), expected["ssim"], rtol=1e-6)


def test_ssim_equals_the_definition_at_one_window():
  a, b = (v[:2, :11, :11] for v in _pairs())
  g = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
  w = np.outer(g, g)[..., None] / np.outer(g, g).sum()
  reference = []
  for x, y in zip(a.astype(np.float64), b.astype(np.float64)):
    mx, my = (w * x).sum((0, 1)), (w * y).sum((0, 1))
    vx, vy = (w * (x - mx) ** 2).sum((0, 1)), (w * (y - my) ** 2).sum((0, 1))
    cov = (w * (x - mx) * (y - my)).sum((0, 1))
    reference.append(np.mean(
        (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))))
  parity.assert_parity("SSIM", "its definition", image_metrics.ssim(a, b), reference)


def test_wider_data_range_reads_higher():
  a, b = _pairs()
  assert (image_metrics.ssim(a, b, data_range=2.0) > image_metrics.ssim(a, b)).all()


def test_identical_images_are_finite():
  a, _ = _pairs()
  np.testing.assert_allclose(image_metrics.ssim(a, a), 1.0, rtol=1e-6)
  np.testing.assert_allclose(image_metrics.psnr(a, a), 120.0, rtol=1e-6)
  assert (np.asarray(image_metrics.l1(a, a)) == 0).all()


def test_l1():
  a, b = _pairs()
  parity.assert_parity("L1", "numpy", image_metrics.l1(a, b), np.abs(a - b).mean((1, 2, 3)))


def test_images_below_the_window_are_refused():
  a, b = _pairs(size=10)
  with pytest.raises(ValueError, match="window"):
    image_metrics.ssim(a, b)
  with pytest.raises(ValueError, match="window of 7"):
    image_metrics.ssim_official(a[:, :6], b[:, :6])


def test_unknown_border_is_named():
  a, b = _pairs()
  with pytest.raises(ValueError, match="edge"):
    image_metrics.ssim(a, b, border="edge")
