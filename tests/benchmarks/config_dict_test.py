"""The replacement for ConfigDict holds what ml_collections' own holds, for every measured stage."""

import json

import pytest

from benchmarks import config_dict, steps


@pytest.mark.parametrize("size", ["tiny", "1b"])
@pytest.mark.parametrize("stage", sorted(steps.STAGES))
def test_configs_are_those_of_ml_collections(stage, size, monkeypatch):
  expected = steps.make_config(stage, size, remat={"dit": "full"}, fields=["mesh.fsdp=2"])
  monkeypatch.setattr("ml_collections.ConfigDict", config_dict.ConfigDict)
  config = steps.make_config(stage, size, remat={"dit": "full"}, fields=["mesh.fsdp=2"])
  assert isinstance(config, config_dict.ConfigDict)
  assert json.dumps(config.to_dict()) == json.dumps(expected.to_dict())  # the order too
  assert config.batch_size == config["batch_size"]
  assert config.mesh.keys() == list(config.mesh) == list(expected.mesh)


def test_a_copy_and_its_sections_are_apart():
  config = config_dict.ConfigDict({"mesh": {"fsdp": 1}})
  copy = config.copy_and_resolve_references()
  assert copy == config
  copy.mesh.fsdp = 8
  assert (config.mesh.fsdp, copy.mesh.fsdp) == (1, 8)


def test_an_absent_field_is_no_attribute():
  config = config_dict.ConfigDict()
  with pytest.raises(AttributeError, match="no field 'lr'"):
    _ = config.lr
  assert "lr" not in config
