"""The tokenizer in PyTorch, from transformers' and diffusers' own networks.

A user would run this instead of unilip_jax: InternVL's vision model, mlp1 and the latent head as
torch modules, AutoencoderDC's decoder, the patch discriminator. Used by benchmarks only.
"""

import diffusers
import torch
from torch import nn
import torch.nn.functional as F
import transformers

from unilip_jax.convert import engine
from unilip_jax.models import presets

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def unit(pixels: torch.Tensor) -> torch.Tensor:
  """uint8[B, R, R, 3] to float32[B, 3, R, R] in [0, 1]."""
  return pixels.permute(0, 3, 1, 2).float() / 255


def normalise(image: torch.Tensor) -> torch.Tensor:
  """[B, 3, R, R] in [0, 1], by ImageNet's mean and deviation."""
  mean, std = (torch.tensor(x, device=image.device).view(1, 3, 1, 1) for x in (_MEAN, _STD))
  return (image - mean) / std


def imagenet(pixels: torch.Tensor) -> torch.Tensor:
  """uint8[B, R, R, 3] to float32[B, 3, R, R], ImageNet-normalised."""
  return normalise(unit(pixels))


class Vision(nn.Module):
  """ViT + pixel unshuffle + mlp1."""

  def __init__(self, dims: presets.TokenizerDims):
    super().__init__()
    vit = dims.vit
    self.vit = transformers.InternVLVisionModel(transformers.InternVLVisionConfig(
        hidden_size=vit.width, num_hidden_layers=vit.depth, num_attention_heads=vit.heads,
        intermediate_size=vit.mlp, attention_bias=True, image_size=(vit.image_size,) * 2,
        patch_size=(vit.patch,) * 2, norm_type="layer_norm", layer_norm_eps=1e-6,
        use_mean_pooling=True, attn_implementation="sdpa"))
    self.mlp1 = nn.Sequential(
        nn.LayerNorm(vit.token_width), nn.Linear(vit.token_width, dims.llm_width), nn.GELU(),
        nn.Linear(dims.llm_width, dims.llm_width))

  def forward(self, image: torch.Tensor) -> torch.Tensor:
    tokens = self.vit(image).last_hidden_state[:, 1:]
    b, n, d = tokens.shape
    g = int(n ** 0.5) // 2
    merged = tokens.view(b, g, 2, g, 2, d).permute(0, 1, 3, 2, 4, 5).reshape(b, g * g, 4 * d)
    return self.mlp1(merged)


class Tokenizer(nn.Module):
  """Vision, latent head and DC-AE decoder."""

  def __init__(self, dims: presets.TokenizerDims):
    super().__init__()
    self.vision = Vision(dims)
    c, d = dims.llm_width, dims.decoder

    def block(width_in: int, width_out: int, eps: float) -> nn.Module:
      return nn.Sequential(nn.LayerNorm(width_in, eps=eps), nn.Linear(width_in, width_out), nn.GELU(),
                           nn.Linear(width_out, width_out))

    self.down_blocks = nn.ModuleList(block(c, c, 1e-6) for _ in range(dims.latent_depth))
    self.down_mlp = block(c, d.latent_channels, 1e-5)
    self.decoder = diffusers.AutoencoderDC(
        latent_channels=d.latent_channels, attention_head_dim=d.head_dim,
        decoder_block_types=d.blocks, decoder_block_out_channels=d.channels,
        decoder_layers_per_block=d.layers, decoder_qkv_multiscales=d.qkv_multiscales,
        upsample_block_type=d.resample, decoder_norm_types=d.norms, decoder_act_fns=d.acts,
        encoder_block_types=d.blocks, encoder_block_out_channels=d.channels,
        encoder_layers_per_block=(0, *(1,) * (len(d.channels) - 1)),
        encoder_qkv_multiscales=d.qkv_multiscales).decoder

  def latents(self, features: torch.Tensor) -> torch.Tensor:
    """[B, C, h, w] of mlp1's features [B, L, D]."""
    x = features
    for block in self.down_blocks:
      x = x + block(x)
    x = self.down_mlp(x)
    g = int(x.shape[1] ** 0.5)
    return x.transpose(1, 2).reshape(x.shape[0], -1, g, g)

  def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = self.vision(image)
    pixels = self.decoder(self.latents(features))
    return F.interpolate(pixels.float(), size=image.shape[-2:], mode="bilinear"), features


class _Blur(nn.Module):

  def __init__(self, channels: int):
    super().__init__()
    k = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = (k[:, None] * k[None]) / (k.sum() ** 2)
    self.register_buffer("kernel", kernel[None, None].repeat(channels, 1, 1, 1))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.kernel, stride=2, groups=x.shape[1])


def make_discriminator(dims: presets.DiscriminatorDims) -> nn.Module:
  """The patch discriminator (models/discriminator.py)."""
  layers: list[nn.Module] = [nn.Conv2d(3, dims.stem, 5, padding=2), nn.LeakyReLU(0.1)]
  width = dims.stem
  for channels in dims.channels:
    layers += [nn.Conv2d(width, channels, 3, padding=1), _Blur(channels),
               nn.GroupNorm(dims.groups, channels), nn.LeakyReLU(0.1)]
    width = channels
  return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(dims.pool), nn.Conv2d(width, width, 1),
                       nn.LeakyReLU(0.1), nn.Conv2d(width, 1, 5, padding=2))


def discriminator_tables(dims: presets.DiscriminatorDims) -> list[engine.Rule]:
  """Rules between `make_discriminator`'s modules and JAX paths."""
  depth = len(dims.channels)
  first = 2 + 4 * depth  # of the max-pool
  convs = {"0": "conv_in", f"{first + 1}": "logits_in", f"{first + 3}": "logits_out"}
  convs |= {f"{2 + 4 * i}": f"conv_{i}" for i in range(depth)}
  table = []
  for torch_name, path in convs.items():
    table += engine.conv(torch_name, path)
  for i in range(depth):
    table += engine.norm(f"{4 + 4 * i}", f"norm_{i}")
  return table
