"""gen1 starts from imported component folders, straight onto a sharded mesh, later sources winning."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_model, micro, saved
from unilip_jax.common import tree
from unilip_jax.convert import importer, reading
from unilip_jax.models import presets
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.tasks import generate
from unilip_jax.training import checkpoint, initial_state
from unilip_jax.weights import orbax_io

_SEED = 3


@pytest.fixture(scope="module")
def folders(golden, tmp_path_factory):
  """The recorded component folders, imported as configs/gen1.py names them."""
  root = tmp_path_factory.mktemp("weights")
  places = {"internvl3-1b": "pretrained/mllm", "dc-ae": "pretrained/vae", "sana": "pretrained/dit",
            "stage448": "ckpt/tiny_unilip.pth"}
  for name, place in places.items():
    importer.import_weights(
        [str(golden / place)], str(root / name), options=reading.Options(vit_heads=4))
  return {name: str(root / name) for name in places}


@pytest.fixture
def config(golden, folders, monkeypatch):
  """gen1's config at the recorded dimensions, as strict as at a published size."""
  recorded = golden_model.unilip_dims(golden)
  preset = dataclasses.replace(
      micro.preset(), tokenizer=recorded.tokenizer, llm=recorded.llm, connector=recorded.connector,
      dit=recorded.dit, dcae_encoder=golden_model.dcae_dims(golden)[0])
  monkeypatch.setattr(presets, "get", lambda size: preset)
  config = micro.text_config("gen1", image_size=128, init_from=",".join(folders.values()), seed=_SEED)
  config.size = "1b"
  config.mesh.fsdp = 2
  config.mesh.min_shard_size = 64
  return config


def _start(config, workdir):
  mesh = mesh_lib.config_mesh(config)
  task = generate.Generate(config)
  manager = checkpoint.Manager(str(workdir), keep=None)
  try:
    return task, initial_state.restore_or_init(task, config, manager, mesh)
  finally:
    manager.close()


def _same(ours, wanted):
  ours, wanted = tree.flatten(ours), tree.flatten(wanted)
  assert ours.keys() == wanted.keys()
  for path in wanted:
    np.testing.assert_array_equal(
        np.asarray(ours[path], np.float32), np.asarray(wanted[path], np.float32), err_msg=path)


def test_gen1_starts_from_imported_components(config, folders, tmp_path, monkeypatch, caplog):
  whole = []
  monkeypatch.setattr(orbax_io, "read_tree", lambda *a, **k: whole.append(a))
  with caplog.at_level(logging.INFO, "absl"):
    task, start = _start(config, tmp_path)
  assert not whole  # no host reads an array whole
  monkeypatch.undo()
  held = {name: saved.load(folder)[0] for name, folder in folders.items()}
  params = tree.merge(start.state.params, start.state.frozen)
  _same(params["encoder"], held["dc-ae"]["encoder"])
  for module in ("vision_tower", "mlp1", "latent_head", "decoder"):
    _same(params[module], held["stage448"][module])
  _same(params["dit"], held["sana"]["dit"])
  llm = held["internvl3-1b"]["llm"]
  _same(params["llm"]["stack"], llm["stack"])
  # 263 rows were trained; UniLIP's three more start as their mean, the padding stays zero.
  rows = np.asarray(params["llm"]["embedding"], np.float32)
  _same({"rows": rows[:263]}, {"rows": llm["embedding"][:263]})
  mean = llm["embedding"][:263].mean(0)
  np.testing.assert_allclose(rows[263:266], np.tile(mean, (3, 1)), rtol=0.01, atol=1e-4)  # bfloat16
  assert not rows[266:].any()
  assert np.abs(np.asarray(params["llm"]["head"], np.float32)[:, 263:266]).max() > 0
  # The connector starts as the LLM's last layers, queries and projector at random by the seed.
  _same(params["connector"]["layers"], jax.tree.map(lambda x: x[-6:], llm["stack"]["layers"]))
  assert params["connector"]["layers"]["attn"]["qkv"]["kernel"].dtype == jnp.float32
  assert params["llm"]["embedding"].dtype == jnp.bfloat16  # frozen, as the config says
  assert 0.7 < np.std(np.asarray(params["queries"]["queries"])) < 1.3
  kernel = params["connector"]["layers"]["mlp"]["down"]["kernel"]
  assert "fsdp" in kernel.sharding.spec
  assert "decoder: " in caplog.text
  assert "dc-ae has it too" in caplog.text
  jax.eval_shape(task.train_step, start.state, task.batch_spec(config.batch_size))


def test_what_is_absent_is_named_with_its_field(config, folders, tmp_path):
  config.init_from = ",".join(v for k, v in folders.items() if k != "sana")
  with pytest.raises(FileNotFoundError, match=r"weights of dit, which init_from="):
    _start(config, tmp_path)


def test_weights_of_other_dimensions_are_refused_before_any_is_read(config, folders, tmp_path):
  config.size = "1b"
  preset = presets.get("1b")
  presets.get = lambda size: dataclasses.replace(
      preset, dit=dataclasses.replace(preset.dit, caption_width=48))
  with pytest.raises(ValueError, match=r"dit/caption/fc1/kernel: weights \(40, 64\), model \(48, 64\)"):
    _start(config, tmp_path)
