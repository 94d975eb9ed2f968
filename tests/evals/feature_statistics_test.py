"""Fréchet distance, inception score and kernel distance equal the recorded programs."""

import json

import numpy as np
import pytest

from unilip_jax.evals import feature_statistics as lib
from unilip_jax.evals import inception

# {method: its value in the recording}
_RECORDED = {"symmetric": "symmetric_eigenvalue_check", "eigenvalues": "torch_fidelity",
             "sqrtm": "pytorch_fid", "sqrtm-diagonal": "clean_fid"}


@pytest.fixture(scope="module")
def features(recorded):
  with np.load(recorded / "fid" / "features.npz") as z:
    return dict(z)


@pytest.fixture(scope="module")
def metrics(recorded):
  return json.loads((recorded / "fid" / "features_metrics.json").read_text())


@pytest.mark.filterwarnings("ignore:Matrix is singular")
@pytest.mark.parametrize("method", lib.METHODS)
def test_frechet_distances_equal_the_recorded_programs(recorded, method):
  cases = json.loads((recorded / "fid" / "frechet.json").read_text())
  inputs = np.load(recorded / "fid" / "frechet_inputs.npz")
  assert len(cases) == 9
  for name, values in cases.items():
    moments = [inputs[f"{name}.{field}"] for field in ("mu1", "sigma1", "mu2", "sigma2")]
    distance = lib.frechet_distance(*moments, method)
    # Identical distributions: 0 up to rounding, 1.6e-10 in the recordings.
    np.testing.assert_allclose(distance, values[_RECORDED[method]], rtol=1e-6, atol=1e-9, err_msg=name)


def test_symmetric_method_is_exact_where_covariances_are_singular():
  samples = np.random.default_rng(0).standard_normal((15, 48))
  moments = lib.Statistics.of(samples).moments()
  assert abs(lib.frechet_distance(*moments, *moments)) < 1e-12
  shifted = (moments[0] + 2, moments[1])
  np.testing.assert_allclose(lib.frechet_distance(*moments, *shifted), 4 * 48, rtol=1e-13)


def test_distance_of_features_equals_torch_fidelity_and_pytorch_fid(features, metrics):
  moments = [lib.Statistics.of(features[f"features{i}"]).moments() for i in (1, 2)]
  value = lib.frechet_distance(*moments[0], *moments[1])
  np.testing.assert_allclose(value, metrics["pytorch_fid_fid"], rtol=1e-12)
  # torch-fidelity keeps the mean in float32.
  np.testing.assert_allclose(value, metrics["torch_fidelity_fid"]["frechet_inception_distance"], rtol=1e-6)


