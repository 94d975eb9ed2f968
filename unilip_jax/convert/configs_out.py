"""config.json of exported folders, as transformers 4.52 and later, diffusers 0.32 and later read it."""

from typing import Any

import tokenizers

from unilip_jax.data import text as text_lib
from unilip_jax.models import presets

# SANA's sampler: DPM-Solver++ 2M midpoint with flow shift 3.
SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.32.2",
    "algorithm_type": "dpmsolver++", "beta_end": 0.02, "beta_schedule": "linear",
    "beta_start": 0.0001, "final_sigmas_type": "zero", "flow_shift": 3.0, "lower_order_final": True,
    "num_train_timesteps": 1000, "prediction_type": "flow_prediction", "solver_order": 2,
    "solver_type": "midpoint", "timestep_spacing": "linspace", "use_flow_sigmas": True}

# LLM's width -> where the official code finds the components of the published sizes.
_HUB = {
    896: {"mllm_path": "OpenGVLab/InternVL3-1B", "mllm_hf_path": "OpenGVLab/InternVL3-1B-hf",
          "dit_path": "Efficient-Large-Model/Sana_600M_512px_diffusers"},
    1536: {"mllm_path": "OpenGVLab/InternVL3-2B", "mllm_hf_path": "OpenGVLab/InternVL3-2B-hf",
           "dit_path": "Efficient-Large-Model/Sana_1600M_512px_diffusers"}}
_HUB_VAE = "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers"
_LOCAL = {"mllm_path": "mllm", "mllm_hf_path": "mllm_hf", "dit_path": "dit", "vae_path": "vae"}


def is_hub_id(path: str) -> bool:
  """Whether a component's path names a repository, not a folder beside config.json."""
  return "/" in path


def unilip(dims: presets.UnilipDims, text: tokenizers.Tokenizer) -> dict[str, Any]:
  """Of UniLIP's own class."""
  published = [presets.get(size).unilip for size in ("1b", "3b")]
  known = next((p for p in published
                if (p.llm.width, p.dit.width) == (dims.llm.width, dims.dit.width)), None)
  paths = _LOCAL if known is None else _HUB[known.llm.width] | {"vae_path": _HUB_VAE}
  vit = dims.tokenizer.vit
  return {
      "architectures": ["UniLIP_InternVLForCausalLM"], "model_type": "unilip_internvl", **paths,
      "n_query": dims.connector.queries, "connect_layer": dims.connector.depth,
      "unilip_factor": dims.factor, "downsample_ratio": 0.5, "image_aspect_ratio": "square",
      "image_seq_length": _slots(vit), "image_token_id": _id(text, text_lib.IMAGE_SLOT),
      "pad_token_id": _id(text, text_lib.PAD), "mm_use_im_patch_token": False,
      "mm_use_im_start_end": False, "projector_hidden_act": "gelu", "vision_feature_layer": -1,
      "vision_feature_select_strategy": "default", "tie_word_embeddings": dims.llm.tied,
      "text_config": qwen2(dims.llm, text), "vision_config": internvit(vit)}


def internvl(
    vit: presets.VitDims, llm: presets.LlmDims, text: tokenizers.Tokenizer | None) -> dict[str, Any]:
  """Of transformers' InternVLForConditionalGeneration."""
  token = {} if text is None else {"image_token_id": _id(text, text_lib.IMAGE_SLOT)}
  return {
      "architectures": ["InternVLForConditionalGeneration"], "model_type": "internvl", **token,
      "downsample_ratio": 0.5, "image_seq_length": _slots(vit), "projector_hidden_act": "gelu",
      "vision_feature_layer": -1, "vision_feature_select_strategy": "default",
      "tie_word_embeddings": llm.tied, "text_config": qwen2(llm, text),
      "vision_config": internvit(vit)}


def qwen2(dims: presets.LlmDims, text: tokenizers.Tokenizer | None) -> dict[str, Any]:
  """Of transformers' Qwen2."""
  ids = {} if text is None else generation(text)
  return {
      "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
      "hidden_size": dims.width, "intermediate_size": dims.mlp, "num_hidden_layers": dims.depth,
      "num_attention_heads": dims.heads, "num_key_value_heads": dims.kv_heads,
      "vocab_size": dims.vocab, "tie_word_embeddings": dims.tied, "rope_theta": dims.rope_theta,
      "rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "attention_dropout": 0.0,
      "use_sliding_window": False, "initializer_range": 0.02, "use_cache": True, **ids}


