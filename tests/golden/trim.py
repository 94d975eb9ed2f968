"""Makes the recorded official runs of tests/golden from the full set.

  python -m tests.golden.trim --source=DIR

Keeps the arrays that a test reads. Of large outputs it keeps every n-th position, bit for bit (tests
compare there, see tests.parity.like); inputs stay complete. Images become lossless WebP where the
recorded array follows from them bit for bit. Equal weights are stored once, as bfloat16, in which every
one of them is exact. Ends by unpacking the result and comparing every bit of it with the full set.
"""

import argparse
import io
import json
import lzma
import pathlib
import tempfile

import numpy as np
from PIL import Image
from safetensors import torch as safetensors_torch
import torch

from tests.golden import unpack

_FOLDER = pathlib.Path(__file__).parent
_JSON = (
    "gen_train_t2i_grads.json", "gen_train_ti2i_grads.json", "gen_train_vae_stage1_t2i_grads.json",
    "keys_real_1b_patterns.json", "keys_unilip_pth.json", "losses_224_fullsize_nets.json",
    "losses_56.json", "stage2_grad_norms_56.json", "tokenizer_stage2_optimizer_groups.json",
    "understanding_chat_text.json")
_FOLDERS = ("ckpt/unilip_hf", "pretrained/mllm", "pretrained/mllm_hf", "pretrained/vae",
            "pretrained/dit/transformer", "pretrained/dit/scheduler")
_WEIGHTS = ("ckpt/unilip_hf/model.safetensors", "ckpt/tiny_unilip.pth",
            "pretrained/mllm/model.safetensors", "pretrained/mllm_hf/model.safetensors",
            "pretrained/vae/diffusion_pytorch_model.safetensors",
            "pretrained/dit/transformer/diffusion_pytorch_model.safetensors",
            "ckpt/tiny_loss_nets.safetensors", "ckpt/tiny_stage1_down.safetensors")

_WHOLE = ()  # every position
_PIXELS_2, _PIXELS_4, _PIXELS_8 = ((1, 1, n, n) for n in (2, 4, 8))
_CHANNELS_2, _CHANNELS_4, _CHANNELS_8, _CHANNELS_16 = ((1, 1, n) for n in (2, 4, 8, 16))
_whole = lambda *names: dict.fromkeys(names, _WHOLE)

_TRAIN = _whole("input_ids", "attention_mask", "u", "timesteps", "noise", "latents_scaled_recovered",
                "noisy_latents", "dit_out", "loss", "grad_dit/scale_shift_table") | {
    "connector_inputs_embeds": _CHANNELS_8, "projector_out": _CHANNELS_8,
    "image_features_gen": _CHANNELS_2, "image_features_und": _CHANNELS_2,
    "grad_latent_queries": _CHANNELS_2, "grad_projector_weight": (4, 4),
    "grad_dit/transformer_blocks.0.attn1.to_q.weight": (4, 4),
    "grad_dit/patch_embed.proj.weight": (4, 4, 1, 1),
    "grad_connector/layers.0.self_attn.k_proj.weight": (4, 4)}
_GENERATE = _whole("input_ids", "attention_mask", "initial_latents") | {
    "latents_per_step": _PIXELS_2, "image": (8, 8, 1)}
_STEPS = [f"dpm{n}_{name}" for n in (4, 10, 20, 30, 50) for name in ("timesteps", "sigmas")]

