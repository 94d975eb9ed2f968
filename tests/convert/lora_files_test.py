"""Recorded adapters of PEFT and diffusers give the recorded outputs; what their loaders skip is refused."""

import json
import logging
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from safetensors import numpy as safetensors

from tests.golden import lora as recordings
from tests.parity import assert_parity, relative_error
from unilip_jax.common import tree
from unilip_jax.convert import engine, io, lora_export, lora_files, lora_names, qwen2, sana
from unilip_jax.infer import adapters as settings
from unilip_jax.models import lora, presets
from unilip_jax.models import qwen2 as qwen2_lib
from unilip_jax.models import sana as sana_lib
from unilip_jax.optim import param_table, update
from unilip_jax.optim import state as state_lib
from unilip_jax.weights import adapters

_LLM = ("adapter", "adapter_patterns")
_DIT = ("script_defaults", "wide")
_UNTRAINED = "dit/peft_folder"  # random matrices
_RTOL = 1e-5  # float32 on both sides, two or three layers


class Llm:
  """The recorded Qwen2."""

  layout = lora_names.QWEN2

  def __init__(self, folder):
    self.dims = {"llm": presets.LlmDims(depth=3, width=48, heads=4, kv_heads=2, mlp=96, vocab=128)}
    rules = qwen2.rules(self.dims["llm"], "model.", "llm/", head="lm_head.weight")
    self.base = engine.from_torch(io.open_file(folder / "llm/base/model.safetensors"), rules)
    self._net = qwen2_lib.Qwen2(self.dims["llm"], jnp.float32)
    self._jitted = jax.jit(self.logits)

  def logits(self, params, ids, mask):
    variables = {"params": params["llm"]}
    hidden, _ = self._net.apply(variables, self._net.apply(variables, ids, method="embed"), mask)
    return self._net.apply(variables, hidden, method="logits")

  def outputs(self, params, recorded):
    mask = recorded["attention_mask"].astype(bool)
    return np.asarray(self._jitted(params, recorded["input_ids"].astype(np.int32), mask))[mask]

  def recorded(self, recorded, name):
    return recorded[f"logits_{name}"][recorded["attention_mask"].astype(bool)]

  def loss(self, params, recorded):
    mask = recorded["train_attention_mask"].astype(bool)
    logits = self.logits(params, recorded["train_input_ids"], mask)
    labels = recorded["train_labels"][:, 1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], jnp.maximum(labels, 0))
    return (losses * (labels >= 0)).sum() / (labels >= 0).sum()


