"""UniLIP's dual condition, loss and gradients equal the recorded official training steps."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_model, golden_prompts, parity
from unilip_jax.common import tree
from unilip_jax.convert import engine
from unilip_jax.losses import flow
from unilip_jax.models import connector, presets, unilip
from unilip_jax.ops import attention
from unilip_jax.ops import image as image_ops

_TRAINED = ("queries", "connector", "projector", "dit")
_KINDS = ("t2i", "ti2i", "vae_stage1_t2i")


@pytest.fixture(scope="module")
def model(golden):
  return unilip.Unilip(golden_model.unilip_dims(golden), jnp.float32)


@pytest.fixture(scope="module")
def params(golden):
  return golden_model.unilip_params(golden)


def _recording(golden, kind):
  arrays = np.load(golden / f"gen_train_{kind}.npz")
  return arrays, golden_prompts.from_training(arrays["input_ids"], arrays["attention_mask"])


def _features(model, params, arrays):
  """mlp1's features of the input images of an edit batch; None without."""
  if "und_image" not in arrays:
    return None
  return model.features(params, _unit(arrays["und_image"])[:, None])


def _unit(recorded):
  """float32[B, R, R, 3] in [0, 1] of recorded images, which are ImageNet-normalised [B, 3, R, R]."""
  return image_ops.unit_from_imagenet(jnp.asarray(golden_model.nhwc(recorded)))


def _assert_rows(module, reference, result, prompts, recorded):
  for row in range(len(recorded)):
    columns, expected = prompts.align(recorded, row)
    parity.assert_recorded(module, reference, np.asarray(result)[row, columns], expected)


@pytest.fixture(scope="module")
def compiled_step(model):
  """Compiled once for kinds of equal shapes: ((loss, states along the way), gradients)."""
  def loss_fn(trained, frozen, units, tokens, mask, latents, normal, noise):
    p = trained | frozen
    features = None if units is None else model.features(p, units)
    states, cache = model.prompt(p, tokens, mask, golden_prompts.IMAGE_TOKEN, features)
    queries = jnp.broadcast_to(p["queries"]["queries"][None], (2, 16, 48))
    hidden, _ = model.llm.apply({"params": p["llm"]}, queries, jnp.ones((2, 16), bool), cache)
    context, context_mask = model.context(p, states, cache)
    calls = []

    def velocity(noisy, time):
      calls.append((noisy, time, model.velocity(p, noisy, time, context, context_mask)))
      return calls[-1][-1]

    loss, _ = flow.flow_loss(velocity, latents, normal, noise)
    return loss, (features, jnp.concatenate([states, hidden], 1), context, *calls[0])

  return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


@pytest.fixture(scope="module", params=_KINDS)
def step(request, golden, params, compiled_step):
  """(kind, recording, prompts, loss, gradients, states along the way)."""
  arrays, prompts = _recording(golden, request.param)
  u = np.float64(arrays["u"])
  normal = (np.log(u) - np.log1p(-u)).astype(np.float32)
  latents, noise = (golden_model.nhwc(arrays[k]) for k in ("latents_scaled_recovered", "noise"))
  trained = {k: params[k] for k in _TRAINED}
  frozen = {k: v for k, v in params.items() if k not in _TRAINED}
  units = _unit(arrays["und_image"])[:, None] if "und_image" in arrays else None
  (loss, along), grads = compiled_step(
      trained, frozen, units, prompts.tokens, prompts.mask, latents, normal, noise)
  return request.param, arrays, prompts, loss, jax.device_get(grads), along


def test_states_along_the_way_equal_the_recorded_ones(step):
  kind, arrays, prompts, _, _, (features, hidden, context, noisy, time, velocity) = step
  reference = f"golden gen_train_{kind}"
  if features is not None:
    parity.assert_recorded("mlp1 features", reference, features, arrays["image_features_und"])
  _assert_rows("LLM states, prompt overwritten", reference, hidden, prompts,
               arrays["connector_inputs_embeds"])
  _assert_rows("connector and projector", reference, context, prompts, arrays["projector_out"])
  parity.assert_parity("noisy latents", reference, noisy, golden_model.nhwc(arrays["noisy_latents"]))
  np.testing.assert_allclose(time, arrays["timesteps"], rtol=1e-6)
  parity.assert_parity("UniLIP velocity", reference, velocity, golden_model.nhwc(arrays["dit_out"]))