# {file: {array: stride of each axis}}
_ARRAYS = {
    "component_dcae": _whole("decode_in", "encode_in", "encode_out",
                             *(f"enc_down{i}" for i in range(6))) | {
        "decode_out": _PIXELS_8, "dec_up0": _PIXELS_4, "dec_up1": _PIXELS_2, "dec_up2": _PIXELS_2,
        "dec_up3": _PIXELS_4, "dec_up4": _PIXELS_2, "dec_up5": _PIXELS_2},
    "component_dit": _whole("latents", "context", "timesteps", "context_mask", "out",
                            "out_without_pos_embed", "latents_6x6") | {
        "out_6x6": _PIXELS_2, "pos_embed": _CHANNELS_4},
    "gen_latents_unscaled": {"t2i": _PIXELS_2, "ti2i": _PIXELS_2},
    "gen_train_t2i": _TRAIN,
    "gen_train_ti2i": _TRAIN,
    "gen_train_vae_stage1_t2i": _TRAIN,
    "gen_vae_stage1_latents": _whole("latent_unscaled", "scaling_factor"),
    "generate_edit_leftpad": _GENERATE,
    "generate_edit_rightpad": _GENERATE,
    "generate_t2i_leftpad": _GENERATE,
    "generate_t2i_rightpad": _GENERATE,
    "image_processor": {"out_100x150": _PIXELS_8, "out_300x200": _PIXELS_8},
    "loss_parts_56": _whole("perceptual", "disc_logits_recon01", "disc_logits_inputs01",
                            "disc_logits_inputs_imagenet", "resized_recon01_224_sub"),
    "lr_cosine_tokenizer": _whole("lr"),
    "lr_cosine_with_min_lr_generation": _whole("lr"),
    "schedulers": _whole(*_STEPS, "normal", "train_timesteps", "train_sigmas") | {
        "dpm5_known_field_traj": _PIXELS_4, "dpm20_known_field_traj": _PIXELS_4},
    "stage2_some_grads_56": {
        "encoder/embeddings/position_embedding": _CHANNELS_4, "encoder/encoder/layers/2/ls2": _WHOLE,
        "encoder/encoder/layers/0/attn/qkv/weight": (4, 4), "down_mlp/3/weight": (2, 2),
        "mlp1/1/weight": (4, 4), "decoder/conv_in/weight": (4, 4, 1, 1),
        "decoder/up_blocks/5/0/attn/to_q/weight": (4, 4), "decoder/conv_out/weight": _WHOLE},
    "tokenizer_56": _whole("recon", "vit_last", "mlp1_out", "down_blocks_out", "z") | {
        "pixel_values": _PIXELS_8, "decoder_raw_64": _PIXELS_8, "vit_embeddings": _CHANNELS_4,
        "mlp1_in": _CHANNELS_4},
    "tokenizer_56_stage1": _whole("z", "mlp1_out"),
    "tokenizer_112": _whole("z") | {
        "mlp1_out": _CHANNELS_2, "vit_last": _CHANNELS_8, "recon": _PIXELS_8},
    "tokenizer_224": {
        "z": _PIXELS_2, "recon_f16": _PIXELS_8, "recon_sub4": _PIXELS_4, "vit_embeddings": _CHANNELS_16,
        "mlp1_out": _CHANNELS_4},
    "understanding_chat": _whole(
        "input_ids", "internvl_tokens", "unilip_image_features", "unilip_logits", "unilip_tokens") | {
        "internvl_logits": (1, 8, 1)},
}

