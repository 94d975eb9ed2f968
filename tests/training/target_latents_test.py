"""Cached target latents train as fresh ones do, survive an interruption, and belong to one encoder."""

import shutil

import chex
from etils import epath
import jax
import numpy as np
import pytest

from tests import micro, opened
from unilip_jax import tasks, train
from unilip_jax.common import tree
from unilip_jax.data import decode, latents, pipeline, sources
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.sharding import param_rules
from unilip_jax.training import metrics, target_latents

_SPEC = sources.SourceSpec("shapes", "train", {"count": 24})


@pytest.fixture(scope="module", autouse=True)
def micro_preset():
  with pytest.MonkeyPatch.context() as patch:
    micro.install(patch)
    micro.one_device(patch)
    micro.skip_flops(patch)
    patch.setattr(latents, "FILE_BATCHES", 2)
    yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return tmp_path_factory.mktemp("latents")


@pytest.fixture(scope="module")
def task_and_params():
  task = tasks.make(micro.text_config("gen2"))
  return task, micro.weights(task)


@pytest.fixture(scope="module")
def complete(root, task_and_params):
  """Folder of the latents of both sources, made on eight devices. Tests only read it."""
  _ensure(_config(root, root / "complete"), task_and_params[1], root, devices=8)
  return root / "complete"


def _config(root, folder, stage="gen2", **fields):
  return micro.text_config(
      stage, data__render_dir=str(root / "shapes"), data__latents_dir=str(folder), total_steps=3,
      **fields)


@pytest.fixture
def config(root, complete, tmp_path):
  """A config with complete latents of its own."""
  shutil.copytree(complete, tmp_path / "latents")
  return _config(root, tmp_path / "latents")


def _ensure(config, params, workdir, devices=1):
  task = tasks.make(config)
  mesh = mesh_lib.make_mesh(-1, 1, jax.devices()[:devices])
  target_latents.ensure(config, task, params, mesh, str(workdir / "run"))
  return task


def _folder(config, example="t2i"):
  (folder,) = epath.Path(config.data.latents_dir).glob(f"{example}-*")
  return folder


def _source(config, tmp_path, example="t2i", **options):
  return opened.source(_SPEC.kind, _SPEC.path, render=config.data.render_dir,
                       index=str(tmp_path / "i"), example=example, **_SPEC.options | options)


@pytest.mark.slow
def test_training_on_cached_latents_is_training_on_images(root, tmp_path):
  losses = {}
  for name, folder in (("cached", tmp_path / "latents"), ("fresh", "")):
    train.train(_config(root, folder, stage="gen1"), str(tmp_path / name))
    losses[name] = [row["train/loss"] for row in metrics.read(tmp_path / name)]
  np.testing.assert_allclose(losses["cached"], losses["fresh"], rtol=1e-5)


def test_every_record_has_the_encoders_latents(config, task_and_params, tmp_path):
  task, params = task_and_params
  encode = jax.jit(task.encode)
  for example in ("t2i", "edit"):
    plain = _source(config, tmp_path, example)
    joined = latents.join(plain, config.data.latents_dir, example, _SPEC)
    assert len(joined) == len(plain) == 24
    for i in (0, 7, 8, 23):
      pixels = decode.prepare(plain[i].parts["image"], size=config.image_size, crop="stretch",
                              flip=False, max_pixels=10**6, rng=None)
      record = joined[i]
      assert "image" not in record.parts
      assert record.parts["text"] == plain[i].parts["text"]
      cached = latents.from_bytes(record.parts["latents"], joined.shape)
      chex.assert_trees_all_close(
          cached, np.asarray(encode(params, pixels[None])[0]), rtol=1e-4, atol=1e-5)


def test_an_interrupted_pass_goes_on_and_changes_nothing(
    config, task_and_params, tmp_path, monkeypatch):
  files = sorted(_folder(config).glob("*/*.bin"))
  before = [f.read_bytes() for f in files]
  assert len(files) == 2  # 24 records, 8 a batch, 2 batches a file
  (_folder(config) / "manifest.json").unlink()
  files[1].unlink()
  changed = files[0].stat().mtime
  _ensure(config, task_and_params[1], tmp_path, devices=8)
  assert [f.read_bytes() for f in sorted(_folder(config).glob("*/*.bin"))] == before
  assert files[0].stat().mtime == changed
  monkeypatch.setattr(target_latents, "_make", None)  # finished latents are not made again
  _ensure(config, task_and_params[1], tmp_path)


