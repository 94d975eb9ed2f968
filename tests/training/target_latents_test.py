"""Cached target latents train as fresh ones do, survive an interruption, and are never another's."""

import jax
import numpy as np
import pytest

from tests import micro, opened
from unilip_jax import tasks, train
from unilip_jax.common import tree
from unilip_jax.data import decode, latents, pipeline
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.sharding import param_rules
from unilip_jax.training import metrics, target_latents


@pytest.fixture
def config(tmp_path, monkeypatch):
  micro.install(monkeypatch)
  return micro.text_config(
      "gen2", data__render_dir=str(tmp_path / "shapes"), data__latents_dir=str(tmp_path / "latents"),
      total_steps=3)


def _params(task, seed=0):
  return jax.jit(task.init_modules)(jax.random.key(seed))


def _ensure(config, tmp_path, seed=0, devices=1):
  task = tasks.make(config)
  params = _params(task, seed)
  target_latents.ensure(config, task, params, mesh_lib.make_mesh(-1, 1, jax.devices()[:devices]),
                 str(tmp_path / "run"))
  return task, params


def _folder(config, example="t2i"):
  rows = config.data.edit if example == "edit" else config.data.train
  return latents.folder_of(config.data.latents_dir, example, *rows[0][:2])


@pytest.mark.slow
def test_training_on_cached_latents_is_training_on_images(config, tmp_path):
  losses = {}
  for name, folder in (("cached", config.data.latents_dir), ("fresh", "")):
    config.data.latents_dir = folder
    train.train(config, str(tmp_path / name))
    losses[name] = [row["train/loss"] for row in metrics.read(tmp_path / name)]
  np.testing.assert_allclose(losses["cached"], losses["fresh"], rtol=1e-5)


def test_every_record_has_the_encoders_latents(config, tmp_path):
  task, params = _ensure(config, tmp_path, devices=8)
  for example in ("t2i", "edit"):
    kind, path = (config.data.edit if example == "edit" else config.data.train)[0][:2]
    plain = opened.source(kind, path, render=config.data.render_dir,
                         index=str(tmp_path / "i"), example=example)
    joined = latents.join(plain, config.data.latents_dir, example, kind, path)
    assert len(joined) == len(plain) == 24
    for i in (0, 7, 8, 23):
      pixels = decode.prepare(plain[i].parts["image"], size=config.image_size, crop="stretch",
                              flip=False, max_pixels=10**6, rng=None)
      wanted = jax.jit(task.encode)(params, pixels[None])[0]
      record = joined[i]
      assert "image" not in record.parts
      assert record.parts["text"] == plain[i].parts["text"]
      made = latents.from_bytes(record.parts["latents"], joined.shape)
      np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-5)


def test_an_interrupted_pass_goes_on_and_changes_nothing(config, tmp_path, monkeypatch):
  monkeypatch.setattr(latents, "FILE_BATCHES", 2)
  _ensure(config, tmp_path)
  files = sorted(_folder(config).glob("*/*.bin"))
  wanted = [f.read_bytes() for f in files]
  assert len(files) == 2  # 24 records, 8 a batch, 2 batches a file
  (_folder(config) / "manifest.json").unlink()
  files[1].unlink()
  before = files[0].stat().mtime
  _ensure(config, tmp_path)
  assert [f.read_bytes() for f in sorted(_folder(config).glob("*/*.bin"))] == wanted
  assert files[0].stat().mtime == before
  monkeypatch.setattr(target_latents, "_make", None)  # finished latents are not made again
  _ensure(config, tmp_path)


def test_latents_of_another_encoder_are_refused(config, tmp_path):
  _ensure(config, tmp_path)
  with pytest.raises(latents.StaleError, match=r"fingerprint.*delete the folder"):
    _ensure(config, tmp_path, seed=1)


def test_the_fingerprint_depends_on_the_encoder_alone_and_on_no_mesh(config):
  task = tasks.make(config)
  params = _params(task)
  seen = target_latents.fingerprint(config, task, params)
  mesh = mesh_lib.make_mesh(2, 4)
  spread = jax.device_put(params, param_rules.tree_shardings(params, mesh, 16))
  assert target_latents.fingerprint(config, task, spread) == seen
  flat = tree.flatten(params)
  other = next(p for p in flat if p.startswith("dit/"))
  assert target_latents.fingerprint(config, task, tree.unflatten(flat | {other: flat[other] + 1})) == seen
  path = next(p for p in flat if p.startswith("latent_head/") and p.endswith("kernel"))
  swapped = flat[path].reshape(-1)[::-1].reshape(flat[path].shape)
  assert target_latents.fingerprint(config, task, tree.unflatten(flat | {path: swapped})) != seen
  config.image_size *= 2
  assert target_latents.fingerprint(config, task, params) != seen


def test_latents_of_other_data_are_refused(config, tmp_path):
  _ensure(config, tmp_path)
  kind, path = config.data.train[0][:2]
  fewer = opened.source(kind, "train:5", render=config.data.render_dir,
                       index=str(tmp_path / "i"), example="t2i")
  with pytest.raises(latents.StaleError, match="24 records, the data has 5"):
    latents.join(fewer, config.data.latents_dir, "t2i", kind, path)
  with pytest.raises(FileNotFoundError, match="training makes them"):
    latents.join(fewer, config.data.latents_dir, "t2i", kind, "train:5")


def test_a_broken_image_is_a_broken_record(config, tmp_path, monkeypatch):
  real = decode.prepare

  def broken(data, **options):
    if data == first:
      raise decode.BadImageError("cut off")
    return real(data, **options)

  kind, path = config.data.train[0][:2]
  plain = opened.source(kind, path, render=config.data.render_dir, index=str(tmp_path / "i"),
                       example="t2i")
  first = plain[3].parts["image"]
  monkeypatch.setattr(decode, "prepare", broken)
  _ensure(config, tmp_path)
  joined = latents.join(plain, config.data.latents_dir, "t2i", kind, path)
  joined[2]
  with pytest.raises(decode.BadRecordError, match="was broken"):
    joined[3]


def test_a_stage_that_trains_its_encoder_is_refused(config, tmp_path):
  config.param_rules = (("^(vision_tower|mlp1|decoder|llm)/", {"train": False}),)
  with pytest.raises(ValueError, match="latent_head train"):
    _ensure(config, tmp_path)
  other = micro.text_config("tiny_mllm", data__latents_dir="x")
  with pytest.raises(ValueError, match="has no target latents"):
    target_latents.ensure(other, tasks.make(other), {}, None, "")


def test_batches_hold_latents_in_place_of_images(config, tmp_path):
  task, _ = _ensure(config, tmp_path)
  stream = pipeline.train_stream(
      config, start_position=0, process_index=0, process_count=1, workdir=str(tmp_path / "run"))
  batch = next(stream)
  stream.close()
  spec = task.batch_spec(config.batch_size)
  for name, part in spec.items():
    assert {k: (v.shape, v.dtype) for k, v in part.items()} == {
        k: (batch[name][k].shape, batch[name][k].dtype) for k in part}
    assert "image" not in batch[name]
