"""Runs with aspect-ratio buckets: one program per bucket, and an exact resume in the middle of them."""

import shutil

import chex
import jax
import pytest

from tests import micro
from unilip_jax import tasks, train
from unilip_jax.data import batch as batch_lib
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.training import metrics
from unilip_jax.training import step as step_lib
from unilip_jax.weights import orbax_io

_ROWS = (("shapes", "train", 1.0, {"count": 24, "canvases": ("square", "wide")}),)
_BUCKETS = ((28, 56), (56, 56))


def _config():
  return micro.config(
      "stage1", data__train=_ROWS, data__buckets=_BUCKETS, total_steps=4, checkpoint_every_steps=2,
      eval__sets=(), sample_every_steps=0)


@pytest.fixture(scope="module", autouse=True)
def micro_preset():
  with pytest.MonkeyPatch.context() as patch:
    micro.install(patch)
    micro.one_device(patch)
    micro.skip_flops(patch)
    yield


def test_generation_and_distillation_trace_on_rectangles():
  """Prompts and edits in one batch, with a teacher and dropped prompts of edits."""
  config = micro.text_config("few_step", data__buckets=_BUCKETS)
  task = tasks.make(config)
  spec = batch_lib.of_size(task.batch_spec(config.batch_size), (28, 56))
  assert batch_lib.image_size(spec) == (28, 56)
  _, values = jax.eval_shape(task.train_step, task.state_shapes(), spec)
  assert values["loss"].shape == ()


@pytest.fixture(scope="module")
def programs():
  """(the compiled step, events of compilation while it was made)."""
  events = []
  listen = lambda event, seconds, **_: events.append(event) if "backend_compile" in event else None
  config, mesh = _config(), mesh_lib.config_mesh(_config())
  task = tasks.make(config)
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    step = step_lib.compile_step(task, config, mesh)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  return step, len(events)


@pytest.fixture(scope="module")
def run(programs, tmp_path_factory):
  """(folder of four steps, sizes of their batches); no other program than `programs` runs a step."""
  step, _ = programs
  folder, sizes = tmp_path_factory.mktemp("run"), []

  def observed(state, batch):
    sizes.append(batch_lib.image_size(batch))
    return step(state, batch)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(step_lib, "compile_step", lambda *_: observed)
    train.train(_config(), str(folder))
  return folder, sizes


def test_each_bucket_has_one_program_and_all_are_compiled_ahead(programs):
  step, compiled = programs
  assert set(step.programs) == set(_BUCKETS)
  assert compiled == len(_BUCKETS)


def test_steps_run_the_programs_of_their_buckets(run):
  folder, sizes = run
  assert set(sizes) == set(_BUCKETS)
  assert [r["step"] for r in metrics.read(folder) if "train/loss" in r] == [1, 2, 3, 4]


def test_a_resumed_run_has_the_same_buckets_and_weights(programs, run, tmp_path, monkeypatch):
  folder, sizes = run
  parts, again = tmp_path / "parts", []
  shutil.copytree(folder, parts)
  shutil.rmtree(parts / "checkpoints/4")
  monkeypatch.setattr(step_lib, "compile_step", lambda *_: lambda state, batch: (
      again.append(batch_lib.image_size(batch)), programs[0](state, batch))[1])
  train.train(_config(), str(parts))
  assert again == sizes[2:]
  for item in ("params", "optimizer"):
    a, b = (orbax_io.read_tree(w / "checkpoints/4" / item) for w in (folder, parts))
    chex.assert_trees_all_equal(a, b)
