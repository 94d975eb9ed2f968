"""Inception-v3 and the preprocessing of each program equal recorded and live runs."""

import json

import jax
import numpy as np
from PIL import Image
import pytest

from tests import parity
from tests.evals import photos
from unilip_jax.evals import feature_statistics, inception

_IMAGES = (0, 1, 2, 3, 5)
_RESIZED = {"torch-fidelity": "tf1", "pytorch-fid": "pytorch", "clean-fid": "clean",
            "legacy_pytorch": "clean_legacy_pytorch"}


@pytest.fixture(scope="module")
def images(recorded):
  """The recorded images: {number: uint8[1, H, W, 3]} of five sizes, from 32 to 200 pixels."""
  return {i: np.asarray(Image.open(recorded / "images" / f"{i}.png"))[None] for i in _IMAGES}


def _six(images, protocol):
  """Prepares the images; the last one again as the sixth."""
  steps = inception.PROTOCOLS[protocol]
  return np.concatenate([inception.prepare(images[i], steps) for i in (*_IMAGES, 5)])


def _outputs(arrays, feature):
  return np.stack([arrays[f"{i}.{feature}"] for i in _IMAGES])


def _compare(name, outputs, expected):
  parity.assert_parity("Inception-v3", name, outputs[:len(expected), ::4], expected)


@pytest.mark.parametrize("protocol", _RESIZED)
def test_resized_inputs_equal_each_program_on_host_and_device(recorded, images, protocol):
  steps = inception.PROTOCOLS[protocol]
  arrays = np.load(recorded / "inception" / "resized_inputs.npz")
  for i in (1, 3):
    expected = arrays[f"{_RESIZED[protocol]}_resized_{i}"]
    for x in (images[i], jax.numpy.asarray(images[i])):
      value = np.asarray(inception.prepare(x, steps))[0, ::13, ::11]
      if protocol == "clean-fid":  # both modes are recorded before the scaling
        value = value * 128 + 128
      elif protocol == "legacy_pytorch":
        value = (value + 1) / 2 * 255
      parity.assert_parity("Inception-v3, resize", f"recorded {protocol}", value, expected, rtol=1e-5)


def test_features_and_blocks_equal_recorded_torch_fidelity(recorded, images, inception_network):
  outputs, blocks = inception_network(_six(images, "torch-fidelity"))
  arrays = np.load(recorded / "inception" / "outputs_torch_fidelity_float32.npz")
  assert outputs.keys() == {"64", "192", "768", "2048", "logits_unbiased", "logits"}
  for feature, value in outputs.items():
    _compare(f"recorded torch-fidelity, {feature}", value, _outputs(arrays, feature))
  activations = np.load(recorded / "inception" / "activations_torch_fidelity.npz")
  assert len(blocks) == 16
  for name, block in blocks.items():
    block = block[_IMAGES.index(3)].astype(np.float64)
    parity.assert_parity(f"Inception-v3 {name}", "recorded torch-fidelity", block.mean((0, 1)),
                         activations[f"3.{name}.mean"])
    parity.assert_parity(f"Inception-v3 {name}", "recorded torch-fidelity",
                         block[:4, :4, :6].transpose(2, 0, 1), activations[f"3.{name}.corner"])
  unilip = np.load(recorded / "inception" / "outputs_unilip_float64.npz")
  for feature in ("2048", "logits_unbiased"):  # of images 0 to 3
    expected = np.stack([unilip[f"{i}.{feature}"] for i in range(4)])
    _compare("recorded UniLIP in float64", outputs[feature], expected)


@pytest.mark.parametrize(("protocol", "file", "feature"), [
    ("pytorch-fid", "outputs_pytorch_fid", "2048"), ("clean-fid", "outputs_clean_fid", "clean.2048"),
    ("legacy_pytorch", "outputs_clean_fid", "legacy_pytorch.2048")])
def test_features_of_other_preprocessing_equal_the_recorded_programs(
    recorded, images, inception_network, protocol, file, feature):
  outputs, _ = inception_network(_six(images, protocol))
  expected = _outputs(np.load(recorded / "inception" / f"{file}.npz"), feature)
  _compare(f"recorded {protocol}", outputs["2048"], expected)


def test_clean_fids_mode_of_tensorflow_resizes_as_torch_fidelity(images):
  prepared = [inception.prepare(images[1], inception.PROTOCOLS[name])
              for name in ("legacy_tensorflow", "torch-fidelity")]
  np.testing.assert_array_equal(*prepared)


def test_unilips_evaluation_loses_the_recorded_levels(recorded):
  expected = json.loads((recorded / "recon" / "unilip_evaluator.json").read_text())["quantisation_losses"]
  protocol = inception.PROTOCOLS["unilip"]
  lost = {is_real: np.arange(256)[:, None] - inception.levels(protocol, is_real=is_real)
          for is_real in (True, False)}
  assert set(np.unique(lost[True])) == set(np.unique(lost[False])) == {0, 1}
  assert np.flatnonzero(lost[False][:, 0]).tolist() == expected["fake"]
  assert {c: np.flatnonzero(lost[True][:, i]).tolist() for i, c in enumerate("RGB")} == expected["real"]


def test_unknown_protocol_is_named():
  with pytest.raises(ValueError, match="--protocol='fid': choose torch-fidelity, unilip"):
    inception.find_protocol("fid")


def test_live_torch_fidelity_on_photographs(inception_tensors, inception_network, reference_programs):
  patches = photos.patches(6, 160)
  expected = reference_programs("torch_fidelity", inception_tensors | {"images": patches})
  outputs, _ = inception_network(inception.prepare(patches, inception.PROTOCOLS["torch-fidelity"]))
  features, logits = outputs["2048"], outputs["logits_unbiased"]
  parity.assert_parity("Inception-v3", "torch-fidelity 0.4", features, expected["features"])
  parity.assert_parity("Inception-v3, logits", "torch-fidelity 0.4", logits, expected["logits"])
  moments = [feature_statistics.Statistics.of(f).moments() for f in (features[:3], features[3:])]
  parity.assert_parity("Fréchet distance", "torch-fidelity 0.4",
                       feature_statistics.frechet_distance(*moments[0], *moments[1]), expected["fid"])
  score = feature_statistics.inception_score(feature_statistics.score_sums(
      logits, feature_statistics.score_split(6, 2), 2))
  parity.assert_parity("inception score", "torch-fidelity 0.4", score, expected["score"])
