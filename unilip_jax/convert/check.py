"""Compares every imported module with its PyTorch twin: one forward each, the same input.

The twin gets the tensors of the module under their PyTorch names (the tables run backwards, which gives
the source's own tensors), so that a wrong name, a wrong layout or a wrong network shows as an error. Twins
are those of transformers (CLIP tower, language model, connector), diffusers (DC-AE, SANA) and torch's own
layers (mlp1, latent head, projector).
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unilip_jax.common import tree
from unilip_jax.convert import (
  configs_out,
  modules,
  tables_dcae,
  tables_internvit,
  tables_latent_head,
  tables_projector,
  tables_qwen2,
  tables_sana,
)
from unilip_jax.convert import rules as engine
from unilip_jax.models import dcae, latent_head, layers, presets, projector, qwen2, sana
from unilip_jax.models.vision import internvit
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import sources

PACKAGES = ("torch", "transformers", "diffusers")
BOUND = 1e-3  # float32 on both sides; sums of other order differ by less in networks of this depth
_LENGTH = 12  # tokens


@dataclasses.dataclass(frozen=True)
class _Twin:
  """One comparison.

  Attributes:
    table: rules between the module and the twin's names.
    ours: params -> output.
    theirs: {PyTorch name: tensor} -> output, of the same shape.
    name: of the twin.
  """

  table: list[engine.Rule]
  ours: Callable[[Any], jax.Array]
  theirs: Callable[[Mapping[str, Any]], np.ndarray]
  name: str


def check(path: str) -> Iterator[str]:
  """Compares module by module.

  Args:
    path: imported weights, or a run's workdir.

  Yields:
    Lines: the worst error of each module, relative to the largest output.

  Raises:
    ValueError: if PyTorch's packages are absent, or a module differs by more than BOUND.
    FileNotFoundError: if no weights are at `path`.
  """
  absent = [p for p in PACKAGES if importlib.util.find_spec(p) is None]
  if absent:
    raise ValueError(f"--check compares with PyTorch, and {', '.join(absent)} "
                     f"{'is' if len(absent) == 1 else 'are'} not installed: pip install "
                     f"{' '.join(absent)} (requirements-dev.txt has the tested versions)")
  stored = sources.open_weights(path)
  dims = dims_lib.module_dims(stored.model)
  here = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
  worse = []
  yield f"{path} against PyTorch, float32, max |ours − twin| / max |twin|:"
  for module, make in _TWINS.items():
    if module not in stored.modules:
      continue
    twin = make(dims)
    arrays = tree.unflatten(stored.restore({
        name: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=here)
        for name, leaf in stored.shapes.items() if name.split("/")[0] == module}))
    expected = np.asarray(twin.theirs(engine.to_torch(arrays, twin.table)), np.float64)
    found = np.asarray(jax.jit(twin.ours)(arrays[module]), np.float64)
    if found.shape != expected.shape or not np.isfinite(found).all():
      raise ValueError(f"{module}: {found.shape}, its twin {expected.shape}; or not finite")
    error = np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30)
    if not error <= BOUND:
      worse.append(module)
    yield f"  {module}: {error:.1e} ({twin.name}){'' if error <= BOUND else '  TOO LARGE'}"
  if skipped := sorted(stored.modules - _TWINS.keys()):
    yield f"  not compared: {', '.join(skipped)}"
  if worse:
    raise ValueError(f"{', '.join(worse)} differ from PyTorch by more than {BOUND:g}")


def _random(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _load(module: Any, tensors: Mapping[str, np.ndarray], prefix: str = "") -> Any:
  """The torch module with `tensors`, none missing and none left."""
  import torch

  module.load_state_dict({name.removeprefix(prefix): torch.from_numpy(np.ascontiguousarray(x))
                          for name, x in tensors.items()})
  return module.eval()


def _run(module: Any, *inputs: np.ndarray, **named: Any) -> np.ndarray:
  import torch

  tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in inputs]
  with torch.no_grad():
    return module(*tensors, **named)


def _vision_tower(dims: Mapping[str, Any]) -> _Twin:
  import transformers
  from transformers.models.internvl import modeling_internvl

  d = presets.from_json(presets.VitDims, dims["vision_tower"])
  image = _random(1, d.image_size, d.image_size, 3)

  def theirs(tensors):
    config = transformers.InternVLVisionConfig(**configs_out.internvit(d))
    twin = _load(modeling_internvl.InternVLVisionModel(config), tensors)
    return _run(twin, np.moveaxis(image, -1, 1)).last_hidden_state.numpy()

  return _Twin(
      tables_internvit.rules_transformers(d, "", "vision_tower/"),
      lambda p: internvit.InternVit(d, jnp.float32, "none").apply(
          {"params": p}, image, method="hidden_states"), theirs,
      "transformers InternVLVisionModel")


def _sequential(width_in: int, width: int, eps: float, width_out: int | None = None):
  """LayerNorm → Linear → GELU → Linear, as all small heads of UniLIP are."""
  from torch import nn

  return nn.Sequential(nn.LayerNorm(width_in, eps=eps), nn.Linear(width_in, width), nn.GELU(),
                       nn.Linear(width, width_out or width))


def _mlp1(dims: Mapping[str, Any]) -> _Twin:
  d = modules.parse_dims("mlp1", dims["mlp1"])
  x = _random(1, _LENGTH, d.in_width)
  return _Twin(
      tables_projector.rules("", "mlp1/"),
      lambda p: projector.Mlp1(d.width, jnp.float32).apply({"params": p}, x),
      lambda tensors: _run(_load(_sequential(d.in_width, d.width, 1e-5), tensors), x).numpy(),
      "torch")


def _latent_head(dims: Mapping[str, Any]) -> _Twin:
  d = modules.parse_dims("latent_head", dims["latent_head"])
  x = _random(1, 4, d.width)

  def theirs(tensors):
    y = x
    for i in range(d.depth):
      prefix = f"down_blocks.{i}.mlp."
      block = {k: v for k, v in tensors.items() if k.startswith(prefix)}
      y = y + _run(_load(_sequential(d.width, d.width, 1e-6), block, prefix), y).numpy()
    last = {k: v for k, v in tensors.items() if k.startswith("down_mlp.")}
    y = _run(_load(_sequential(d.width, d.channels, 1e-5), last, "down_mlp."), y).numpy()
    return y.reshape(1, 2, 2, d.channels)

  network = latent_head.LatentHead(d.depth, d.channels, 0.02, jnp.float32)
  return _Twin(tables_latent_head.rules(d.depth, "", "latent_head/"),
               lambda p: network.apply({"params": p}, x, (2, 2)), theirs, "torch")


def _dcae_twin(half: str, dims: Mapping[str, Any]):
  """diffusers' AutoencoderDC with the other half at whatever it starts from."""
  import diffusers

  d = presets.from_json(presets.DcaeDims, dims[half])
  other = "encoder" if half == "decoder" else "decoder"
  both = {half: d, other: presets.from_json(presets.DcaeDims, dims[other])
          if other in dims else None}
  if both["decoder"] is None:
    both["decoder"] = dataclasses.replace(
        d, resample="interpolate" if d.resample == "Conv" else "pixel_shuffle")
  return d, getattr(diffusers.AutoencoderDC.from_config(
      configs_out.dcae(both["encoder"], both["decoder"])), half)


