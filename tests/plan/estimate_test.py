"""A plan's figures: FLOPs against a hand count, times against the peak, costs against the step."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import pytest

from tests import micro
from unilip_jax.configs import gen2, stage2
from unilip_jax.models import presets, sana
from unilip_jax.ops import backend
from unilip_jax.plan import command, estimate, gpu, topology
from unilip_jax.training import flops


def _dense(tokens, *widths):
  """Counts FLOPs of a chain of matrix multiplications over `tokens`."""
  return sum(2 * tokens * a * b for a, b in itertools.pairwise(widths))


def _by_hand(preset, config):
  """Counts model FLOPs of a generation step, part by part.

  The backward pass of a trained matrix multiplication costs twice its forward pass; of a frozen one that
  gradients pass through, once.
  """
  vit, llm, dit = preset.tokenizer.vit, preset.llm, preset.dit
  queries, slots = preset.connector.queries, preset.tokenizer.image_tokens(config.image_size)
  patches = (config.image_size // vit.patch) ** 2
  grid = preset.tokenizer.image_tokens(config.image_size)

  tower_layer = (_dense(patches + 1, vit.width, 3 * vit.width) + _dense(patches + 1, vit.width, vit.width)
                 + _dense(patches + 1, vit.width, vit.mlp, vit.width) + 4 * (patches + 1) ** 2 * vit.width)
  features = (_dense(patches, 3 * vit.patch**2, vit.width) + vit.depth * tower_layer
              + _dense(slots, 4 * vit.width, llm.width, llm.width))
  head = (preset.tokenizer.latent_depth * 2 * _dense(slots, llm.width, llm.width)
          + _dense(slots, llm.width, 32, 32))

  qkv = (llm.heads + 2 * llm.kv_heads) * llm.head_dim
  def llm_dots(tokens):
    return (_dense(tokens, llm.width, qkv) + _dense(tokens, llm.width, llm.width)
            + 3 * _dense(tokens, llm.width, llm.mlp))
  def scores(tokens, keys):
    return 4 * tokens * keys * llm.width

  w, cross = dit.width, dit.cross_heads * dit.cross_head_dim
  hidden = int(dit.mlp_ratio * w)
  def image(context):  # of the DiT, forward
    layer = (_dense(grid, w, 3 * w) + _dense(grid, w, w) + 2 * _dense(grid, dit.head_dim, w)
             + _dense(grid, w, cross) + _dense(context, w, 2 * cross) + _dense(grid, cross, w)
             + 4 * grid * context * cross
             + _dense(grid, w, 2 * hidden) + 2 * 9 * grid * 2 * hidden + _dense(grid, hidden, w))
    return (dit.depth * layer + _dense(context, dit.caption_width, w, w) + 2 * _dense(grid, 32, w)
            + _dense(1, 256, w, w) + _dense(1, w, 6 * w))

  def example(prompt, edit):
    length = prompt + queries
    frozen = (1 + edit) * features + head + llm.depth * (llm_dots(prompt) + scores(prompt, prompt))
    passing = llm.depth * (2 * llm_dots(queries) + 3 * scores(queries, length))
    connector = preset.connector.depth * (llm_dots(length) + scores(length, length))
    trained = connector + _dense(length, llm.width, dit.caption_width) + image(length)
    return frozen + passing + 3 * trained

  parts = {"t2i": example(config.text.t2i_length, False), "edit": example(config.text.edit_length, True)}
  edits = 144
  return (config.batch_size - edits) * parts["t2i"] + edits * parts["edit"]


def test_flops_of_gen2_1b_are_those_counted_by_hand_and_double_with_the_layers(monkeypatch):
  config = estimate.without_files(gen2.get_config("1b"))
  preset = presets.get("1b")
  counted = estimate.model_flops(config, "tpu")
  assert counted == pytest.approx(_by_hand(preset, config), rel=0.05)

  twice = lambda part: dataclasses.replace(part, depth=2 * part.depth)
  tokenizer = dataclasses.replace(preset.tokenizer, vit=twice(preset.tokenizer.vit))
  deep = dataclasses.replace(preset, tokenizer=tokenizer, llm=twice(preset.llm), dit=twice(preset.dit),
                             connector=twice(preset.connector))
  monkeypatch.setattr(presets, "get", lambda size: deep)
  config.stage = "deep"  # another key of the cache
  assert estimate.model_flops(config, "tpu") == pytest.approx(2 * counted, rel=0.05)


def test_flops_grow_linearly_with_depth():
  counts = []
  latents, time = jax.ShapeDtypeStruct((2, 2, 2, 32), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
  context, mask = jax.ShapeDtypeStruct((2, 5, 16), jnp.float32), jax.ShapeDtypeStruct((2, 5), jnp.bool_)
  for depth in (2, 4, 6):
    dit = sana.Sana(dataclasses.replace(micro.preset().dit, depth=depth), jnp.float32)
    params = jax.eval_shape(dit.init, jax.random.key(0), latents, time, context, mask)
    loss = lambda params, *inputs, dit=dit: dit.apply(params, *inputs).sum()
    with backend.planning("tpu"):
      counts.append(flops.count(jax.grad(loss), params, latents, time, context, mask))
  assert counts[2] - counts[1] == counts[1] - counts[0] > 0


@pytest.fixture
def gpu_plan(monkeypatch):
  micro.install(monkeypatch)
  config = micro.config("stage1", mesh__fsdp=4, mesh__min_shard_size=64)
  return estimate.plan(config, topology.parse("h100:8"))


def test_gpus_are_planned_without_compiling(gpu_plan):
  assert gpu_plan["mesh"] == {"data": 2, "fsdp": 4}
  assert gpu_plan["fits"]
  time = gpu_plan["time"]
  assert "nothing was compiled" in gpu_plan["made_by"]
  assert time["images_per_second"] == pytest.approx(8 / time["step_seconds"])
  assert time["chip_hours"] == pytest.approx(8 * time["step_seconds"] * 6 / 3600)
  assert 0 < time["mfu"] < 1
  assert gpu_plan["flops"]["hardware"] >= gpu_plan["flops"]["model"]
  assert set(gpu_plan["collectives"]["by_kind"]) == {"all-reduce", "all-gather", "reduce-scatter"}
  assert "An estimate: no such chip was used" in command.text(gpu_plan)


def test_accumulation_costs_the_same_flops_in_less_memory(monkeypatch):
  micro.install(monkeypatch)
  one = topology.parse("h100:1")
  full, micro_batches = (gpu.plan(micro.text_config("gen2", grad_accum_steps=n, data__part_multiple=4), one)
                for n in (1, 4))
  assert full["traced"]["hardware_flops"] == pytest.approx(micro_batches["traced"]["hardware_flops"])
  assert micro_batches["memory"]["activations"] < full["memory"]["activations"] / 3
  with pytest.raises(ValueError, match="grad_accum_steps=2 with a GAN"):
    gpu.plan(micro.config("stage2", grad_accum_steps=2), one)


def test_rematerialisation_keeps_less_for_the_backward_pass(monkeypatch):
  micro.install(monkeypatch)
  saved = [gpu.plan(micro.config("stage1", remat__vit=policy, remat__decoder=policy),
                   topology.parse("h100:1"))["memory"]["activations"] for policy in ("full", "none")]
  assert saved[0] < saved[1]


@pytest.fixture
def counted(monkeypatch):
  """A run whose step has 1e12 FLOPs and takes 10 ms."""
  traced = {"mesh": {"data": 1, "fsdp": 1}, "hardware_flops": 1e12}
  monkeypatch.setattr(gpu, "plan", lambda *_: {
      "traced": traced, "memory": {"parameters": 2**30}, "seconds": 0.01, "collectives": []})
  monkeypatch.setattr(estimate, "model_flops", lambda *_: 0.8e12)
  return micro.config("stage1")


def test_mfu_counts_the_models_own_work(counted):
  plan = estimate.plan(counted, topology.parse("h100:1"))
  assert plan["time"]["mfu"] == pytest.approx(0.8e12 / 0.01 / 989e12)
  assert plan["time"]["step_seconds"] == 0.01
  assert plan["memory_per_device"]["needed"] == 2**30


@pytest.mark.parametrize(("name", "value"), [("model", 1e15), ("hardware", 1e15)])
def test_an_mfu_above_one_is_refused(counted, monkeypatch, name, value):
  if name == "model":
    monkeypatch.setattr(estimate, "model_flops", lambda *_: value)
  else:
    gpu.plan()["traced"]["hardware_flops"] = value
  with pytest.raises(RuntimeError, match=rf"{name} FLOPs 1e\+15 in 0.01 s are .* which is impossible"):
    estimate.plan(counted, topology.parse("h100:1"))


def test_a_plan_that_does_not_fit_is_marked(counted, monkeypatch):
  monkeypatch.setattr(gpu, "plan", lambda *_, before=gpu.plan: before() | {
      "memory": {"parameters": 100 * 2**30}})
  plan = estimate.plan(counted, topology.parse("h100:1"))
  assert not plan["fits"]
  assert "DOES NOT FIT: 100 GB of 67.1 GB" in command.text(plan)


def test_a_batch_that_does_not_divide_is_refused():
  with pytest.raises(ValueError, match="does not divide over 16 devices"):
    gpu.plan(micro.config("stage1"), topology.parse("a100:16"))
  with pytest.raises(ValueError, match="is not the 8 GPUs"):
    gpu.plan(micro.config("stage1", mesh__fsdp=3), topology.parse("h100:8"))


def test_planning_needs_no_weights():
  config = stage2.get_config("1b")
  assert estimate.without_files(config).text.tokenizer == "shapes"
  assert config.text.tokenizer != "shapes"  # the caller's stays


def test_formulations_of_the_planned_backend_are_traced():
  assert backend.name() == "cpu"
  assert not backend.planned()
  with backend.planning("tpu"):
    assert backend.name() == "tpu"
    assert backend.planned()
  assert not backend.planned()
