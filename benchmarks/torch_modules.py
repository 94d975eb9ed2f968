"""Compares every module of weights with its PyTorch reference: one forward pass of the same input.

`python -m unilip_jax.convert check` runs it. The reference gets the tensors of the module under their
PyTorch names (the rules applied backwards, which gives the source's own tensors), so that a wrong name, a
wrong layout or a wrong network shows as an error. References are those of transformers (CLIP tower,
language model, connector), diffusers (DC-AE, SANA) and torch's own layers (mlp1, latent head, projector).
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
import transformers
from transformers.models.internvl import modeling_internvl
from transformers.models.qwen2 import modeling_qwen2

from unilip_jax.common import tree
from unilip_jax.convert import dcae as dcae_convert
from unilip_jax.convert import engine, modules
from unilip_jax.convert import internvit as internvit_convert
from unilip_jax.convert import qwen2 as qwen2_convert
from unilip_jax.convert import sana as sana_convert
from unilip_jax.convert import unilip as unilip_convert
from unilip_jax.models import dcae, latent_head, layers, presets, projector, qwen2, sana
from unilip_jax.models.vision import internvit
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import sources

BOUND = 1e-3  # float32 on both sides; sums in another order differ by less in networks of this depth
_LENGTH = 12  # tokens


@dataclasses.dataclass(frozen=True)
class Reference:
  """One comparison.

  Attributes:
    rules: between the module and the reference's names.
    jax: params -> output.
    torch: {PyTorch name: tensor} -> output, of the same shape.
    name: of the reference.
  """

  rules: list[engine.Rule]
  jax: Callable[[Any], jax.Array]
  torch: Callable[[Mapping[str, Any]], np.ndarray]
  name: str


def check(path: str) -> Iterator[str]:
  """Compares module by module.

  Args:
    path: imported weights, or a run's workdir.

  Yields:
    Lines: the largest error of each module, relative to the largest output.

  Raises:
    ValueError: if a module differs by more than BOUND.
    FileNotFoundError: if no weights are at `path`.
  """
  stored = sources.open_weights(path)
  dims = {name: modules.parse_dims(name, d) for name, d in dims_lib.module_dims(stored.model).items()}
  cpu = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
  worse = []
  yield f"{path} against PyTorch, float32, max |JAX − PyTorch| / max |PyTorch|:"
  for module, make in REFERENCES.items():
    if module not in stored.modules:
      continue
    reference = make(dims)
    arrays = tree.unflatten(stored.restore({
        name: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=cpu)
        for name, leaf in stored.shapes.items() if name.split("/")[0] == module}))
    expected = np.asarray(reference.torch(engine.to_torch(arrays, reference.rules)), np.float64)
    output = np.asarray(jax.jit(reference.jax)(arrays[module]), np.float64)
    if output.shape != expected.shape or not np.isfinite(output).all():
      raise ValueError(f"{module}: {output.shape}, PyTorch {expected.shape}; or not finite")
    error = np.abs(output - expected).max() / max(np.abs(expected).max(), 1e-30)
    if not error <= BOUND:
      worse.append(module)
    yield f"  {module}: {error:.1e} ({reference.name}){'' if error <= BOUND else '  TOO LARGE'}"
  if skipped := sorted(stored.modules - REFERENCES.keys()):
    yield f"  not compared: {', '.join(skipped)}"
  if worse:
    raise ValueError(f"{', '.join(worse)} differ from PyTorch by more than {BOUND:g}")


def _random(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _load(module: nn.Module, tensors: Mapping[str, np.ndarray], prefix: str = "") -> nn.Module:
  """Loads `tensors` into the torch module, none missing and none left."""
  module.load_state_dict({name.removeprefix(prefix): torch.from_numpy(np.ascontiguousarray(x))
                          for name, x in tensors.items()})
  return module.eval()


def _run(module: nn.Module, *inputs: np.ndarray, **named: Any) -> Any:
  with torch.no_grad():
    return module(*(torch.from_numpy(np.ascontiguousarray(x)) for x in inputs), **named)


def _vision_tower(dims: Mapping[str, Any]) -> Reference:
  d = dims["vision_tower"]
  image = _random(1, d.image_size, d.image_size, 3)

  def run_torch(tensors):
    config = transformers.InternVLVisionConfig(**internvit_convert.to_config(d))
    model = _load(modeling_internvl.InternVLVisionModel(config), tensors)
    return _run(model, np.moveaxis(image, -1, 1)).last_hidden_state.numpy()

  return Reference(
      internvit_convert.rules_transformers(d, "", "vision_tower/"),
      lambda p: internvit.InternVit(d, jnp.float32, "none").apply(
          {"params": p}, image, method="hidden_states"), run_torch,
      "transformers InternVLVisionModel")


def _sequential(width_in: int, width: int, eps: float, width_out: int | None = None) -> nn.Module:
  """LayerNorm → Linear → GELU → Linear, as in all small heads of UniLIP."""
  return nn.Sequential(nn.LayerNorm(width_in, eps=eps), nn.Linear(width_in, width), nn.GELU(),
                       nn.Linear(width, width_out or width))


def _mlp1(dims: Mapping[str, Any]) -> Reference:
  d = dims["mlp1"]
  x = _random(1, _LENGTH, d.in_width)
  return Reference(
      internvit_convert.mlp1_rules("", "mlp1/"),
      lambda p: projector.Mlp1(d.width, jnp.float32).apply({"params": p}, x),
      lambda tensors: _run(_load(_sequential(d.in_width, d.width, 1e-5), tensors), x).numpy(),
      "torch")


def _latent_head(dims: Mapping[str, Any]) -> Reference:
  d = dims["latent_head"]
  x = _random(1, 4, d.width)

  def run_torch(tensors):
    y = x
    for i in range(d.depth):
      prefix = f"down_blocks.{i}.mlp."
      block = {k: v for k, v in tensors.items() if k.startswith(prefix)}
      y = y + _run(_load(_sequential(d.width, d.width, 1e-6), block, prefix), y).numpy()
    last = {k: v for k, v in tensors.items() if k.startswith("down_mlp.")}
    y = _run(_load(_sequential(d.width, d.channels, 1e-5), last, "down_mlp."), y).numpy()
    return y.reshape(1, 2, 2, d.channels)

  network = latent_head.LatentHead(d.depth, d.channels, 0.02, jnp.float32)
  return Reference(unilip_convert.latent_head_rules(d.depth, "", "latent_head/"),
                   lambda p: network.apply({"params": p}, x, (2, 2)), run_torch, "torch")


def _run_dcae(half: str, dims: Mapping[str, Any], x: np.ndarray):
  """Returns the torch function of one half of AutoencoderDC, NHWC to NHWC; the other half stays random."""
  encoder = dims.get("encoder")
  decoder = dims.get("decoder") or dataclasses.replace(
      encoder, resample="interpolate" if encoder.resample == "Conv" else "pixel_shuffle")
  model = getattr(
      diffusers.AutoencoderDC.from_config(dcae_convert.to_config(encoder, decoder)), half)
  # Batch norm's step counters are no weights and are not stored.
  counters = {name: value.numpy() for name, value in model.state_dict().items()
              if name.endswith("num_batches_tracked")}
  return lambda tensors: np.moveaxis(
      _run(_load(model, counters | tensors), np.moveaxis(x, -1, 1)).numpy(), 1, -1)


def _decoder(dims: Mapping[str, Any]) -> Reference:
  d = dims["decoder"]
  z = _random(1, 4, 4, d.latent_channels)
  return Reference(
      dcae_convert.decoder_rules(d, "", "decoder/"),
      lambda p: dcae.Decoder(d, jnp.float32, "none").apply({"params": p}, z),
      _run_dcae("decoder", dims, z), "diffusers AutoencoderDC")


def _encoder(dims: Mapping[str, Any]) -> Reference:
  d = dims["encoder"]
  side = 2 ** (len(d.channels) - 1) * 4
  image = _random(1, side, side, 3)
  return Reference(
      dcae_convert.encoder_rules(d, "", "encoder/"),
      lambda p: dcae.Encoder(d, jnp.float32).apply({"params": p}, image),
      _run_dcae("encoder", dims, image), "diffusers AutoencoderDC")


def _qwen2_config(d: presets.LlmDims, depth: int) -> transformers.Qwen2Config:
  fields = qwen2_convert.to_config(dataclasses.replace(d, depth=depth), None)
  return transformers.Qwen2Config(**fields, attn_implementation="eager")


def _llm(dims: Mapping[str, Any]) -> Reference:
  d = dims["llm"]
  tokens = np.random.default_rng(0).integers(0, d.vocab, (1, _LENGTH))

  def run_jax(params):
    network, mask = qwen2.Qwen2(d, jnp.float32), np.ones(tokens.shape, np.bool_)
    x = network.apply({"params": params}, tokens.astype(np.int32), method="embed")
    hidden, _ = network.apply({"params": params}, x, mask)
    return network.apply({"params": params}, hidden, method="logits")[..., :d.vocab]

  def run_torch(tensors):
    if d.tied:
      tensors = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}
    model = _load(transformers.Qwen2ForCausalLM(_qwen2_config(d, d.depth)), tensors)
    return _run(model, tokens).logits.numpy()

  return Reference(qwen2_convert.rules(d, "model.", "llm/", head="lm_head.weight"), run_jax,
                   run_torch, "transformers Qwen2ForCausalLM")


def _connector(dims: Mapping[str, Any]) -> Reference:
  """All tokens attend to each other: transformers' layers with a mask of zeros."""
  d, depth = dims["llm"], dims["connector"].depth
  x = _random(1, _LENGTH, d.width)

  def run_torch(tensors):
    model = modeling_qwen2.Qwen2Model(_qwen2_config(d, depth))
    del model.embed_tokens
    _load(model, tensors)
    y = torch.from_numpy(x)
    with torch.no_grad():
      rotation = model.rotary_emb(y, torch.arange(_LENGTH)[None])
      for layer in model.layers:
        y = layer(y, attention_mask=torch.zeros(1, 1, _LENGTH, _LENGTH),
                  position_embeddings=rotation)
        y = y[0] if isinstance(y, tuple) else y
      return model.norm(y).numpy()

  stack = qwen2.Stack(d, depth, jnp.float32, causal=False)
  return Reference(
      qwen2_convert.stack(d, depth, "", "connector/"),
      lambda p: stack.apply({"params": p}, x, np.ones((1, _LENGTH), np.bool_))[0], run_torch,
      "transformers Qwen2 layers")