def _decoder(dims: Mapping[str, Any]) -> _Twin:
  d, twin = _dcae_twin("decoder", dims)
  z = _random(1, 4, 4, d.latent_channels)
  return _Twin(
      tables_dcae.decoder_rules(d, "", "decoder/"),
      lambda p: dcae.Decoder(d, jnp.float32, "none").apply({"params": p}, z),
      lambda tensors: np.moveaxis(
          _run(_load(twin, _counted(twin, tensors)), np.moveaxis(z, -1, 1)).numpy(), 1, -1),
      "diffusers AutoencoderDC")


def _encoder(dims: Mapping[str, Any]) -> _Twin:
  d, twin = _dcae_twin("encoder", dims)
  side = 2 ** (len(d.channels) - 1) * 4
  image = _random(1, side, side, 3)
  return _Twin(
      tables_dcae.encoder_rules(d, "", "encoder/"),
      lambda p: dcae.Encoder(d, jnp.float32).apply({"params": p}, image),
      lambda tensors: np.moveaxis(
          _run(_load(twin, _counted(twin, tensors)), np.moveaxis(image, -1, 1)).numpy(), 1, -1),
      "diffusers AutoencoderDC")


def _counted(twin: Any, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """With batch norm's step counters, which are no weights and are not kept."""
  counters = {name: value.numpy() for name, value in twin.state_dict().items()
              if name.endswith("num_batches_tracked")}
  return {**counters, **tensors}


def _qwen2_config(d: presets.LlmDims, depth: int):
  import transformers

  fields = configs_out.qwen2(dataclasses.replace(d, depth=depth), None)
  return transformers.Qwen2Config(**fields, attn_implementation="eager")


def _llm(dims: Mapping[str, Any]) -> _Twin:
  d = presets.from_json(presets.LlmDims, dims["llm"])
  tokens = np.random.default_rng(0).integers(0, d.vocab, (1, _LENGTH))

  def ours(params):
    network, mask = qwen2.Qwen2(d, jnp.float32), np.ones(tokens.shape, np.bool_)
    x = network.apply({"params": params}, tokens.astype(np.int32), method="embed")
    hidden, _ = network.apply({"params": params}, x, mask)
    return network.apply({"params": params}, hidden, method="logits")[..., :d.vocab]

  def theirs(tensors):
    import transformers

    if d.tied:
      tensors = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}
    twin = _load(transformers.Qwen2ForCausalLM(_qwen2_config(d, d.depth)), tensors)
    return _run(twin, tokens).logits.numpy()

  return _Twin(tables_qwen2.rules(d, "model.", "llm/", head="lm_head.weight"), ours, theirs,
               "transformers Qwen2ForCausalLM")