def test_loss_and_every_gradient_equal_the_recorded_ones(golden, model, step):
  kind, arrays, _, loss, grads, _ = step
  reference = f"golden gen_train_{kind}"
  parity.assert_parity("flow loss", reference, loss, arrays["loss"])
  table = [r for r in golden_model.unilip_rules(model.dims) if r.path.split("/")[0] in _TRAINED]
  result = engine.to_torch(grads, table)
  norms = json.loads((golden / f"gen_train_{kind}_grads.json").read_text())["per_param"]
  largest = max(norms.values())
  for name, norm in norms.items():
    error = abs(np.linalg.norm(np.float64(result[name])) - norm) / max(norm, 1e-3 * largest)
    assert error < parity.RTOL, f"{name}: {error:.1e}"
  prefixes = {"dit": "model.dit.", "connector": "model.llm_connector."}
  for key in arrays.files:
    if key.startswith("grad_"):
      first, _, rest = key.removeprefix("grad_").partition("/")
      name = prefixes[first] + rest if rest else {
          "latent_queries": "model.latent_queries",
          "projector_weight": "model.projector.weight"}[first]
      parity.assert_recorded("UniLIP, gradients", reference, result[name], arrays[key])


def test_target_latents_equal_the_recorded_ones(golden, model, params):
  unscaled = np.load(golden / "gen_latents_unscaled.npz")
  for kind in ("t2i", "ti2i"):
    arrays, _ = _recording(golden, kind)
    latents, features = model.tokenizer.apply(
        {"params": params}, _unit(arrays["gen_image"]), method="encode")
    parity.assert_recorded("target latents", f"golden gen_train_{kind}", latents,
                         golden_model.nhwc(unscaled[kind]))
    parity.assert_recorded("mlp1 features", f"golden gen_train_{kind}", features,
                         arrays["image_features_gen"])
    parity.assert_parity("target latents, scaled", f"golden gen_train_{kind}",
                         model.dims.factor * latents,
                         golden_model.nhwc(arrays["latents_scaled_recovered"]), rtol=2e-4)


def test_a_prefix_without_backward_gives_the_full_forwards_gradients(golden, model, params):
  arrays, prompts = _recording(golden, "ti2i")
  features = _features(model, params, arrays)
  weights = np.random.default_rng(0).standard_normal(
      (2, prompts.tokens.shape[1] + 16, 40)).astype(np.float32)
  frozen = {"llm": params["llm"]}
  trained = {k: params[k] for k in ("queries", "connector", "projector")}

  def full(p):  # one causal pass over prompt and queries, all of it differentiated
    where = (prompts.tokens == golden_prompts.IMAGE_TOKEN) & prompts.mask
    x = unilip.place(model.llm.apply({"params": params["llm"]}, prompts.tokens, method="embed"),
                     where, features)
    queries = jnp.broadcast_to(p["queries"]["queries"][None], (2, 16, 48))
    mask = np.concatenate([prompts.mask, np.ones((2, 16), bool)], 1)
    hidden, _ = model.llm.apply(
        {"params": params["llm"]}, jnp.concatenate([x, queries], 1), mask)
    hidden = unilip.place(hidden, np.pad(where, ((0, 0), (0, 16))), features)
    out, _ = model.connector.apply({"params": p["connector"]}, hidden, mask)
    out = model.projector.apply({"params": p["projector"]}, out)
    return (out * weights * mask[..., None]).sum()

  def prefixed(p):
    states, cache = jax.lax.stop_gradient(model.prompt(
        params, prompts.tokens, prompts.mask, golden_prompts.IMAGE_TOKEN, features))
    out, mask = model.context(frozen | p, states, cache)
    return (out * weights * mask[..., None]).sum()

  expected, result = jax.jit(jax.value_and_grad(full))(trained), jax.jit(
      jax.value_and_grad(prefixed))(trained)
  for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected)):
    assert parity.relative_error(a, b) < 2e-5


@pytest.mark.parametrize("condition", [
    c if c == "both" else pytest.param(c, marks=pytest.mark.thorough) for c in connector.CONDITIONS])
