"""The tokenizer and its stage-2 step in PyTorch, from transformers' and diffusers' own networks.

What a user would run instead of this package: InternVL's vision model, mlp1 and the latent head as
torch modules, AutoencoderDC's decoder, the patch discriminator, AdamW in the official groups, EMA.
Used by benchmarks only.
"""

from typing import Any

import diffusers
import torch
from torch import nn
import torch.nn.functional as F
import transformers

from unilip_jax import presets

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
        nn.LayerNorm(4 * vit.width), nn.Linear(4 * vit.width, dims.llm_width), nn.GELU(),
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

  def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = self.vision(image)
    x = features
    for block in self.down_blocks:
      x = x + block(x)
    x = self.down_mlp(x)
    g = int(x.shape[1] ** 0.5)
    pixels = self.decoder(x.transpose(1, 2).reshape(x.shape[0], -1, g, g))
    return F.interpolate(pixels, size=image.shape[-2:], mode="bilinear"), features


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


class Stage2Step:
  """One stage-2 update: L2 + distillation + GAN, clipping, AdamW, EMA, then the discriminator."""

  def __init__(self, preset: presets.Preset, config: Any, gan: bool):
    self.config, self.gan = config, gan
    self.model = Tokenizer(preset.tokenizer)
    self.teacher = Vision(preset.tokenizer).requires_grad_(False)
    self.teacher.load_state_dict(self.model.vision.state_dict())
    self.ema = [p.detach().clone() for p in self.model.parameters()]
    self.discriminator = make_discriminator(preset.discriminator)
    vision = list(self.model.vision.parameters())
    others = [p for n, p in self.model.named_parameters() if not n.startswith("vision.")]
    lr = config.optimizer.lr
    self.optimizer = torch.optim.AdamW(
        [{"params": vision, "lr": 0.1 * lr}, {"params": others, "lr": lr}],
        weight_decay=config.optimizer.weight_decay)
    self.gan_optimizer = torch.optim.AdamW(self.discriminator.parameters(), lr=config.gan.lr)
    self.averages = [0.0, 0.0]
    self.mean = torch.tensor(_MEAN).view(1, 3, 1, 1)
    self.std = torch.tensor(_STD).view(1, 3, 1, 1)

  def __call__(self, pixels: torch.Tensor) -> float:
    """Updates on uint8[B, R, R, 3]; returns the loss."""
    config = self.config
    unit = pixels.permute(0, 3, 1, 2).float() / 255
    image = (unit - self.mean) / self.std
    out, features = self.model(image)
    reconstruction = (out + 1) / 2
    loss = config.loss.l2 * F.mse_loss(reconstruction, unit)
    with torch.no_grad():
      target = self.teacher(image)
    loss = loss + config.loss.distill * F.mse_loss(features, target)
    if self.gan:
      loss = loss - config.gan.weight * self.discriminator(reconstruction).mean()
    self.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(self.model.parameters(), config.optimizer.clip_norm)
    self.optimizer.step()
    if self.gan:
      self._update_discriminator(unit, reconstruction.detach())
    with torch.no_grad():
      torch._foreach_lerp_(self.ema, list(self.model.parameters()), 1 - config.ema_decay)
    return float(loss.detach())

  def _update_discriminator(self, real: torch.Tensor, fake: torch.Tensor) -> None:
    logits_real, logits_fake = self.discriminator(real), self.discriminator(fake)
    loss = 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())
    decay = self.config.gan.lecam_decay
    means = logits_real.mean(), logits_fake.mean()
    self.averages = [decay * a + (1 - decay) * float(m.detach()) for a, m in zip(self.averages, means)]
    lecam = (F.relu(logits_real - self.averages[1]).square().mean()
             + F.relu(self.averages[0] - logits_fake).square().mean())
    self.gan_optimizer.zero_grad(set_to_none=True)
    (loss + self.config.gan.lecam * lecam).backward()
    nn.utils.clip_grad_norm_(self.discriminator.parameters(), self.config.optimizer.clip_norm)
    self.gan_optimizer.step()