class Dit:
  """The recorded SANA."""

  layout = lora_names.SANA

  def __init__(self, folder):
    config = json.loads((folder / "dit/base/config.json").read_text())
    self.dims = {"dit": sana.from_config(config, positions=False)}
    self.base = engine.from_torch(
        io.open_file(folder / "dit/base/diffusion_pytorch_model.safetensors"),
        sana.rules(self.dims["dit"], "", "dit/"), skip=[sana.SKIP])
    self._net = sana_lib.Sana(self.dims["dit"], jnp.float32)
    self._jitted = jax.jit(self.velocity)

  def velocity(self, params, *args):
    return self._net.apply({"params": params["dit"]}, *args)

  def outputs(self, params, recorded):
    return np.asarray(self._jitted(
        params, recorded["latents"].transpose(0, 2, 3, 1), recorded["timestep"], recorded["context"],
        recorded["context_mask"].astype(bool))).transpose(0, 3, 1, 2)

  def recorded(self, recorded, name):
    return recorded[f"out_{name}"]

  def loss(self, params, recorded):
    x, noise = (jnp.transpose(recorded[f"train_{n}"], (0, 2, 3, 1)) for n in ("x", "noise"))
    sigma = recorded["train_sigma"]
    z = (1 - sigma[:, None, None, None]) * x + sigma[:, None, None, None] * noise
    velocity = self.velocity(
        params, z, 1000 * sigma, recorded["train_context"], recorded["train_context_mask"].astype(bool))
    return jnp.square(velocity - (noise - x)).mean()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  return recordings.unpack(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def llm(folder):
  return Llm(folder)


@pytest.fixture(scope="module")
def dit(folder):
  return Dit(folder)


_TRAINED = [*(f"llm/{n}" for n in _LLM), *(f"dit/{n}" for n in _DIT)]
_cases = pytest.mark.parametrize("name", [*_TRAINED, _UNTRAINED])


@pytest.fixture
def case(name, folder, llm, dit):
  """(model, folder of the adapter, recorded inputs and outputs)."""
  place = folder / name
  return llm if name.startswith("llm") else dit, place, dict(np.load(place / "io.npz"))


def _read(model, path):
  return adapters.open_adapter(
      str(path), model.dims, {p: x.shape for p, x in tree.flatten(model.base).items()})


@_cases
def test_outputs_are_those_of_the_library(case):
  model, place, recorded = case
  with_adapter = tree.merge(model.base, _read(model, place))
  all_params = {"base": model.base, "adapter": with_adapter, "merged": lora.merge(with_adapter)}
  for name, params in all_params.items():
    assert_parity("LoRA", f"{place.name}, {name}", model.outputs(params, recorded),
                  model.recorded(recorded, name), _RTOL)


@pytest.mark.parametrize("name", ["script_defaults", "wide"])
def test_half_the_weight_and_no_configuration_are_as_in_diffusers(folder, dit, caplog, name):
  place = folder / "dit" / name
  recorded = dict(np.load(place / "io.npz"))
  half = tree.merge(dit.base, lora.combine([(_read(dit, place), 0.5)]))
  assert_parity("LoRA", f"{name}, half", dit.outputs(half, recorded), recorded["out_adapter_half"], _RTOL)
  with caplog.at_level(logging.WARNING):
    without = tree.merge(dit.base, _read(dit, place / "without_metadata"))
  assert "alpha = rank is assumed" in caplog.text
  assert_parity("LoRA", f"{name}, without configuration", dit.outputs(without, recorded),
                recorded["out_without_metadata"], _RTOL)


def test_two_halves_of_an_adapter_are_the_adapter(folder, dit):
  place = folder / "dit/wide"
  recorded, leaves = dict(np.load(place / "io.npz")), _read(dit, place)
  other = _read(dit, folder / "dit/peft_folder")
  twice = tree.merge(dit.base, lora.combine([(leaves, 0.5), (other, 0.0), (leaves, 0.5)]))
  assert_parity("LoRA", "two halves", dit.outputs(twice, recorded), recorded["out_adapter"], _RTOL)


def _initial(place, out):
  """Writes the adapter before its first step in the layout of the trained one."""
  shutil.copytree(place, out)
  tensors = safetensors.load_file(place / "init_state.safetensors")
  name = lora_files.PEFT_FILE if (place / lora_files.PEFT_FILE).exists() else lora_files.DIFFUSERS_FILE
  metadata = io.safetensors_header(place / name)["__metadata__"]
  safetensors.save_file(tensors, out / name, metadata=metadata)
  return out


@pytest.mark.parametrize("name", _TRAINED)
def test_training_is_that_of_the_library_step_for_step(case, tmp_path):
  model, place, recorded = case
  notes = json.loads((place / "notes.json").read_text())
  leaves = _read(model, _initial(place, tmp_path / "first"))
  assert all(not np.any(leaf["b"]) for leaf in lora.by_part(leaves).values())
  config = ml_collections.ConfigDict({
      "optimizer": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_norm": 1e9, "lr": notes["learning_rate"],
                    "end_lr": notes["learning_rate"], "warmup_steps": 0},
      "total_steps": notes["steps"], "ema_decay": 0.0})
  params = tree.merge(model.base, leaves)
  columns = param_table.resolve(params, (*lora.PARAM_RULES, ("", {"train": False})), ("norm", "embed"))
  trained, frozen = tree.split(params, lambda path: columns[path].train)
  assert {path.split("/")[-1] for path in tree.flatten(trained)} == {"a", "b"}
  adamw = update.make_adamw(config, columns, notes.get("weight_decay", 0.0))
  state = state_lib.TrainState(step=jnp.int32(0), seed=jnp.uint32(0), params=trained, ema={}, gan={},
                               opt_state=adamw.init(trained), frozen={})
  train = {name: value for name, value in recorded.items() if name.startswith("train_")}

  @jax.jit
  def step(state):
    loss, grads = jax.value_and_grad(lambda p: model.loss(tree.merge(p, frozen), train))(state.params)
    return state.replace(**update.apply_gradients(config, adamw, state, grads)[0]), loss

  losses = []
  for _ in recorded["train_losses"]:
    last, (state, loss) = state, step(state)
    losses.append(float(loss))
  np.testing.assert_allclose(losses, recorded["train_losses"], rtol=1e-4)
  saved = tree.flatten(_read(model, place))
  for path, value in tree.flatten(last.params).items():
    # Adam divides by the gradient's size, which magnifies the rounding of small gradients.
    assert relative_error(value, saved[path]) < 1e-3, path