# {file: {array: its range}}: images, stored as WebP.
_IMAGES = {
    "gen_train_t2i": {"gen_image": "imagenet_fused"},
    "gen_train_ti2i": {"gen_image": "imagenet_fused", "und_image": "imagenet_fused"},
    "gen_vae_stage1_latents": {"gen_image": "signed"},
    "generate_edit_leftpad": {"image_u8": "u8", "pixel_values": "imagenet"},
    "image_processor": {"in_100x150": "u8", "in_300x200": "u8"},
    "tokenizer_56": {"image_u8": "u8"},
    "tokenizer_112": {"image_u8": "u8"},
    "tokenizer_224": {"image_u8": "u8"},
    "understanding_chat": {"image_u8": "u8", "pixel_values": "imagenet"},
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--source", required=True, type=pathlib.Path, help="folder of the full set")
  source = parser.parse_args().source
  files = {name: _minified(source / name) for name in _JSON}
  for folder in _FOLDERS:
    files |= {f"{folder}/{p.name}": _minified(p) for p in sorted((source / folder).glob("*.json"))}
  for name, strides in _ARRAYS.items():
    arrays = np.load(source / f"{name}.npz")
    files[f"{name}.npz"] = _npz({k: _strided(arrays[k], s) for k, s in strides.items() if k in arrays})
    for key, kind in _IMAGES.get(name, {}).items():
      files |= _image(f"{name}/{key}", arrays[key], kind)
  table, numbers = _weights(source)
  files[unpack.TABLE] = json.dumps(table, separators=(",", ":")).encode()
  (_FOLDER / unpack.RECORDINGS).write_bytes(unpack.archive(files))
  (_FOLDER / unpack.WEIGHTS).write_bytes(
      lzma.compress(unpack.split_planes(numbers), preset=9 | lzma.PRESET_EXTREME))
  _verify(source)
  for name in (unpack.RECORDINGS, unpack.WEIGHTS):
    print(f"{name}: {(_FOLDER / name).stat().st_size:,} bytes")


def _minified(path: pathlib.Path) -> bytes:
  return json.dumps(json.loads(path.read_text()), separators=(",", ":"), ensure_ascii=False).encode()


def _strided(array: np.ndarray, strides: tuple[int, ...]) -> np.ndarray:
  return array[tuple(slice(None, None, s) for s in strides)].copy()


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  return buffer.getvalue()


def _image(name: str, array: np.ndarray, kind: str) -> dict[str, bytes]:
  """{file name: WebP} of uint8[H, W, 3], uint8[B, H, W, 3] or float32[B, 3, H, W], one below another."""
  layout = "hwc" if array.ndim == 3 else "nhwc" if kind == "u8" else "nchw"
  rows = array[None] if layout == "hwc" else np.moveaxis(array, 1, -1) if layout == "nchw" else array
  values = unpack.RANGES[kind](np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1))  # [256, 3]
  pixels = np.stack([np.searchsorted(values[:, c], rows[..., c]) for c in range(3)], -1).astype(np.uint8)
  if not np.array_equal(unpack.RANGES[kind](pixels), rows):
    raise SystemExit(f"{name}: not an image in the range {kind}")
  buffer = io.BytesIO()
  Image.fromarray(pixels.reshape(-1, *pixels.shape[2:])).save(
      buffer, "WEBP", lossless=True, quality=100, method=6)
  return {f"{name}.{kind}.{layout}.{len(rows)}.webp": buffer.getvalue()}


def _load(path: pathlib.Path) -> dict[str, torch.Tensor]:
  if path.suffix == ".pth":
    return torch.load(path, weights_only=True)
  return safetensors_torch.load_file(path)


def _weights(source: pathlib.Path):
  """({file: {tensor: [dtype, shape, first]}}, int16[N] of bfloat16 bits), equal runs of bits once."""
  table, held = {}, bytearray()
  for name in _WEIGHTS:
    rows = {}
    for key, tensor in _load(source / name).items():
      exact = tensor.to(torch.bfloat16)
      if not torch.equal(exact.to(tensor.dtype), tensor):
        raise SystemExit(f"{name}: {key} is not exact in bfloat16")
      bits = exact.contiguous().view(torch.int16).numpy().tobytes()
      at = _find(held, bits)
      if at < 0:
        at = len(held)
        held += bits
      rows[key] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), at // 2]
    table[name] = rows
  return table, np.frombuffer(bytes(held), np.int16)


def _find(held: bytearray, bits: bytes) -> int:
  """Even offset of `bits` in `held`; -1 if absent."""
  at = held.find(bits)
  while at % 2 and at >= 0:
    at = held.find(bits, at + 1)
  return at


def _verify(source: pathlib.Path) -> None:
  """Compares every bit of what is unpacked with the full set."""
  with tempfile.TemporaryDirectory() as folder:
    made = unpack.unpack(pathlib.Path(folder))
    for name in _WEIGHTS:
      ours, recorded = _load(made / name), _load(source / name)
      if list(ours) != list(recorded) or not all(
          ours[k].dtype == v.dtype and torch.equal(ours[k], v) for k, v in recorded.items()):
        raise SystemExit(f"{name} differs")
    for name, strides in _ARRAYS.items():
      ours, recorded = np.load(made / f"{name}.npz"), np.load(source / f"{name}.npz")
      for key in ours:
        expected = _strided(recorded[key], strides.get(key, _WHOLE))
        if ours[key].dtype != expected.dtype or not np.array_equal(ours[key], expected):
          raise SystemExit(f"{name}: {key} differs")
      if missing := _IMAGES.get(name, {}).keys() - set(ours):
        raise SystemExit(f"{name}: {missing} not unpacked")


if __name__ == "__main__":
  main()