def internvit(dims: presets.VitDims) -> dict[str, Any]:
  """Of transformers' InternVL vision tower."""
  return {
      "model_type": "internvl_vision", "hidden_size": dims.width, "num_hidden_layers": dims.depth,
      "num_attention_heads": dims.heads, "intermediate_size": dims.mlp,
      "image_size": [dims.image_size] * 2, "patch_size": [dims.patch] * 2, "num_channels": 3,
      "attention_bias": True, "use_qk_norm": False, "norm_type": "layer_norm",
      "layer_norm_eps": 1e-6, "layer_scale_init_value": dims.layer_scale_init, "hidden_act": "gelu",
      "attention_dropout": 0.0, "hidden_dropout_prob": 0.0, "projection_dropout": 0.0,
      "initializer_range": 0.02, "use_absolute_position_embeddings": True, "use_mask_token": False,
      "use_mean_pooling": True}


def generation(text: tokenizers.Tokenizer | None) -> dict[str, Any]:
  """generation_config.json: where answers end."""
  if text is None:
    return {}
  return {"bos_token_id": _id(text, text_lib.PAD), "eos_token_id": _id(text, text_lib.TURN_END),
          "pad_token_id": _id(text, text_lib.PAD)}


def tokenizer(text: tokenizers.Tokenizer) -> dict[str, Any]:
  """tokenizer_config.json, for transformers' AutoTokenizer."""
  return {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": text_lib.TURN_END,
          "pad_token": text_lib.PAD, "model_max_length": 8192, "padding_side": "right",
          "clean_up_tokenization_spaces": False}


def sana(dims: presets.DitDims) -> dict[str, Any]:
  """Of diffusers' SanaTransformer2DModel.

  Positions are written as a number that every release takes as such; without it, those before 0.33 would
  add them none the less, so that the file names a later one.
  """
  return {
      "_class_name": "SanaTransformer2DModel",
      "_diffusers_version": "0.32.2" if dims.positions else "0.33.0",
      "interpolation_scale": max(dims.grid // 64, 1) if dims.positions else None,
      "attention_bias": False, "attention_head_dim": dims.head_dim,
      "num_attention_heads": dims.heads, "num_cross_attention_heads": dims.cross_heads,
      "cross_attention_head_dim": dims.cross_head_dim, "cross_attention_dim": dims.width,
      "caption_channels": dims.caption_width, "in_channels": dims.channels,
      "out_channels": dims.channels, "mlp_ratio": dims.mlp_ratio, "num_layers": dims.depth,
      "sample_size": dims.grid, "patch_size": 1, "dropout": 0.0, "norm_elementwise_affine": False,
      "norm_eps": 1e-6, **({"qk_norm": "rms_norm_across_heads"} if dims.qk_norm else {})}


def dcae(encoder: presets.DcaeDims | None, decoder: presets.DcaeDims) -> dict[str, Any]:
  """Of diffusers' AutoencoderDC; without an encoder its entries are of the decoder's mirror."""
  mirror = encoder or decoder
  lists = lambda values: [list(v) for v in values]
  down = encoder.resample if encoder else {
      "interpolate": "Conv", "pixel_shuffle": "pixel_unshuffle"}[decoder.resample]
  later = {}  # entries that releases before 0.34 do not know, written where they say something
  if decoder.conv_act != "relu":
    later["decoder_conv_act_fn"] = decoder.conv_act
  if not decoder.shortcut:
    later["decoder_in_shortcut"] = False
  if encoder and not encoder.shortcut:
    later["encoder_out_shortcut"] = False
  return {
      "_class_name": "AutoencoderDC", "_diffusers_version": "0.32.2", "in_channels": 3,
      "latent_channels": decoder.latent_channels, "attention_head_dim": decoder.head_dim,
      "encoder_block_types": list(mirror.blocks), "decoder_block_types": list(decoder.blocks),
      "encoder_block_out_channels": list(mirror.channels),
      "decoder_block_out_channels": list(decoder.channels),
      "encoder_layers_per_block": list(mirror.layers),
      "decoder_layers_per_block": list(decoder.layers),
      "encoder_qkv_multiscales": lists(mirror.qkv_multiscales),
      "decoder_qkv_multiscales": lists(decoder.qkv_multiscales),
      "downsample_block_type": down, "upsample_block_type": decoder.resample,
      "decoder_norm_types": list(decoder.norms), "decoder_act_fns": list(decoder.acts),
      "scaling_factor": mirror.scaling_factor, **later}


def _slots(vit: presets.VitDims) -> int:
  return (vit.image_size // vit.pixels_per_token) ** 2


def _id(text: tokenizers.Tokenizer, token: str) -> int:
  return text.token_to_id(token)
