"""Names of device arrangements are parsed; unknown ones are refused with the known ones."""

import pytest

from unilip_jax.plan import chips, topology
from unilip_jax.training import flops


@pytest.mark.parametrize(("name", "generation", "size", "slices"), [
    ("v5e:4x4", "v5e", 16, 1), ("v5e:16x16", "v5e", 256, 1), ("v6e:8x8", "v6e", 64, 1),
    ("v5p:4x4x4", "v5p", 64, 1), ("v5e:16x16*2", "v5e", 512, 2), ("h100:8", "h100", 8, 1),
    ("a100:16", "a100", 16, 1)])
def test_names(name, generation, size, slices):
  found = topology.parse(name)
  assert (found.generation, found.size, found.slices) == (generation, size, slices)
  assert found.chip is chips.CHIPS[generation]


@pytest.mark.parametrize(("name", "message"), [
    ("", "unknown; known are v5e:1x1"), ("v9:4x4", "unknown; known are"), ("v5e", "unknown; known are"),
    ("v5e:5x7", "has no such slice; it has 1x1, 2x2"), ("v5p:4x4", "has no such slice"),
    ("h100:2x2", "GPUs are given by number"), ("h100:12", "complete nodes of 8"),
    ("h100:8*2", "GPUs are given by number")])
def test_unknown_topologies_are_refused_with_the_known_ones(name, message):
  with pytest.raises(ValueError, match=message):
    topology.parse(name)


def test_all_known_names_are_parsed():
  for name in topology.known():
    assert topology.parse(name).name == name


def test_peaks_are_those_that_training_reports():
  named = {"v5e": "TPU v5 lite", "v5p": "TPU v5p", "v6e": "TPU v6 lite", "h100": "NVIDIA H100",
           "h200": "NVIDIA H200", "a100": "NVIDIA A100", "rtx4090": "NVIDIA GeForce RTX 4090"}
  for generation, chip in chips.CHIPS.items():
    assert next(f for n, f in flops._PEAK_BF16 if n.lower() in named[generation].lower()) == chip.peak


def test_an_absent_compiler_is_refused_with_the_way_to_install_it(monkeypatch):
  monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
  monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match="pip install -r requirements-plan"):
    topology.devices(topology.parse("v5e:4x4"))