def _connector(dims: Mapping[str, Any]) -> _Twin:
  """All tokens see each other: transformers' layers with a mask of zeros."""
  d = presets.from_json(presets.LlmDims, dims["llm"])
  depth = dims["connector"]["depth"]
  x = _random(1, _LENGTH, d.width)

  def theirs(tensors):
    import torch
    from transformers.models.qwen2 import modeling_qwen2

    twin = modeling_qwen2.Qwen2Model(_qwen2_config(d, depth))
    del twin.embed_tokens
    _load(twin, tensors)
    positions = torch.arange(_LENGTH)[None]
    y = torch.from_numpy(x)
    with torch.no_grad():
      rotation = twin.rotary_emb(y, positions)
      for layer in twin.layers:
        y = layer(y, attention_mask=torch.zeros(1, 1, _LENGTH, _LENGTH),
                  position_embeddings=rotation)
        y = y[0] if isinstance(y, tuple) else y
      return twin.norm(y).numpy()

  stack = qwen2.Stack(d, depth, jnp.float32, causal=False)
  return _Twin(
      tables_qwen2.stack(d, depth, "", "connector/"),
      lambda p: stack.apply({"params": p}, x, np.ones((1, _LENGTH), np.bool_))[0], theirs,
      "transformers Qwen2 layers")


def _projector(dims: Mapping[str, Any]) -> _Twin:
  from torch import nn

  d = modules.parse_dims("projector", dims["projector"])
  x = _random(1, _LENGTH, d.in_width)
  return _Twin(
      tables_internvit.linear("linear", "projector"),
      lambda p: layers.Dense(d.width, jnp.float32).apply({"params": p}, x),
      lambda tensors: _run(_load(nn.Linear(d.in_width, d.width), tensors, "linear."), x).numpy(),
      "torch")


def _dit(dims: Mapping[str, Any]) -> _Twin:
  d = presets.from_json(presets.DitDims, dims["dit"])
  latents, context = _random(1, d.grid, d.grid, d.channels), _random(1, _LENGTH, d.caption_width)
  time = np.array([500.0], np.float32)

  def theirs(tensors):
    import diffusers

    twin = _load(diffusers.SanaTransformer2DModel.from_config(configs_out.sana(d)), tensors)
    out = _run(twin, np.moveaxis(latents, -1, 1), context, time, return_dict=False)[0]
    return np.moveaxis(out.numpy(), 1, -1)

  mask = np.ones((1, _LENGTH), np.bool_)
  return _Twin(
      tables_sana.rules(d, "", "dit/"),
      lambda p: sana.Sana(d, jnp.float32).apply({"params": p}, latents, time, context, mask),
      theirs, "diffusers SanaTransformer2DModel")


_TWINS = {
    "vision_tower": _vision_tower, "mlp1": _mlp1, "latent_head": _latent_head, "decoder": _decoder,
    "encoder": _encoder, "llm": _llm, "connector": _connector, "projector": _projector, "dit": _dit}
