"""--mode=eval measures the newest checkpoint of the workdir and records what it measured."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import micro, saved
from tests.evals import fakes
from unilip_jax import evaluate
from unilip_jax.common import tree
from unilip_jax.evals import base, reconstruction
from unilip_jax.models import tokenizer
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.tasks import base as tasks_base
from unilip_jax.weights import orbax_io

_SIZE = micro.IMAGE_SIZE


@pytest.fixture(scope="module")
def model():
  return tokenizer.Tokenizer(micro.preset().tokenizer, dtype=jnp.float32)


@pytest.fixture(scope="module")
def params(model):
  return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, _SIZE, _SIZE, 3)))["params"]


@pytest.fixture
def setup(monkeypatch, model):
  """The real tokenizer at micro size over 11 images; returns the config."""
  image = jnp.zeros((1, _SIZE, _SIZE, 3))
  task = fakes.task_of(
      tasks_base.ReconstructsImages, model=model, lpips=fakes.Lpips(), preset=micro.preset(),
      model_shapes=lambda: jax.eval_shape(model.init, jax.random.key(0), image)["params"])
  monkeypatch.setattr(evaluate.tasks, "make", lambda config: task)
  monkeypatch.setattr(
      reconstruction.pipeline, "eval_batches", fakes.eval_batches_of(fakes.images(11, _SIZE)),
      raising=False)
  return micro.config("stage2", str(pathlib.Path(__file__).parent))


def _write_run(workdir, checkpoints, frozen=None):
  """A workdir as training leaves it: {step: {item: tree}}."""
  for step, items in checkpoints.items():
    for item, modules in items.items():
      orbax_io.write_tree(workdir / "checkpoints" / str(step) / item, modules)
  if frozen:
    orbax_io.write_tree(workdir / "frozen", frozen)
  (workdir / "model.json").write_text(json.dumps({"format": 1, "modules": {}}))


def _scaled(params, factor):
  return jax.tree.map(lambda x: np.asarray(x) * np.float32(factor), params)


def _expected(model, params):
  """PSNR of the model called on all images at once."""
  unit = fakes.images(11, _SIZE) / np.float32(255)
  image = reconstruction.reconstruct(model, params, unit, "native")
  return np.mean(-10 * np.log10(np.square(np.asarray(image, np.float64) - unit).mean((1, 2, 3))))


def test_the_newest_ema_of_the_workdir_is_measured(setup, model, params, tmp_path):
  trained, frozen = tree.split(params, lambda path: not path.startswith("vision_tower"))
  _write_run(tmp_path, {
      5: {"params": trained, "ema": _scaled(trained, 2)},
      10: {"params": _scaled(trained, 3), "ema": _scaled(trained, 0.9)}}, frozen)
  left = tmp_path / f"results.json.tmp-{'0f' * 16}"  # by a killed evaluation
  left.write_text("{")
  scores = evaluate.evaluate_checkpoint(setup, str(tmp_path))
  newest = tree.merge(_scaled(trained, 0.9), frozen)
  assert scores["images/count"] == 11
  assert not left.exists()
  np.testing.assert_allclose(scores["images/psnr"], _expected(model, newest), rtol=1e-5)

  results = json.loads((tmp_path / "results.json").read_text())
  assert results["metrics"] == scores
  assert results["step"] == 10
  assert results["checkpoint"].endswith("checkpoints/10")
  assert results["config"]["stage"] == "stage2"
  assert "cpu" in results["machine"]["devices"]
  assert (tmp_path / "per_example" / "images-0-of-1.jsonl").exists()


def test_without_a_checkpoint_init_from_is_measured(setup, model, params, tmp_path):
  (tmp_path / "run").mkdir()
  _write_run(tmp_path / "run", {3: {"params": params}})
  setup.init_from = str(tmp_path / "run")
  scores = evaluate.evaluate_checkpoint(setup, str(tmp_path / "eval"))
  np.testing.assert_allclose(scores["images/psnr"], _expected(model, params), rtol=1e-5)


def test_sharded_and_replicated_parameters_score_alike(setup, model, params, tmp_path):
  _write_run(tmp_path, {1: {"params": params}})
  replicated = evaluate.evaluate_checkpoint(setup, str(tmp_path))
  setup.mesh.fsdp = 4
  setup.mesh.min_shard_size = 64
  sharded = evaluate.evaluate_checkpoint(setup, str(tmp_path))
  for metric, value in replicated.items():
    np.testing.assert_allclose(sharded[metric], value, rtol=1e-4)


def test_absent_weights_are_refused_with_the_remedy(setup, tmp_path):
  setup.init_from = ""
  with pytest.raises(FileNotFoundError, match="init_from"):
    evaluate.evaluate_checkpoint(setup, str(tmp_path))


def test_absent_module_and_wrong_shape_are_named(setup, params, tmp_path):
  _write_run(tmp_path, {1: {"params": {k: v for k, v in params.items() if k != "decoder"}}})
  with pytest.raises(FileNotFoundError, match="lack decoder"):
    evaluate.evaluate_checkpoint(setup, str(tmp_path))
  wrong = dict(params, mlp1=jax.tree.map(lambda x: x[..., :3], params["mlp1"]))
  _write_run(tmp_path, {2: {"params": wrong}})
  with pytest.raises(ValueError, match=r"mlp1/fc1/bias: weights \(3,\), model \(24,\)"):
    evaluate.evaluate_checkpoint(setup, str(tmp_path))


def test_lpips_is_measured_where_its_weights_are(setup, params, tmp_path):
  folder = tmp_path / "perceptual"
  saved.save(folder, {"lpips": {"weight": np.ones((), np.float32)}}, {"lpips": {}})
  setup.loss.perceptual_weights = str(folder)
  _write_run(tmp_path, {1: {"params": params}})
  assert evaluate.evaluate_checkpoint(setup, str(tmp_path))["images/lpips"] > 0


def test_repeated_set_names_are_refused(setup, tmp_path):
  setup.eval.sets = (("a", "native", "folder", "."), ("a", "224", "folder", "."))
  with pytest.raises(ValueError, match=r"repeated names \['a'\]"):
    base.make_evaluators(setup, fakes.task(), mesh_lib.make_mesh(), str(tmp_path))
