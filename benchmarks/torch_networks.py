"""The complete UniLIP in PyTorch, from transformers' and diffusers' own networks.

A user would run this instead of unilip_jax: torch_tokenizer's tokenizer, Qwen2ForCausalLM, a
bidirectional Qwen2Model as connector, SanaTransformer2DModel. `load` gives it the JAX weights, so that
both sides compute the same thing (tests/benchmarks/torch_networks_test.py). Used by benchmarks only.
"""

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from torch import nn
import torch.nn.functional as F
import transformers

from benchmarks import torch_tokenizer
from unilip_jax.convert import dcae as dcae_convert
from unilip_jax.convert import engine
from unilip_jax.convert import internvit as internvit_convert
from unilip_jax.convert import qwen2 as qwen2_convert
from unilip_jax.convert import sana as sana_convert
from unilip_jax.convert import unilip as unilip_convert
from unilip_jax.models import presets


def qwen2_config(dims: presets.LlmDims, depth: int) -> transformers.Qwen2Config:
  """Of `depth` layers of the LLM, with SDPA."""
  return transformers.Qwen2Config(
      vocab_size=dims.vocab, hidden_size=dims.width, intermediate_size=dims.mlp,
      num_hidden_layers=depth, num_attention_heads=dims.heads, num_key_value_heads=dims.kv_heads,
      rope_parameters={"rope_type": "default", "rope_theta": dims.rope_theta},
      max_position_embeddings=32768, rms_norm_eps=1e-6, tie_word_embeddings=dims.tied,
      attn_implementation="sdpa")


def make_dit(dims: presets.DitDims) -> nn.Module:
  """SanaTransformer2DModel of these sizes, positions included."""
  return diffusers.SanaTransformer2DModel.from_config(sana_convert.to_config(dims))


class Unilip(nn.Module):
  """The complete model; it has methods instead of a call.

  Images are NCHW in here, as in diffusers; tokens are int64[B, L], masks bool[B, L].
  """

  def __init__(self, dims: presets.UnilipDims):
    super().__init__()
    self.dims = dims
    self.tokenizer = torch_tokenizer.Tokenizer(dims.tokenizer)
    self.llm = transformers.Qwen2ForCausalLM(qwen2_config(dims.llm, dims.llm.depth))
    self.queries = nn.Parameter(torch.randn(dims.connector.queries, dims.llm.width))
    self.connector = transformers.Qwen2Model(qwen2_config(dims.llm, dims.connector.depth))
    self.connector.embed_tokens = None  # it reads states
    self.projector = nn.Linear(dims.llm.width, dims.dit.caption_width)
    self.dit = make_dit(dims.dit)

  def embed(
      self, tokens: torch.Tensor, image_token: int, features: torch.Tensor | None) -> torch.Tensor:
    """Embeddings with the image features [B, N, D] at the slots of `image_token`."""
    x = self.llm.model.embed_tokens(tokens)
    if features is None:
      return x
    return x.masked_scatter((tokens == image_token)[..., None], features.to(x.dtype))

  def context(
      self, tokens: torch.Tensor, mask: torch.Tensor, image_token: int = -1,
      features: torch.Tensor | None = None
  ) -> tuple[torch.Tensor, torch.Tensor]:
    """What the DiT's cross-attention reads: one causal pass over prompt and queries, the connector.

    Args:
      tokens: of the prompts.
      mask: False for pads.
      image_token: id whose slots hold `features`.
      features: [B, N, D] of mlp1; None without images.

    Returns:
      ([B, L + Q, caption_width], bool[B, L + Q]).
    """
    batch = tokens.shape[0]
    x = self.embed(tokens, image_token, features)
    x = torch.cat([x, self.queries[None].expand(batch, -1, -1).to(x.dtype)], dim=1)
    valid = torch.cat([mask, mask.new_ones(batch, self.queries.shape[0])], dim=1)
    positions = (valid.long().cumsum(1) - 1).clamp(min=0)
    states = self.llm.model(
        inputs_embeds=x, attention_mask=valid.long(), position_ids=positions,
        use_cache=False).last_hidden_state
    if features is not None:
      slots = F.pad(tokens == image_token, (0, self.queries.shape[0]))[..., None]
      states = states.masked_scatter(slots, features.to(states.dtype))
    states = self.connector(
        inputs_embeds=states, position_ids=positions, use_cache=False,
        attention_mask={"full_attention": valid[:, None, None]}).last_hidden_state
    return self.projector(states), valid

  def velocity(
      self, latents: torch.Tensor, time: torch.Tensor, context: torch.Tensor, mask: torch.Tensor
  ) -> torch.Tensor:
    """SANA's ε − x of [B, C, h, w] at float32[B] times."""
    return self.dit(latents, context, time, encoder_attention_mask=mask, return_dict=False)[0]

  def decode(self, latents: torch.Tensor, size: int) -> torch.Tensor:
    """float32[B, 3, R, R] in [0, 1] of unscaled latents."""
    signed = self.tokenizer.decoder(latents).float().clamp(-1, 1)
    return F.interpolate((signed + 1) / 2, size=(size, size), mode="bilinear")