def test_sums_of_parts_add_up_to_the_moments_of_all(features):
  x = features["features1"]
  total = sum((lib.Statistics.of(part) for part in np.split(x, [1, 130, 131])),
              lib.Statistics.of(x[:0]))
  mean, covariance = total.moments()
  assert total.count == len(x)
  np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-13)
  np.testing.assert_allclose(covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("splits", [1, 2, 10])
def test_inception_scores_equal_torch_fidelity(features, metrics, splits):
  logits = features["logits"]
  split = lib.score_split(len(logits), splits)
  halves = [np.arange(len(logits)) % 2 == i for i in range(2)]  # as on two hosts
  sums = sum(lib.score_sums(logits[half], split[half], splits) for half in halves)
  expected = metrics[f"torch_fidelity_is_splits{splits}_shuffleTrue"]
  mean, deviation = lib.inception_score(sums)
  np.testing.assert_allclose(mean, expected["inception_score_mean"], rtol=1e-10)
  np.testing.assert_allclose(deviation, expected["inception_score_std"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("subsets", "size"), [(10, 50), (100, 100), (5, 250)])
def test_kernel_distances_equal_torch_fidelity(features, metrics, subsets, size):
  expected = metrics[f"torch_fidelity_kid_subsets{subsets}_size{size}"]
  value = lib.kernel_distance(features["features1"], features["features2"], subsets=subsets, size=size)
  # torch-fidelity multiplies float32 features: the deviation over subsets has the error of the mean.
  np.testing.assert_allclose(value, list(expected.values()), atol=1e-6 * value[0])


def test_kernel_distance_equals_clean_fid(features, metrics):
  value, _ = lib.kernel_distance(
      features["features1"], features["features2"], subsets=20, size=100, program="clean-fid",
      seed=metrics["clean_fid_numpy_seed"])
  assert value == pytest.approx(metrics["clean_fid_kid_subsets20_max100"], rel=1e-6)
  few = lib.kernel_distance(features["features1"][:9], features["features2"], program="clean-fid")
  assert few != lib.kernel_distance(features["features1"][:9], features["features2"], size=9)


def test_kernel_distance_of_one_distribution_is_zero_on_average_and_its_definition():
  random = np.random.default_rng(0)
  x, y = random.standard_normal((2, 4000, 8))
  mean, deviation = lib.kernel_distance(x, y, subsets=200, size=20)
  assert abs(mean) < 4 * deviation / np.sqrt(200)  # the biased estimate is at least 0.1
  a, b = x[:5], y[:5] + 1
  kernel = lambda u, v: (u @ v / 8 + 1) ** 3
  within = sum(kernel(s[i], s[j]) for s in (a, b) for i in range(5) for j in range(5) if i != j) / 20
  across = sum(kernel(u, v) for u in a for v in b) / 25
  assert lib.kernel_distance(a, b, subsets=1, size=5)[0] == pytest.approx(within - 2 * across, rel=1e-12)


@pytest.mark.parametrize("name", ["enough_images", "fewer_images_than_features"])
def test_rfid_and_score_equal_those_of_unilips_evaluation(recorded, name):
  """Its Inception is replaced by 4×4 means and two matrices, as in the recording."""
  arrays, stand_in = (np.load(recorded / "recon" / f"{n}.npz") for n in (name, "stand_in_inception"))
  expected = json.loads((recorded / "recon" / "unilip_evaluator.json").read_text())[name]
  signed = np.clip(arrays["decoder_output"].astype(np.float32), -1, 1)
  made = np.round((signed + 1) / 2 * 255).astype(np.uint8)
  protocol = inception.PROTOCOLS["unilip"]

  def outputs(pixels, is_real):
    table = inception.levels(protocol, is_real=is_real)
    x = np.stack([table[pixels[..., c], c] for c in range(3)], 1).astype(np.float64)
    n, side = len(x), x.shape[-1] // 4
    x = x.reshape(n, 3, 4, side, 4, side).mean((3, 5)).reshape(n, -1)
    features = x @ stand_in["patch_to_features"] / 32
    lost = np.mean(np.stack([table[pixels[..., c], c] for c in range(3)], -1) != pixels)
    return features, features @ stand_in["features_to_logits"], lost

  real, _, real_lost = outputs(arrays["real"], True)
  fake, logits, fake_lost = outputs(made, False)
  lost = expected["inception_input_off_by_one"]
  np.testing.assert_allclose(real_lost, lost["real_fraction"], rtol=1e-6)
  np.testing.assert_allclose(fake_lost, lost["fake_fraction"], rtol=1e-6)
  moments = [lib.Statistics.of(x).moments() for x in (real, fake)]
  for method in ("symmetric", "sqrtm-diagonal"):
    np.testing.assert_allclose(
        lib.frechet_distance(*moments[0], *moments[1], method), expected["rFID"], rtol=1e-6)
  sums = lib.score_sums(logits, lib.score_split(len(logits), 1), 1)
  np.testing.assert_allclose(lib.inception_score(sums)[0], expected["InceptionScore"], rtol=1e-6)


def test_too_few_images_and_unknown_methods_are_named():
  one = np.ones((1, 4))
  with pytest.raises(ValueError, match="at least 2 images; there are 1"):
    lib.Statistics.of(one).moments()
  with pytest.raises(ValueError, match="10 parts needs as many images; there are 3"):
    lib.score_split(3, 10)
  with pytest.raises(ValueError, match="subsets of 5 needs as many images; there are 1"):
    lib.kernel_distance(one, one, subsets=1, size=5)
  with pytest.raises(ValueError, match="subsets of 2 needs as many images; there are 1"):
    lib.kernel_distance(one, one, program="clean-fid")
  with pytest.raises(ValueError, match=r"unknown subsets 'kid'.*clean-fid"):
    lib.kernel_distance(one, one, program="kid")
  with pytest.raises(ValueError, match=r"unknown method 'exact'.*symmetric"):
    lib.frechet_distance(one[0], np.eye(4), one[0], np.eye(4), "exact")