def test_longer_padding_changes_nothing(golden, params, condition):
  model = unilip.Unilip(golden_model.unilip_dims(golden), jnp.float32, condition)
  _, prompts = _recording(golden, "t2i")
  latents = np.random.default_rng(0).standard_normal((2, 4, 4, 32)).astype(np.float32)

  @jax.jit
  def velocity(params, tokens, mask):
    context, seen = model.context(params, *model.prompt(params, tokens, mask, golden_prompts.IMAGE_TOKEN))
    return model.velocity(params, latents, jnp.array([3.0, 900.0]), context, seen)

  pad = ((0, 0), (0, 9))
  np.testing.assert_allclose(
      velocity(params, np.pad(prompts.tokens, pad, constant_values=7), np.pad(prompts.mask, pad)),
      velocity(params, prompts.tokens, prompts.mask), rtol=1e-4, atol=1e-5)


def test_queries_first_change_the_order_of_the_context_alone(golden, model, params, monkeypatch):
  arrays, prompts = _recording(golden, "ti2i")
  features = _features(model, params, arrays)
  noisy = golden_model.nhwc(arrays["noisy_latents"])

  def run(p):
    states = model.prompt(params, prompts.tokens, prompts.mask, golden_prompts.IMAGE_TOKEN, features)
    context, mask = model.context(params | p, *states)
    velocity = model.velocity(params | p, noisy, arrays["timesteps"], context, mask)
    return jnp.square(velocity).sum(), (context, mask, velocity)

  trained = {k: params[k] for k in _TRAINED}
  step = lambda: jax.jit(jax.value_and_grad(run, has_aux=True))(trained)
  (_, (context, mask, velocity)), grads = step()
  monkeypatch.setattr(attention, "by_length", lambda: True)
  (_, (first, first_mask, first_velocity)), first_grads = jax.tree.map(np.asarray, step())
  assert (np.diff(first_mask.astype(int), axis=1) <= 0).all()  # pads are last
  assert not first_mask.all()
  np.testing.assert_array_equal(np.roll(mask, 16, axis=1), first_mask)
  seen = first_mask[..., None]
  assert parity.relative_error(first * seen, np.roll(context, 16, axis=1) * seen) < 1e-5
  assert parity.relative_error(first_velocity, velocity) < 1e-5
  for a, b in zip(jax.tree.leaves(first_grads), jax.tree.leaves(grads)):
    assert parity.relative_error(a, b) < 2e-5


def test_the_prompt_never_sees_what_is_behind_it(golden, model, params):
  _, prompts = _recording(golden, "t2i")
  states, _ = model.prompt(params, prompts.tokens, prompts.mask, golden_prompts.IMAGE_TOKEN)
  other = prompts.tokens.copy()
  other[:, 20:] = 5
  changed, _ = model.prompt(params, other, prompts.mask, golden_prompts.IMAGE_TOKEN)
  np.testing.assert_array_equal(states[:, :20], changed[:, :20])
  assert np.abs(states[:, 20:] - changed[:, 20:]).max() > 0


@pytest.mark.parametrize("size", ["tiny", "1b", "3b"])
def test_modules_and_published_counts(size):
  model = unilip.Unilip(presets.get(size).unilip, jnp.bfloat16)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  assert set(shapes) == set(unilip.MODULES)
  if size == "tiny":
    return
  counts = {k: tree.count(v) for k, v in shapes.items()}
  published = {"1b": (89_475_200, 229_376, 2_066_688), "3b": (280_788_480, 393_216, 3_541_248)}
  assert (counts["connector"], counts["queries"], counts["projector"]) == published[size]


def test_the_connector_starts_as_the_llms_last_layers(model):
  @jax.jit
  def some(key):
    params = model.init(key)
    return params["llm"]["stack"], params["connector"], params["queries"]["queries"]

  llm, result, queries = some(jax.random.key(0))
  chex.assert_trees_all_equal(jax.tree.map(lambda x: x[-6:], llm["layers"]), result["layers"])
  assert 0.9 < float(queries.std()) < 1.1


def test_place_takes_values_in_order():
  x, values = jnp.zeros((2, 4, 1)), jnp.arange(1.0, 7.0).reshape(2, 3, 1)
  where = np.array([[True, False, True, True], [False, True, False, False]])
  np.testing.assert_array_equal(
      unilip.place(x, where, values)[..., 0], [[1, 0, 2, 3], [0, 4, 0, 0]])