class Sampler:
  """Text (and images) to images as the official pipelines do: guidance in one batch, DPM-Solver++.

  `velocity` and `decoder` may be replaced by compiled ones.
  """

  def __init__(self, model: Unilip, *, image_size: int, steps: int, guidance: float):
    self.model, self.image_size, self.steps, self.guidance = model, image_size, steps, guidance
    self.context, self.velocity, self.decoder = model.context, model.velocity, model.decode
    self.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(sana_convert.SCHEDULER)

  def features(self, pixels: torch.Tensor) -> torch.Tensor:
    """mlp1's features of uint8[B, R, R, 3]."""
    image = torch_tokenizer.imagenet(pixels).to(next(self.model.parameters()).dtype)
    with torch.inference_mode():
      return self.model.tokenizer.vision(image)

  def solve(self, start: torch.Tensor, context: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """float32[B, C, h, w] noise to latents.

    The context is that of the negative prompts, then of the prompts; with guidance 1 that of the prompts.
    """
    self.scheduler.set_timesteps(self.steps, device=start.device)
    latents = start
    for time in self.scheduler.timesteps:
      rows = torch.cat([latents] * (len(context) // len(latents))).to(context.dtype)
      out = self.velocity(rows, time.float().expand(rows.shape[0]), context, mask).float()
      if self.guidance != 1:
        negative, positive = out.chunk(2)
        out = negative + self.guidance * (positive - negative)
      latents = self.scheduler.step(out, time, latents, return_dict=False)[0]
    return latents

  def decode(self, latents: torch.Tensor) -> torch.Tensor:
    """uint8[B, R, R, 3]."""
    dtype = next(self.model.parameters()).dtype
    unit = self.decoder((latents / self.model.dims.factor).to(dtype), self.image_size)
    return (255 * unit).round().to(torch.uint8).permute(0, 2, 3, 1)

  @torch.inference_mode()
  def __call__(
      self, tokens: torch.Tensor, mask: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """uint8[B, R, R, 3] of int64[2B, L] negative prompts and prompts, and noise [B, C, h, w]."""
    return self.decode(self.solve(start, *self.context(tokens, mask)))


def tables(dims: presets.UnilipDims) -> list[engine.Rule]:
  """Rules between `Unilip` here and the JAX parameters."""
  vision = "tokenizer.vision."
  return [
      *internvit_convert.rules_transformers(dims.tokenizer.vit, f"{vision}vit.", "vision_tower/"),
      *internvit_convert.mlp1_rules(f"{vision}mlp1.", "mlp1/"),
      *unilip_convert.latent_head_rules(dims.tokenizer.latent_depth, "tokenizer.", "latent_head/"),
      *dcae_convert.decoder_rules(dims.tokenizer.decoder, "tokenizer.decoder.", "decoder/"),
      *qwen2_convert.rules(dims.llm, "llm.model.", "llm/", head="llm.lm_head.weight"),
      engine.Rule("queries", "queries/queries"),
      *qwen2_convert.stack(dims.llm, dims.connector.depth, "connector.", "connector/"),
      *engine.linear("projector", "projector"),
      *sana_convert.rules(dims.dit, "dit.", "dit/")]


def load(model: Unilip, params: Mapping[str, Any]) -> None:
  """Copies the JAX weights into the PyTorch model.

  Args:
    model: of the same dimensions.
    params: by module name, as of models/unilip.py.

  Raises:
    RuntimeError: of PyTorch, if a parameter of the model is left without a value.
  """
  head = "tokenizer.down_blocks."
  state = {name.replace(".mlp.", ".") if name.startswith(head) else name: torch.from_numpy(value)
           for name, value in engine.to_torch(params, tables(model.dims), "float32").items()}
  own = model.state_dict()
  constant = {name for name in own if name.endswith("pos_embed.pos_embed")}  # computed from the sizes
  if model.dims.llm.tied:
    constant.add("llm.lm_head.weight")
  state |= {name: own[name] for name in constant}
  model.load_state_dict(state)
