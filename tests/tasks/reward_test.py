"""Reward training at micro size: rollouts, gradients, the old policy, resuming, meshes, published sizes."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import micro
from unilip_jax import tasks
from unilip_jax.common import tree
from unilip_jax.configs import rl_grpo, rl_nft
from unilip_jax.data import batch as batch_lib
from unilip_jax.losses import advantages
from unilip_jax.ops import cpu
from unilip_jax.sampling import images as image_sampling
from unilip_jax.sampling import sampler
from unilip_jax.sharding import activations
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.tasks import reward as reward_task
from unilip_jax.training import checkpoint, initial_state, inputs

_COMMON = dict(
    image_size=micro.IMAGE_SIZE, batch_size=16, data__part_multiple=8, data__edit_share=0.5,
    data__train=(("shapes", "train", 1.0),), data__edit=(("shapes", "train", 1.0),), eval__sets=(),
    sample_every_steps=0, optimizer__warmup_steps=0, optimizer__eps=1e-3, reward__group_size=2,
    reward__steps=4, reward__sub_batches=1, grad_accum_steps=1, mesh__min_shard_size=16)
_NFT = dict(reward__times=2, reward__updates=2, ema_decay=0.0)


@pytest.fixture(scope="module", autouse=True)
def _micro():
  with pytest.MonkeyPatch.context() as patch:
    micro.install(patch)
    patch.setattr(cpu, "_UNROLLED", 0)  # loops compile sooner
    yield


def _config(stage, **fields):
  return micro.config(stage, **_COMMON | fields)


@dataclasses.dataclass
class _Run:
  """A task on one device, its first state, and programs that are compiled once."""

  task: reward_task.Reward
  mesh: jax.sharding.Mesh
  state: object
  step: object
  rollout: object


def _run(config, mesh_shape=(1, 1)):
  data, fsdp = mesh_shape
  mesh = mesh_lib.make_mesh(data, fsdp, jax.devices()[:data * fsdp])
  task = tasks.make(config)
  abstract = initial_state.abstract_state(task, config, mesh)
  shardings = jax.tree.map(lambda s: s.sharding, abstract)
  state = jax.device_put(task.make_state(_weights(task), np.uint32(0)), shardings)
  step = jax.jit(activations.under(mesh, task.train_step),
                 out_shardings=(shardings, mesh_lib.replicated(mesh)))
  rollout = jax.jit(activations.under(mesh, task.rollout), out_shardings=mesh_lib.batch_sharding(mesh))
  return _Run(task, mesh, state, step, rollout)


def _weights(task):
  """Samples weights with NumPy, which is quicker than compiling the initialisation."""
  rng = np.random.default_rng(0)

  def value(path, shape):
    if path.endswith("scale"):
      return np.ones(shape, np.float32)
    return rng.normal(0, min((np.prod(shape[tree.is_scanned(path):-1]) or 1)**-0.5, 0.3), shape).astype(
        np.float32)

  return tree.unflatten({p: value(p, s.shape) for p, s in tree.flatten(task.module_shapes).items()})


@functools.cache
def _prompts(size):
  """Prompts and instructions, as the data pipeline would hand them on."""
  rng = np.random.default_rng(3)
  tokens = rng.integers(1, 60, (2, size, 56)).astype(np.int32)
  image = rng.integers(0, 256, (size, 1, micro.IMAGE_SIZE, micro.IMAGE_SIZE, 3)).astype(np.uint8)
  mask = np.arange(64) < 40
  edit = np.pad(tokens[1], ((0, 0), (0, 8)))
  return {"t2i": {"tokens": tokens[0], "token_mask": np.tile(mask[:56], (size, 1))},
          "edit": {"tokens": edit, "token_mask": np.tile(mask, (size, 1)), "cond_image": image}}


def _batch(run, parts=("t2i", "edit"), decay=0.25):
  """(images of a rollout, the batch of an update with made-up advantages)."""
  size = 8
  seed, images, batch = np.uint32(7), {}, {}
  signs = np.random.default_rng(1).normal(0, 2, (len(parts), size, run.task.group_size))
  signs[:, 0] = 0.0  # a group of equal rewards
  for i, name in enumerate(parts):
    prompts = dict(_prompts(size)[name])
    if name == "edit":
      prompts["tokens"] = prompts["tokens"].copy()
      prompts["tokens"][:, 5:9] = run.task.image_slot
    prompts = jax.device_put(prompts, mesh_lib.batch_sharding(run.mesh))
    images[name], entries = run.rollout(
        run.task.rollout_params(run.state), prompts, seed, np.int32(i * size))
    batch[name] = entries | jax.device_put(
        {"keep": np.ones(size, np.bool_), "old_decay": np.full(size, decay, np.float32),
         **run.task.learning_signal(signs[i])}, mesh_lib.batch_sharding(run.mesh))
  return images, batch, signs


@pytest.fixture(scope="module")
def nft():
  return _run(_config("rl_nft", **_NFT))


@pytest.fixture(scope="module")
def grpo():
  return _run(_config("rl_grpo", data__edit_share=0.0, batch_size=8, reward__clip_range=1e-4))


def test_the_batch_of_a_rollout_is_the_one_that_the_step_is_compiled_for(nft):
  images, batch, _ = _batch(nft)
  assert images["edit"].shape == (8, 2, micro.IMAGE_SIZE, micro.IMAGE_SIZE, 3)
  spec = nft.task.batch_spec(16)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), batch) == jax.tree.map(
      lambda s: (s.shape, s.dtype), spec)
  assert len(np.unique(np.asarray(batch["t2i"]["latents"]).reshape(16, -1)[:, 0])) == 16


def test_at_the_old_policy_the_gradient_is_the_advantage_times_the_normalised_flow_gradient(nft):
  task, state = nft.task, nft.state
  _, batch, signs = _batch(nft)
  prepared = task.prepare(state, batch)
  sizes = [p["keep"].size for p in prepared.values()]

  def weighted_flow_loss(trained):
    params, total = tree.merge(trained, state.frozen), 0.0
    for part, advantage in zip(prepared.values(), np.clip(signs, -5, 5)):
      sigma, x = part["sigma"][..., None, None, None], part["latents"][:, :, None]
      z = (1 - sigma) * x + sigma * part["noise"]
      flat = lambda a: a.reshape(-1, *a.shape[3:])
      v = task.model.velocity(params, flat(z), 1000 * part["sigma"].reshape(-1), part["context"],
                              part["context_mask"]).reshape(z.shape)
      error = z - sigma * v - x
      mean = lambda a: a.mean((3, 4, 5))
      weight = jax.lax.stop_gradient(jnp.maximum(mean(jnp.abs(error)), 1e-5))
      total += (advantage[..., None] * mean(jnp.square(error)) / weight).mean((1, 2)).sum()
    return total / sum(sizes)

  def loss(trained):
    return task._loss(trained, {**state.frozen, "old": state.old}, prepared)[0]

  found, expected = jax.jit(lambda p: (jax.grad(loss)(p), jax.grad(weighted_flow_loss)(p)))(state.params)
  largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
  assert largest > 1e-3
  chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-4 * largest)


def test_after_an_update_the_old_policy_follows_by_its_decay_or_stays(nft):
  _, batch, _ = _batch(nft)
  decays = {0.25: None, 1.0: None}
  for decay in decays:
    for part in batch.values():
      part["old_decay"] = jnp.full_like(part["old_decay"], decay)
    decays[decay], metrics = nft.step(nft.state, batch)
    assert metrics["finite"] == 1
    assert metrics["old_distance"] < 1e-9
  moved = decays[0.25]
  chex.assert_trees_all_close(
      moved.old, jax.tree.map(lambda o, n: 0.25 * o + 0.75 * n, nft.state.old, moved.params), rtol=1e-5,
      atol=1e-7)
  chex.assert_trees_all_equal(decays[1.0].old, nft.state.old)
  chex.assert_trees_all_equal(moved.frozen, nft.state.frozen)  # the LLM among them
  assert set(moved.params) == {"dit"}
  assert np.abs(moved.params["dit"]["out"]["kernel"] - nft.state.params["dit"]["out"]["kernel"]).max() > 0


def test_dropped_groups_change_nothing(nft):
  _, batch, _ = _batch(nft)
  dropped = {name: dict(part, keep=part["keep"].at[jnp.array([1, 4])].set(False))
             for name, part in batch.items()}
  other = {name: dict(part, optimality=part["optimality"].at[jnp.array([1, 4])].set(0.9))
           for name, part in dropped.items()}
  first, second, complete = (nft.step(nft.state, b) for b in (dropped, other, batch))
  chex.assert_trees_all_equal(first[0].params, second[0].params)
  assert float(first[1]["loss"]) != float(complete[1]["loss"])


def test_a_rollout_is_the_sampler_without_guidance(nft):
  task = nft.task
  images, _, _ = _batch(nft, parts=("t2i",))
  noise = np.asarray(image_sampling.noise(np.uint32(7), 0, (16, *task.latent_shape(1)[1:])))
  prompts = _prompts(8)["t2i"]
  repeated = {k: np.repeat(v, 2, axis=0) for k, v in prompts.items()}
  make_images = task.make_sampler(16, nft.mesh)
  rows = list(zip(repeated["tokens"], repeated["token_mask"]))
  expected = make_images._sample(
      task.rollout_params(nft.state), rows, rows[0], None, sampler.Options(4, 1.0, "dpm"), 0, 0, noise,
      None)
  found = np.asarray(images["t2i"]).reshape(16, *images["t2i"].shape[2:]).astype(int)
  assert np.abs(found - np.stack(expected)).max() <= 1


def _advance(run, opened, state, count):
  measured = []
  for _ in range(count):
    ids, batch, values = opened.next(state)
    state, metrics = run.step(state, batch)
    measured.append((ids.tolist(), values | {k: float(v) for k, v in metrics.items()}))
  return state, measured


def test_a_run_that_resumes_in_the_middle_of_a_rollout_continues_bit_for_bit(nft, tmp_path):
  config = nft.task.config
  open_at = lambda step: inputs.open_inputs(
      config, nft.task, nft.mesh, step=step, position=step * config.batch_size, workdir=str(tmp_path))
  first = open_at(0)
  state, _ = _advance(nft, first, nft.state, 3)
  abstract = initial_state.abstract_state(nft.task, config, nft.mesh)
  manager = checkpoint.Manager(str(tmp_path / "run"), keep=1)
  manager.save_frozen(state.frozen, nft.task.model_spec())
  manager.save(3, state, {"step": 3, "position": 48})
  manager.wait()
  uninterrupted = _advance(nft, first, state, 2)
  first.close()
  restored, _ = manager.restore(abstract)
  manager.close()
  second = open_at(3)
  second._rollout = first._rollout  # the compiled program
  resumed = _advance(nft, second, restored, 2)
  second.close()
  assert resumed[1] == uninterrupted[1]
  chex.assert_trees_all_equal(resumed[0].params, uninterrupted[0].params)
  chex.assert_trees_all_equal(resumed[0].old, uninterrupted[0].old)
  chex.assert_trees_all_equal(resumed[0].opt_state, uninterrupted[0].opt_state)


def test_the_ratio_is_one_on_the_rollout_of_the_weights_and_leaves_it_afterwards(grpo):
  _, batch, signs = _batch(grpo, parts=("t2i",), decay=1.0)
  state, metrics = grpo.step(grpo.state, batch)
  assert float(metrics["ratio"]) == 1.0
  assert float(metrics["ratio_deviation"]) == 0.0
  np.testing.assert_allclose(float(metrics["policy_loss"]), -np.clip(signs, -5, 5).mean(), atol=1e-6)
  chex.assert_trees_all_equal(state.old, grpo.state.old)
  _, metrics = grpo.step(state, batch)
  assert 0 < float(metrics["ratio_deviation"]) < 0.1


def test_eight_devices_agree_with_one(nft):
  images, batch, _ = _batch(nft)
  state, metrics = nft.step(nft.state, batch)
  other = _run(nft.task.config, (2, 4))
  other_images, other_batch, _ = _batch(other)
  other_state, other_metrics = other.step(other.state, other_batch)
  for name, value in images.items():
    assert np.abs(np.asarray(other_images[name]).astype(int) - np.asarray(value)).max() <= 1
  for name, value in metrics.items():
    np.testing.assert_allclose(float(other_metrics[name]), float(value), rtol=5e-4, atol=1e-6, err_msg=name)
  chex.assert_trees_all_close(
      jax.device_get((other_state.params, other_state.old)), jax.device_get((state.params, state.old)),
      rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize(("stage", "size"), [
    pytest.param(rl_nft, "1b", id="rl_nft-1b"), pytest.param(rl_grpo, "3b", id="rl_grpo-3b"),
    pytest.param(rl_nft, "3b", id="rl_nft-3b", marks=pytest.mark.thorough),
    pytest.param(rl_grpo, "1b", id="rl_grpo-1b", marks=pytest.mark.thorough)])
def test_rollout_and_step_trace_at_published_size(size, stage, monkeypatch):
  config = stage.get_config(size)
  task = tasks.make(config)
  monkeypatch.setattr(task, "_image_slot", 151_667)
  state, spec = task.state_shapes(), task.batch_spec(config.batch_size)
  new, metrics = jax.eval_shape(micro.train_step(task), state, spec)
  same = lambda a, b: jax.tree.map(lambda s: (s.shape, s.dtype), a) == jax.tree.map(
      lambda s: (s.shape, s.dtype), b)
  assert same(new, state)
  assert metrics["loss"].shape == ()
  assert set(state.params) == set(state.old) == {"dit"}
  sizes = batch_lib.part_sizes(config)
  assert sizes == {"t2i": 32, "edit": 16}
  name = "t2i" if size == "3b" else "edit"
  prompts = {k: v for k, v in batch_lib.prompt_spec(
      sizes[name], config.text[f"{name}_length"], 0, 448 if name == "edit" else None).items()
      if not k.startswith("_")}
  images, entries = jax.eval_shape(
      task.rollout, task.rollout_params(state), prompts, np.uint32(0), np.int32(0))
  assert images.shape == (sizes[name], 24, 448, 448, 3)
  assert same(entries, {k: spec[name][k] for k in entries})
  assert spec[name].keys() - entries.keys() == {"keep", "old_decay", task.signal}


def test_queries_and_connector_may_train_and_the_reference_network_is_kept():
  config = _config("rl_nft", reward__kl=1e-3, reward__times=2, param_rules=(
      ("^(vision_tower|mlp1|latent_head|decoder|llm)/", {"train": False}),))
  task = tasks.make(config)
  state, spec = task.state_shapes(), task.batch_spec(16)
  assert set(state.old) == {"queries", "connector", "projector", "dit"}
  assert "tokens" in spec["edit"]
  assert "context" not in spec["edit"]
  new, metrics = jax.eval_shape(task.train_step, state, spec)
  assert "kl" in metrics
  assert tree.count(new.frozen["reference"]) == tree.count(state.params)
  assert "reference" not in task.model_params(new)


@pytest.mark.parametrize(("stage", "fields", "message"), [
    ("rl_nft", dict(reward__times=5), "reward.times=5 is more than reward.steps=4"),
    ("rl_nft", dict(reward__sub_batches=3), "do not divide into reward.sub_batches=3"),
    ("rl_nft", dict(param_rules=()), "leaves decoder, latent_head, llm, mlp1, vision_tower as they are"),
    ("rl_nft", dict(data__latents_dir="/tmp/x"), "takes prompts and no targets"),
    ("rl_grpo", dict(reward__window=3), "does not fit into the noisy half"),
    ("rl_grpo", dict(reward__solver="dpm"), "needs reward.solver='euler'"),
])
def test_settings_that_exclude_each_other_are_refused(stage, fields, message):
  with pytest.raises(ValueError, match=message):
    tasks.make(_config(stage, **dict(reward__times=2) | fields))


def test_what_is_known_about_advantages_holds_for_the_entries(nft, grpo):
  values = np.array([[-7.0, 0.0], [2.5, 9.0]])
  np.testing.assert_array_equal(nft.task.learning_signal(values)["optimality"], [[0, 0.5], [0.75, 1]])
  np.testing.assert_array_equal(grpo.task.learning_signal(values)["advantage"], [[-5, 0], [2.5, 5]])
  assert advantages.old_policy_decay(1, 250) == 0.25