@_cases
def test_an_export_holds_the_same_numbers(case, tmp_path):
  model, place, _ = case
  leaves = _read(model, place)
  layers = lora_export.layers_of(leaves, model.layout, model.dims)
  writers = (lora_export.write_peft, lora_export.write_diffusers)
  for write in writers if model.layout is lora_names.SANA else writers[:1]:
    out = tmp_path / write.__name__
    out.mkdir()
    write(out, layers, model.layout, model.dims)
    for path, value in tree.flatten(_read(model, out)).items():
      np.testing.assert_allclose(value, tree.flatten(leaves)[path], rtol=1e-6, err_msg=path)
  config = lora_export.configuration(layers, model.layout, model.dims)
  if (place / lora_files.CONFIG).exists():
    recorded_config = json.loads((place / lora_files.CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (recorded_config["r"], recorded_config["lora_alpha"])
    ends = {name.split(".")[-1] for name in recorded_config["target_modules"]}
    assert {name.split(".")[-1] for name in config["target_modules"]} == ends


def test_the_names_of_a_complete_model_are_those_of_peft(folder, llm, dit):
  dims = {**llm.dims, **dit.dims, "connector": presets.ConnectorDims(depth=2, queries=4), "projector": None}
  keys = json.loads((folder / "whole_model/keys.json").read_text())
  leaves = lora_files.read(str(folder / "whole_model"), dims)
  layers = lora_export.layers_of(leaves, lora_names.UNILIP, dims)
  assert {f"base_model.model.{name}.lora_{m}.weight": list(x.shape)
          for name, (a, b, _) in layers.items() for m, x in (("A", a), ("B", b))} == keys
  for module, layout in (("llm", lora_names.QWEN2), ("dit", lora_names.SANA)):
    own = lora_export.layers_of(leaves, layout, {module: dims[module]})
    assert len(own) == sum(p.dense.startswith(f"{module}/") for n, p in
                           lora_names.UNILIP.places(dims).items() if n in layers)


def _changed(place, out, config=lambda c: c, tensors=lambda t: t):
  """Writes a PEFT folder with another configuration or other tensors."""
  out.mkdir()
  entries = json.loads((place / lora_files.CONFIG).read_text())
  (out / lora_files.CONFIG).write_text(json.dumps(config(entries)))
  safetensors.save_file(tensors(safetensors.load_file(place / lora_files.PEFT_FILE)),
                        out / lora_files.PEFT_FILE)
  return out


@pytest.mark.parametrize(("entries", "message"), [
    ({"use_dora": True}, "use_dora"), ({"bias": "lora_only"}, "bias"), ({"peft_type": "LOHA"}, "LOHA"),
    ({"init_lora_weights": "pissa"}, "pissa"), ({"target_modules": None}, "target_modules"),
    ({"target_modules": ["q_proj"]}, "self_attn.k_proj"), ({"r": 4}, "rank 4"),
    ({"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]}, "up_proj"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"r": "8"}, "rank of r='8'"), ({"r": 0}, "at least 1"), ({"lora_alpha": "16"}, "alpha of lora_alpha"),
    ({"lora_alpha": float("nan")}, "finite number"), ({"use_rslora": "false"}, "True or False"),
    ({"rank_pattern": [8]}, "are objects"), ({"rank_pattern": {"(": 8}}, "no regular expression"),
    ({"alpha_pattern": {"q_proj": None}}, "alpha of q_proj"),
    ({"target_modules": "["}, "no regular expression"),
    ({"target_modules": 5}, "neither a pattern"), ({"exclude_modules": [5]}, "neither a pattern"),
    ({"layers_to_transform": "0"}, "layers_to_transform='0'")])
def test_configurations_of_another_output_are_refused(folder, llm, tmp_path, entries, message):
  place = _changed(folder / "llm/adapter", tmp_path / "x", lambda c: c | entries)
  with pytest.raises(ValueError, match=message):
    _read(llm, place)


@pytest.mark.parametrize(("change", "message"), [
    (lambda n: n.replace("lora_A", "lora_down"), "kohya"),
    (lambda n: n.replace(".0.", ".9."), r"layers\.9"),
    (lambda n: n.removeprefix("base_model."), "begin with"),
    (lambda n: n.replace("q_proj", "x_proj"), "x_proj")])
def test_names_that_loaders_skip_are_refused(folder, llm, tmp_path, change, message):
  place = _changed(folder / "llm/adapter", tmp_path / "x",
                   tensors=lambda t: {change(n): x for n, x in t.items()})
  with pytest.raises(ValueError, match=message):
    _read(llm, place)


@pytest.mark.parametrize("header", ["{", "[]", "5", "[" * 100_000])
def test_a_header_that_is_no_object_is_named(dit, tmp_path, header):
  file = tmp_path / lora_files.DIFFUSERS_FILE
  layer = "transformer.transformer_blocks.0.attn1.to_q"
  safetensors.save_file({f"{layer}.lora_{m}.weight": np.zeros((2, 2), np.float32) for m in "AB"}, file,
                        metadata={lora_files.METADATA: header})
  with pytest.raises(ValueError, match=f"{lora_files.METADATA} in its header"):
    _read(dit, tmp_path)


@pytest.mark.parametrize("matrix", [np.zeros((0, 2), np.float32), np.zeros((2, 2), np.int8)])
def test_matrices_without_rows_or_of_whole_numbers_are_refused(dit, tmp_path, matrix):
  layer = "transformer.transformer_blocks.0.attn1.to_q"
  safetensors.save_file({f"{layer}.lora_{m}.weight": matrix for m in "AB"},
                        tmp_path / lora_files.DIFFUSERS_FILE)
  with pytest.raises(ValueError, match=r"no finite matrix|whole numbers"):
    _read(dit, tmp_path)


def test_settings_are_checked_before_weights_are_read(tmp_path):
  (tmp_path / "a:2").mkdir()
  path = str(tmp_path / "a:2")
  assert settings.parse(path) == {path: 1.0}  # a path that exists is no weight
  assert settings.parse([f"{path}:0.5"]) == settings.parse({path: 0.5}) == {path: 0.5}
  with pytest.raises(FileNotFoundError, match="the adapter none does not exist"):
    settings.parse("none:0.5")
  for twice in ([path, f"{path}/"], {path: 1.0, f"{tmp_path}/./a:2": 1.0}):
    with pytest.raises(ValueError, match="given twice"):
      settings.parse(twice)
  for wrong in (5, None, [None], {5: 1.0}, {path: "1"}, {path: float("nan")}):
    with pytest.raises(ValueError, match=r"adapter"):
      settings.parse(wrong)


def test_a_missing_matrix_and_another_models_adapter_are_refused(folder, llm, dit, tmp_path):
  place = _changed(folder / "llm/adapter", tmp_path / "half", tensors=lambda t: dict(list(t.items())[1:]))
  with pytest.raises(ValueError, match="only one of"):
    _read(llm, place)
  with pytest.raises(ValueError, match="does not have"):
    _read(llm, folder / "dit/wide")
  with pytest.raises(ValueError, match="another model"):
    adapters.open_adapter(
        str(folder / "llm/adapter"), llm.dims, {"llm/stack/layers/attn/qkv/kernel": (3, 48, 9)})
  with pytest.raises(FileNotFoundError, match="holds no adapter"):
    _read(llm, tmp_path)
  (tmp_path / "adapter.bin").write_bytes(b"x")
  with pytest.raises(ValueError, match="pickles run code"):
    _read(llm, tmp_path / "adapter.bin")


def test_rslora_and_layers_to_transform_are_understood(folder, llm, tmp_path):
  fewer = lambda t: {n: x for n, x in t.items() if ".layers.1." in n}
  place = _changed(folder / "llm/adapter", tmp_path / "x",
                   lambda c: c | {"use_rslora": True, "layers_to_transform": [1]}, fewer)
  scale = tree.flatten(_read(llm, place))["llm/stack/layers/attn/out/lora/full/scale"]
  np.testing.assert_allclose(scale, np.array([0, 16 / 8**0.5, 0])[:, None] * np.ones((1, 8)), rtol=1e-6)
