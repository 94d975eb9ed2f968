"""UniLIP assembled: tokenizer, frozen LLM, dual condition and diffusion transformer (section 3.2).

Parameters are one dict by module name: vision_tower, mlp1, latent_head, decoder (the tokenizer's),
llm, queries, connector, projector, dit. A method needs only the modules that it names, so that
training keeps frozen and trained ones apart and inference may leave some out.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from unilip_jax.models import connector as connector_lib
from unilip_jax.models import layers, presets, qwen2, sana, time_embedding
from unilip_jax.models import tokenizer as tokenizer_lib
from unilip_jax.ops import attention
from unilip_jax.ops import image as image_ops
from unilip_jax.sharding import activations

MODULES = ("vision_tower", "mlp1", "latent_head", "decoder", "llm", "queries", "connector",
           "projector", "dit")
INTERVAL = "interval"  # the second time input of a few-step network
UNDERSTANDING = ("vision_tower", "mlp1", "llm")  # the modules that chat needs
Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Unilip:
  """The networks and their connections, without arrays.

  Attributes:
    dims: sizes.
    dtype: of the computation.
    condition: the DiT's context: "both" (UniLIP), "queries" alone, or "hidden" states alone.
    remat_vit: policy of a layer of the vision tower (layers.remat).
    remat_llm: policy of a layer of LLM and connector.
    remat_dit: policy of a DiT layer.
    time_smoothing: of derivatives with respect to the time (models/time_embedding.py).
  """

  dims: presets.UnilipDims
  dtype: Any
  condition: str = "both"
  remat_vit: str = "none"
  remat_llm: str = "none"
  remat_dit: str = "none"
  time_smoothing: float = 0.0

  def __post_init__(self):
    if self.condition not in connector_lib.CONDITIONS:
      raise ValueError(f"condition {self.condition!r}; choose {', '.join(connector_lib.CONDITIONS)}")

  @property
  def tokenizer(self) -> tokenizer_lib.Tokenizer:
    return tokenizer_lib.Tokenizer(self.dims.tokenizer, self.dtype, remat_vit=self.remat_vit)

  @property
  def llm(self) -> qwen2.Qwen2:
    return qwen2.Qwen2(self.dims.llm, self.dtype, self.remat_llm)

  @property
  def connector(self) -> qwen2.Stack:
    d = self.dims
    return qwen2.Stack(
        d.llm, d.connector.depth, self.dtype, self.remat_llm, causal=False)

  @property
  def projector(self) -> layers.Dense:
    return layers.Dense(self.dims.dit.caption_width, self.dtype)

  @property
  def queries(self) -> connector_lib.Queries:
    return connector_lib.Queries(self.dims.connector.queries, self.dims.llm.width)

  @property
  def dit(self) -> sana.Sana:
    return sana.Sana(self.dims.dit, self.dtype, self.remat_dit, self.time_smoothing)

  def init(self, key: jax.Array) -> dict[str, Any]:
    """Samples weights of every module, float32; the connector starts as the LLM's last layers."""
    d = self.dims
    keys = dict(zip(("tokenizer", "llm", "projector", "queries", "dit"), jax.random.split(key, 5)))
    size = d.tokenizer.vit.pixels_per_token
    params = dict(self.tokenizer.init(keys["tokenizer"], jnp.zeros((1, size, size, 3)))["params"])
    params["llm"] = self.llm.init(
        keys["llm"], jnp.zeros((1, 1), jnp.int32), method="everything")["params"]
    params["connector"] = connector_lib.from_llm(params["llm"], d.connector.depth)
    params["projector"] = self.projector.init(
        keys["projector"], jnp.zeros((1, d.llm.width)))["params"]
    params["queries"] = self.queries.init(keys["queries"])["params"]
    params["dit"] = self.dit.init(
        keys["dit"], jnp.zeros((1, 1, 1, d.dit.channels)), jnp.zeros((1,)),
        jnp.zeros((1, 1, d.dit.caption_width)), jnp.ones((1, 1), jnp.bool_))["params"]
    return params

  def features(self, params: Params, units: jax.Array) -> jax.Array:
    """Computes mlp1's features: float32[B, T, R, R, 3] in [0, 1] -> dtype[B, T·L, D]."""
    chex.assert_rank(units, 5)
    b, t = units.shape[:2]
    features = self.tokenizer.apply(
        {"params": params}, units.reshape(b * t, *units.shape[2:]), method="features")
    return features.reshape(b, -1, features.shape[-1])

  def pixel_features(self, params: Params, pixels: jax.Array | None) -> jax.Array | None:
    """Computes `features` of uint8[B, T, R, R, 3]; returns None if `pixels` is None."""
    if pixels is None:
      return None
    return self.features(params, image_ops.unit_from_pixels(pixels))

  def prompt(
      self, params: Params, tokens: jax.Array, mask: jax.Array, image_token: int,
      features: jax.Array | None = None
  ) -> tuple[jax.Array, qwen2.Cache]:
    """Runs the prompt through the causal LLM; later tokens do not change its states.

    Args:
      params: llm.
      tokens: int32[B, L].
      mask: bool[B, L]; False for pads.
      image_token: id whose positions take image features, in order.
      features: [B, N, D] of all images of each prompt; None for prompts without.

    Returns:
      (dtype[B, L, D] states, final-normed, with the features at image positions again; cache).
    """
    hidden, cache = self.hidden(params, tokens, mask, image_token, features)
    return place(hidden, (tokens == image_token) & mask, features), cache

  def hidden(
      self, params: Params, tokens: jax.Array, mask: jax.Array, image_token: int,
      features: jax.Array | None
  ) -> tuple[jax.Array, qwen2.Cache]:
    """Computes `prompt` with the LLM's own states at image positions."""
    variables = {"params": params["llm"]}
    x = self.llm.apply(variables, tokens, method="embed")
    x = place(x, (tokens == image_token) & mask, features)
    return self.llm.apply(variables, x, mask)

  def context(
      self, params: Params, prompt_states: jax.Array, cache: qwen2.Cache
  ) -> tuple[jax.Array, jax.Array]:
    """Runs the queries after a prompt, then the connector: the context of the DiT's cross-attention.

    Args:
      params: llm, queries, connector, projector.
      prompt_states: [B, L, D] of `prompt`.
      cache: of `prompt`.

    Returns:
      (dtype[B, S, caption_width], bool[B, S]): S = L + queries, or one of the two, by `condition`. Queries
      are after the prompt's pads; where `attention.by_length()` before the prompt, since neither connector
      nor cross-attention depends on the order of states whose positions are given.
    """
    states, mask, positions = prompt_states, cache.mask, None
    if self.condition != "hidden":
      queries = self.queries.apply({"params": params["queries"]})
      x = jnp.broadcast_to(queries[None], (states.shape[0], *queries.shape))
      x = activations.constrain(x, "batch")
      valid = jnp.ones(x.shape[:2], jnp.bool_)
      hidden, _ = self.llm.apply({"params": params["llm"]}, x, valid, cache)
      if self.condition == "queries":
        states, mask = hidden, valid
      else:
        states = jnp.concatenate([states, hidden], axis=1)
        mask = jnp.concatenate([mask, valid], axis=1)
        if attention.by_length():
          positions = qwen2.positions_of(mask)
          states, mask, positions = (
              jnp.roll(y, x.shape[1], axis=1) for y in (states, mask, positions))
    states, _ = self.connector.apply(
        {"params": params["connector"]}, states, mask, positions=positions)
    states = activations.constrain(states, "batch")
    return self.projector.apply({"params": params["projector"]}, states), mask

  def cross_kv(self, params: Params, context: jax.Array) -> sana.CrossKV:
    """Computes the context's keys and values for all calls of the DiT; needs params dit.

    See sana.precompute_cross_kv.
    """
    return sana.precompute_cross_kv(self.dims.dit, self.dtype, params["dit"], context)

  def velocity(
      self, params: Params, latents: jax.Array, time: jax.Array, context: sana.Contexts,
      context_mask: sana.Contexts, interval: jax.Array | None = None
  ) -> jax.Array:
    """Runs the DiT, see sana.Sana.

    Args:
      params: dit, and `interval` for such a network.
      latents, time, context, context_mask: as of sana.Sana.
      interval: float32[B], 0 … 1, the length of the step of a network that predicts average velocities.
    """
    embedded = None
    if interval is not None:
      embedded = time_embedding.TimeEmbedding(self.dims.dit.width, self.dtype).apply(
          {"params": params[INTERVAL]}, interval)  # 0 … 1 as EMF's: its derivative enters the target
    return self.dit.apply({"params": params["dit"]}, latents, time, context, context_mask, embedded)

  def decode(self, params: Params, latents: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Decodes unscaled latents; pixels are clamped before the resize, as in the official generation.

    Args:
      params: decoder.
      latents: float32[B, h, w, C].
      size: (H, W) of the result.

    Returns:
      float32[B, H, W, 3] in [0, 1].
    """
    signed = self.tokenizer.apply(
        {"params": params}, latents, method=lambda module, z: module.decoder(z))
    unit = image_ops.unit_from_signed(jnp.clip(signed.astype(jnp.float32), -1.0, 1.0))
    return image_ops.resize_bilinear(unit, *size)

  def answer_prefill(
      self, params: Params, tokens: jax.Array, mask: jax.Array, image_token: int,
      features: jax.Array | None = None
  ) -> tuple[jax.Array, qwen2.Cache]:
    """Runs a conversation through the LLM; arguments as of `prompt`.

    Returns:
      (float32[B, rows] logits of the first token of the answer, cache).
    """
    hidden, cache = self.hidden(params, tokens, mask, image_token, features)
    last = jnp.where(mask, jnp.arange(mask.shape[1])[None], 0).max(1)
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return self.llm.apply({"params": params["llm"]}, hidden, method="logits"), cache

  def answer_step(
      self, params: Params, tokens: jax.Array, valid: jax.Array, cache: qwen2.Cache
  ) -> tuple[jax.Array, qwen2.Cache]:
    """Runs one more token a row: (float32[B, rows] logits of the next, cache); see sampling.text.Step."""
    variables = {"params": params["llm"]}
    x = self.llm.apply(variables, tokens, method="embed")
    hidden, cache = self.llm.apply(variables, x, valid, cache)
    return self.llm.apply(variables, hidden[:, 0], method="logits"), cache


def place(x: jax.Array, where: jax.Array, values: jax.Array | None) -> jax.Array:
  """Replaces the rows of x at True by `values`, first to first.

  Args:
    x: [B, L, D].
    where: bool[B, L].
    values: [B, N, D]; None changes nothing. With fewer True than N the rest is unused.
  """
  if values is None:
    return x
  chex.assert_shape([x, values], (where.shape[0], None, x.shape[-1]))
  chex.assert_shape(where, x.shape[:2])
  index = jnp.clip(jnp.cumsum(where, axis=1) - 1, 0, values.shape[1] - 1)
  replacement = jnp.take_along_axis(values, index[..., None], axis=1)
  return jnp.where(where[..., None], replacement.astype(x.dtype), x)