def _projector(dims: Mapping[str, Any]) -> Reference:
  # A run's model.json contains those of its neighbours alone.
  d = dims.get("projector") or modules.WidthDims(dims["llm"].width, dims["dit"].caption_width)
  x = _random(1, _LENGTH, d.in_width)
  return Reference(
      engine.linear("linear", "projector"),
      lambda p: layers.Dense(d.width, jnp.float32).apply({"params": p}, x),
      lambda tensors: _run(_load(nn.Linear(d.in_width, d.width), tensors, "linear."), x).numpy(),
      "torch")


def _dit(dims: Mapping[str, Any]) -> Reference:
  d = dims["dit"]
  latents, context = _random(1, d.grid, d.grid, d.channels), _random(1, _LENGTH, d.caption_width)
  time = np.array([500.0], np.float32)

  def run_torch(tensors):
    model = _load(diffusers.SanaTransformer2DModel.from_config(sana_convert.to_config(d)), tensors)
    out = _run(model, np.moveaxis(latents, -1, 1), context, time, return_dict=False)[0]
    return np.moveaxis(out.numpy(), 1, -1)

  mask = np.ones((1, _LENGTH), np.bool_)
  return Reference(
      sana_convert.rules(d, "", "dit/"),
      lambda p: sana.Sana(d, jnp.float32).apply({"params": p}, latents, time, context, mask),
      run_torch, "diffusers SanaTransformer2DModel")


REFERENCES = {
    "vision_tower": _vision_tower, "mlp1": _mlp1, "latent_head": _latent_head, "decoder": _decoder,
    "encoder": _encoder, "llm": _llm, "connector": _connector, "projector": _projector, "dit": _dit}
