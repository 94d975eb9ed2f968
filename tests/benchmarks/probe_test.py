"""The probe reads what is in the latents, and measures which shapes it confuses."""

import numpy as np
import pytest

from benchmarks import probe
from unilip_jax.shapes import captions, scene

pytestmark = pytest.mark.optimized  # computes longer than it compiles


@pytest.fixture(scope="module")
def classes():
  return np.stack([probe.labels(captions.sample_scene(0, i, "train")) for i in range(1100)])


def test_labels_are_the_objects_of_the_cells():
  one = scene.Scene((scene.Block(0, 1, "circle", "green", "large"),
                     scene.Block(2, 2, "cross", "red", "small")), "navy")
  shapes, colours, sizes = probe.labels(one)
  assert shapes.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 4]
  assert colours.tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 1]
  assert sizes.tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 1]


def _one_hot(classes):
  return np.concatenate([(classes[:, row, :, None] == np.arange(7)).reshape(len(classes), -1)
                         for row in range(3)], axis=1).astype(np.float32)


def test_attributes_in_the_latents_are_read(classes):
  latents = _one_hot(classes)
  params = probe.train(latents[:1000], classes[:1000], updates=300)
  found = probe.scores(params, latents[1000:], classes[1000:])
  assert found["whole scenes"] > 0.95
  assert found["shape"] > 0.98
  assert found["shapes"]["circle"]["circle"] > 0.95


def test_shapes_that_are_equal_in_the_latents_are_confused(classes):
  seen = classes.copy()
  seen[:, 0][seen[:, 0] == 2] = 1  # squares look like circles
  latents = _one_hot(seen)
  params = probe.train(latents[:1000], classes[:1000], updates=300)
  confusion = probe.scores(params, latents[1000:], classes[1000:])["shapes"]
  assert confusion["circle"]["circle"] + confusion["circle"]["square"] > 0.9
  assert confusion["circle"]["square"] + confusion["square"]["circle"] > 0.3
  assert confusion["triangle"]["triangle"] > 0.9
