"""rFID is exact over batches, devices and hosts; stored statistics of other images are not used."""

import jax
import numpy as np
import pytest

from tests.evals import fakes, tiny_inception
from unilip_jax.evals import base, feature_statistics, inception, reconstruction, rfid
from unilip_jax.sharding import mesh as mesh_lib

_RFID = ("set/rfid", "set/inception_score", "set/inception_score_std")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  return tiny_inception.write(tmp_path_factory.mktemp("weights"))


def _config(weights, batch_size=8, protocol="torch-fidelity"):
  config = fakes.config(batch_size)
  config.eval.inception, config.eval.inception_protocol = weights, protocol
  return config


def _evaluate(monkeypatch, tmp_path, weights, pixels, *, devices=8, gain=fakes.GAIN, **kw):
  monkeypatch.setattr(
      reconstruction.pipeline, "eval_batches", fakes.eval_batches_of(pixels), raising=False)
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
  evaluate = base.make_evaluators(_config(weights, **kw), fakes.task(), mesh, str(tmp_path))["set"]
  return evaluate({"gain": np.float32(gain)})


def _expected(weights, pixels, protocol, gain=fakes.GAIN):
  """Computes the same from all images at once."""
  context = fakes.context(_config(weights, protocol=protocol), fakes.task(), mesh_lib.make_mesh())
  extractor, steps = context.inception, inception.PROTOCOLS[protocol]
  made = np.clip(gain * (pixels / 255.0 * 2 - 1), -1, 1)
  made = np.round((made + 1) / 2 * 255).astype(np.uint8)
  table = {is_real: inception.levels(steps, is_real=is_real) for is_real in (True, False)}
  outputs = jax.jit(extractor.outputs)
  features = []
  for is_real, images in ((True, pixels), (False, made)):
    images = np.stack([table[is_real][images[..., c], c] for c in range(3)], -1)
    features.append(jax.device_get(outputs(extractor.params, inception.prepare(images, steps))))
  moments = [feature_statistics.Statistics.of(f).moments() for f, _ in features]
  logits, splits = features[1][1], steps.splits
  score = feature_statistics.inception_score(feature_statistics.score_sums(
      logits, feature_statistics.score_split(len(logits), splits), splits))
  return [feature_statistics.frechet_distance(*moments[0], *moments[1]), *score]


@pytest.mark.parametrize("protocol", ["torch-fidelity", "unilip"])
def test_scores_equal_those_of_all_images_at_once(monkeypatch, tmp_path, weights, protocol):
  pixels = fakes.images(13)
  expected = _expected(weights, pixels, protocol)
  config = {"protocol": protocol}
  scores = _evaluate(monkeypatch, tmp_path, weights, pixels, **config)
  # Sums of 128 features of 13 images: a singular covariance, whose root has the square root of their error.
  np.testing.assert_allclose([scores[k] for k in _RFID], expected, rtol=1e-4)
  other = _evaluate(monkeypatch, tmp_path / "other", weights, pixels, devices=1, batch_size=3, **config)
  np.testing.assert_allclose([other[k] for k in _RFID], expected, rtol=1e-4)


def test_stored_reference_is_used_until_the_images_change(monkeypatch, tmp_path, weights):
  pixels = fakes.images(13)
  first = _evaluate(monkeypatch, tmp_path, weights, pixels)
  files = list((tmp_path / rfid.REFERENCE_FOLDER).iterdir())
  assert len(files) == 1
  computed = []
  original = inception.Extractor.compare
  monkeypatch.setattr(
      inception.Extractor, "compare",
      lambda *args, with_reference: computed.append(with_reference) or original(
          *args, with_reference=with_reference))
  assert _evaluate(monkeypatch, tmp_path, weights, pixels) == pytest.approx(first, rel=1e-6)
  assert computed == [False]
  changed = pixels.copy()
  changed[3, 0, 0, 0] ^= 1
  computed.clear()
  second = _evaluate(monkeypatch, tmp_path, weights, changed)
  assert computed == [False, True]
  assert second["set/rfid"] != first["set/rfid"]
  assert list((tmp_path / rfid.REFERENCE_FOLDER).iterdir()) == files
  computed.clear()
  _evaluate(monkeypatch, tmp_path, weights, pixels, protocol="pytorch-fid")
  assert computed == [True]  # another protocol has its own file


def test_no_inception_is_loaded_without_the_setting(tmp_path):
  assert fakes.context(fakes.config(), fakes.task(), mesh_lib.make_mesh(), tmp_path).inception is None


def test_too_few_images_are_named(monkeypatch, tmp_path, weights):
  with pytest.raises(ValueError, match="10 parts needs as many images; there are 5"):
    _evaluate(monkeypatch, tmp_path, weights, fakes.images(5))
