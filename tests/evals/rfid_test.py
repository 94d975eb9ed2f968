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


def _evaluate(monkeypatch, tmp_path, weights, pixels, *, devices=1, gain=fakes.GAIN, **kw):
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


pytestmark = pytest.mark.quick  # 94 convolutions


@pytest.mark.parametrize("protocol", ["torch-fidelity", "unilip"])
def test_scores_equal_those_of_all_images_at_once(monkeypatch, tmp_path, weights, protocol):
  pixels = fakes.images(13)
  expected = _expected(weights, pixels, protocol)
  scores = _evaluate(monkeypatch, tmp_path, weights, pixels, devices=2, batch_size=4, protocol=protocol)
  # 128 features of 13 images: small differences of float32 sums.
  np.testing.assert_allclose([scores[k] for k in _RFID], expected, rtol=1e-4, atol=1e-6)


def test_stored_reference_is_used_until_the_images_change(monkeypatch, tmp_path, weights):
  pixels = fakes.images(13)
  first = _evaluate(monkeypatch, tmp_path, weights, pixels)
  files = list((tmp_path / rfid.REFERENCE_FOLDER).iterdir())
  assert len(files) == 1
  computed = []
  original = inception.Extractor.__call__
  monkeypatch.setattr(
      inception.Extractor, "__call__",
      lambda *args, is_real: computed.append(is_real) or original(*args, is_real=is_real))
  assert _evaluate(monkeypatch, tmp_path, weights, pixels) == pytest.approx(first, rel=1e-6)
  assert computed == [False, False]  # two batches
  changed = pixels.copy()
  changed[3, 0, 0, 0] ^= 1
  computed.clear()
  second = _evaluate(monkeypatch, tmp_path, weights, changed)
  assert computed == [False, False, False, True, False, True]  # and again with the originals
  assert second["set/rfid"] != first["set/rfid"]
  assert list((tmp_path / rfid.REFERENCE_FOLDER).iterdir()) == files


def test_each_protocol_and_set_has_its_own_reference(tmp_path):
  keys = [{"protocol": "torch-fidelity"}, {"protocol": "unilip"}]
  reference = rfid.Reference(feature_statistics.Statistics.of(np.ones((3, 2))), 2**64 - 1)
  rfid.Cache(tmp_path, "set", keys[0]).save(reference)
  assert rfid.Cache(tmp_path, "set", keys[1]).load() is None
  assert rfid.Cache(tmp_path, "other", keys[0]).load() is None
  loaded = rfid.Cache(tmp_path, "set", keys[0]).load()
  assert (loaded.digest, loaded.statistics.count) == (2**64 - 1, 3)
  np.testing.assert_array_equal(loaded.statistics.outer, reference.statistics.outer)


def test_no_inception_is_loaded_without_the_setting(tmp_path):
  assert fakes.context(fakes.config(), fakes.task(), mesh_lib.make_mesh(), tmp_path).inception is None


def test_too_few_images_are_named(monkeypatch, tmp_path, weights):
  with pytest.raises(ValueError, match="10 parts needs as many images; there are 5"):
    _evaluate(monkeypatch, tmp_path, weights, fakes.images(5))
