"""A run of distillation: resumed exactly, loaded as a few-step model, sampled without options."""

import json
import shutil

import chex
import numpy as np
import pytest

from tests import micro
from unilip_jax import train
from unilip_jax.convert import exporter
from unilip_jax.infer import model as infer
from unilip_jax.weights import orbax_io


@pytest.fixture(scope="module", autouse=True)
def micro_preset():
  with pytest.MonkeyPatch.context() as patch:
    micro.install(patch)
    micro.one_device(patch)
    micro.skip_flops(patch)
    yield


def _config(**fields):
  return micro.text_config(
      "few_step", data__part_multiple=8, total_steps=4, checkpoint_every_steps=2, **fields)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("few_step")
  train.train(_config(), str(folder))
  return folder


@pytest.fixture(scope="module")
def model(workdir):
  return infer.UniLIP.load(str(workdir), "float32", batch_size=2)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(workdir, tmp_path):
  parts = tmp_path / "parts"
  shutil.copytree(workdir, parts)
  shutil.rmtree(parts / "checkpoints/4")
  train.train(_config(), str(parts))
  for item in ("params", "optimizer"):
    a, b = (orbax_io.read_tree(w / "checkpoints/4" / item) for w in (workdir, parts))
    chex.assert_trees_all_equal(a, b)


def test_a_checkpoint_states_what_it_is_and_takes_4_steps_without_options(workdir, model):
  assert json.loads((workdir / "model.json").read_text())["generate"]["few_step"] == "mean_flow"
  assert model.dims.few_step == "mean_flow"
  plain = np.asarray(model.generate("a red circle"))
  np.testing.assert_array_equal(plain, model.generate("a red circle", steps=4))
  assert np.abs(plain.astype(int) - np.asarray(model.generate("a red circle", steps=1))).max() > 0


def test_guidance_is_refused_since_it_is_inside(model):
  with pytest.raises(ValueError, match=r"guidance=2: .*distilled to a few steps.*leave guidance out"):
    model.generate("a red circle", guidance=2.0)


@pytest.mark.parametrize("fmt", ["unilip", "components", "diffusers"])
def test_formats_of_flow_networks_are_refused_with_the_reason(workdir, tmp_path, fmt):
  with pytest.raises(ValueError, match=r"distilled to a few steps \(mean_flow\).*no input for the length"):
    exporter.export_weights(str(workdir), fmt, str(tmp_path / "out"))
