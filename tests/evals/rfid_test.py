"""rFID is exact over batches, devices and hosts; stored statistics of other images are not used."""

import jax
import numpy as np
import pytest

from tests.evals import fakes, tiny_inception
from unilip_jax.evals import base, feature_statistics, inception, reconstruction, rfid
from unilip_jax.sharding import mesh as mesh_lib

_RFID = ("set/rfid", "set/inception_score", "set/inception_score_std")


def _evaluate(monkeypatch, tmp_path, pixels, *, devices=8, batch_size=8, protocol="torch-fidelity"):
  monkeypatch.setattr(
      reconstruction.pipeline, "eval_batches", fakes.eval_batches_of(pixels), raising=False)
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
  monkeypatch.setattr(base.Context, "inception", fakes.extractor(mesh, protocol))
  evaluate = base.make_evaluators(fakes.config(batch_size), fakes.task(), mesh, str(tmp_path))["set"]
  return evaluate({"gain": np.float32(fakes.GAIN)})


def _expected(pixels, protocol):
  """Computes the same from all images at once."""
  extractor, steps = fakes.extractor(mesh_lib.make_mesh(), protocol), inception.PROTOCOLS[protocol]
  made = np.clip(fakes.GAIN * (pixels / 255.0 * 2 - 1), -1, 1)
  made = np.round((made + 1) / 2 * 255).astype(np.uint8)
  table = {is_real: inception.levels(steps, is_real=is_real) for is_real in (True, False)}
  features = []
  for is_real, images in ((True, pixels), (False, made)):
    images = np.stack([table[is_real][images[..., c], c] for c in range(3)], -1)
    features.append(jax.device_get(
        extractor.outputs(extractor.params, inception.prepare(images, steps))))
  moments = [feature_statistics.Statistics.of(f).moments() for f, _ in features]
  logits, splits = features[1][1], steps.splits
  score = feature_statistics.inception_score(feature_statistics.score_sums(
      logits, feature_statistics.score_split(len(logits), splits), splits))
  return [feature_statistics.frechet_distance(*moments[0], *moments[1]), *score]


@pytest.mark.parametrize("protocol", inception.PROTOCOLS)
def test_scores_equal_those_of_all_images_at_once(monkeypatch, tmp_path, protocol):
  pixels = fakes.images(29)
  expected = _expected(pixels, protocol)
  for devices, batch_size in ((8, 8), (2, 10)):
    scores = _evaluate(monkeypatch, tmp_path / str(devices), pixels, devices=devices,
                       batch_size=batch_size, protocol=protocol)
    np.testing.assert_allclose([scores[k] for k in _RFID], expected, rtol=1e-4, atol=1e-6)


def test_stored_reference_is_used_until_the_images_change(monkeypatch, tmp_path):
  pixels = fakes.images(13)
  first = _evaluate(monkeypatch, tmp_path, pixels)
  files = list((tmp_path / rfid.REFERENCE_FOLDER).iterdir())
  assert len(files) == 1
  computed = []
  original = inception.Extractor.__call__
  monkeypatch.setattr(
      inception.Extractor, "__call__",
      lambda *args, is_real: computed.append(is_real) or original(*args, is_real=is_real))
  assert _evaluate(monkeypatch, tmp_path, pixels) == pytest.approx(first, rel=1e-6)
  assert computed == [False, False]  # two batches
  changed = pixels.copy()
  changed[3] = 255 - changed[3]
  computed.clear()
  second = _evaluate(monkeypatch, tmp_path, changed)
  assert computed == [False, False, False, True, False, True]  # and again with the originals
  assert second["set/rfid"] != first["set/rfid"]
  assert list((tmp_path / rfid.REFERENCE_FOLDER).iterdir()) == files
  content = files[0].read_bytes()
  for damage in (content[:len(content) // 2], b"", b"junk"):
    files[0].write_bytes(damage)
    cache = rfid.Cache(tmp_path, "set", {})
    cache._path = files[0]
    assert cache.load() is None  # and is computed again


def test_each_protocol_and_set_has_its_own_reference(tmp_path):
  keys = [{"protocol": "torch-fidelity"}, {"protocol": "unilip"}]
  reference = rfid.Reference(feature_statistics.Statistics.of(np.ones((3, 2))), 2**64 - 1)
  rfid.Cache(tmp_path, "set", keys[0]).save(reference)
  assert rfid.Cache(tmp_path, "set", keys[1]).load() is None
  assert rfid.Cache(tmp_path, "other", keys[0]).load() is None
  loaded = rfid.Cache(tmp_path, "set", keys[0]).load()
  assert (loaded.digest, loaded.statistics.count) == (2**64 - 1, 3)
  np.testing.assert_array_equal(loaded.statistics.outer, reference.statistics.outer)


def test_the_setting_loads_imported_weights(tmp_path):
  config, mesh = fakes.config(), mesh_lib.make_mesh()
  assert fakes.context(config, fakes.task(), mesh, tmp_path).inception is None
  config.eval.inception = tiny_inception.write(tmp_path)
  extractor = fakes.context(config, fakes.task(), mesh, tmp_path).inception
  assert (extractor.dims, extractor.protocol) == (tiny_inception.DIMS, "torch-fidelity")
  np.testing.assert_array_equal(
      extractor.params["fc_kernel"], tiny_inception.tensors()["fc.weight"].T)
  config.eval.inception = str(tmp_path / "absent")
  with pytest.raises(FileNotFoundError, match="absent"):
    _ = fakes.context(config, fakes.task(), mesh, tmp_path).inception


def test_too_few_images_are_named(monkeypatch, tmp_path):
  with pytest.raises(ValueError, match="10 parts needs as many images; there are 5"):
    _evaluate(monkeypatch, tmp_path, fakes.images(5))