def test_a_cut_file_of_finished_latents_is_computed_again(config, task_and_params, tmp_path, caplog):
  file = sorted(_folder(config).glob("*/*.bin"))[0]
  data = file.read_bytes()
  file.write_bytes(data[:-1])
  _ensure(config, task_and_params[1], tmp_path, devices=8)
  assert file.read_bytes() == data
  assert f"damaged and computed again: {file} has {len(data) - 1} bytes" in caplog.text


def _with_other_head(params):
  flat = tree.flatten(params)
  path = next(p for p in flat if p.startswith("latent_head/") and p.endswith("kernel"))
  return tree.unflatten(flat | {path: flat[path].reshape(-1)[::-1].reshape(flat[path].shape)})


def test_latents_of_another_encoder_are_refused(config, task_and_params, tmp_path):
  with pytest.raises(latents.StaleError, match=r"fingerprint.*delete the folder"):
    _ensure(config, _with_other_head(task_and_params[1]), tmp_path)


def test_the_fingerprint_depends_on_the_encoder_alone_and_on_no_mesh(config, task_and_params):
  task, params = task_and_params
  seen = target_latents.fingerprint(config, task, params)
  mesh = mesh_lib.make_mesh(2, 4)
  spread = jax.device_put(params, param_rules.tree_shardings(params, mesh, 16))
  assert target_latents.fingerprint(config, task, spread) == seen
  flat = tree.flatten(params)
  other = next(p for p in flat if p.startswith("dit/"))
  assert target_latents.fingerprint(config, task, tree.unflatten(flat | {other: flat[other] + 1})) == seen
  assert target_latents.fingerprint(config, task, _with_other_head(params)) != seen
  config.image_size *= 2
  assert target_latents.fingerprint(config, task, params) != seen


def test_latents_of_other_data_are_refused(config, tmp_path):
  fewer = _source(config, tmp_path, count=5)
  with pytest.raises(latents.StaleError, match=r"24 records .* it has 5 records; delete that folder"):
    latents.join(fewer, config.data.latents_dir, "t2i", _SPEC)
  with pytest.raises(FileNotFoundError, match="training makes them"):
    latents.join(fewer, config.data.latents_dir, "t2i", sources.SourceSpec("shapes", "test"))


def test_a_broken_image_is_a_broken_record(root, task_and_params, tmp_path, monkeypatch):
  real = decode.prepare

  def broken(data, **options):
    if data == first:
      raise decode.BadImageError("cut off")
    return real(data, **options)

  config = _config(root, tmp_path / "latents", data__edit=(), data__edit_share=0.0)
  plain = _source(config, tmp_path)
  first = plain[3].parts["image"]
  monkeypatch.setattr(decode, "prepare", broken)
  _ensure(config, task_and_params[1], tmp_path)
  joined = latents.join(plain, config.data.latents_dir, "t2i", _SPEC)
  joined[2]
  with pytest.raises(decode.BadRecordError, match="was broken"):
    joined[3]


def test_a_stage_that_trains_its_encoder_is_refused(config, tmp_path):
  config.param_rules = (("^(vision_tower|mlp1|decoder|llm)/", {"train": False}),)
  with pytest.raises(ValueError, match="latent_head train"):
    _ensure(config, {}, tmp_path)
  other = micro.text_config("tiny_mllm", data__latents_dir="x")
  with pytest.raises(ValueError, match="has no target latents"):
    target_latents.ensure(other, tasks.make(other), {}, None, "")


def test_batches_hold_latents_and_no_images(config, tmp_path):
  stream = pipeline.train_stream(
      config, start_position=0, process_index=0, process_count=1, workdir=str(tmp_path / "run"))
  batch = next(stream)
  stream.close()
  for name, part in tasks.make(config).batch_spec(config.batch_size).items():
    assert {k: (v.shape, v.dtype) for k, v in part.items()} == {
        k: (batch[name][k].shape, batch[name][k].dtype) for k in part}
    assert "image" not in batch[name]
