"""DC-AE (arXiv 2410.10733): the pixel decoder of UniLIP, and the encoder of gen1's target latents.

Spatial factor 32; stage i works at 1/2^i of the image. Reference: diffusers' AutoencoderDC
(dc-ae-f32c32-sana-1.1). A config whose outermost stage has 0 layers drops that stage: the last (or
first) convolution then resamples.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from unilip_jax.models import dcae_blocks as blocks
from unilip_jax.models import layers, presets
from unilip_jax.ops import image as image_ops
from unilip_jax.sharding import activations


def _outer_channels(dims: presets.DcaeDims) -> int:
  return dims.channels[0] if dims.layers[0] > 0 else dims.channels[1]


class Stage(nn.Module):
  """The blocks of one stage, with the upsampling before or the downsampling after them."""

  dims: presets.DcaeDims
  index: int
  is_decoder: bool
  dtype: Any
  remat: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    d, i = self.dims, self.index
    # The innermost stage does not resample, an empty one does nothing.
    inner = i < len(d.channels) - 1 and d.layers[i] > 0
    if inner and self.is_decoder:
      x = blocks.Upsample(d.channels[i], d.resample, self.dtype, name="up")(x)
    for j in range(d.layers[i]):
      x = self._block(j)(activations.constrain(x, "batch"))
    if inner and not self.is_decoder:
      x = blocks.Downsample(d.channels[i + 1], d.resample, self.dtype, name="down")(x)
    self.sow("intermediates", "out", x)
    return x

  def _block(self, j: int) -> nn.Module:
    d, i, name = self.dims, self.index, f"blocks_{j}"
    if d.blocks[i] == "ResBlock":
      return layers.remat(blocks.ResBlock, self.remat)(
          d.norms[i], d.acts[i], self.dtype, name=name)
    if d.blocks[i] == "EfficientViTBlock":
      return layers.remat(blocks.EfficientVitBlock, self.remat)(
          d.head_dim, d.qkv_multiscales[i], d.norms[i], self.dtype, name=name)
    raise ValueError(f"unknown block {d.blocks[i]!r}; known: {', '.join(blocks.BLOCKS)}")


class Decoder(nn.Module):
  """Latents to pixels.

  Attributes:
    dims: sizes and kinds.
    dtype: of the computation.
    remat: policy of one block (layers.remat).
  """

  dims: presets.DcaeDims
  dtype: Any
  remat: str

  @nn.compact
  def __call__(self, latents: jax.Array) -> jax.Array:
    """dtype[B, h, w, c] -> dtype[B, 32h, 32w, 3], about [-1, 1]."""
    d = self.dims
    x = layers.Conv(d.channels[-1], 3, self.dtype, name="conv_in")(latents)
    if d.shortcut:
      x += jnp.repeat(latents, d.channels[-1] // d.latent_channels, axis=-1).astype(x.dtype)
    for i in reversed(range(len(d.channels))):
      x = Stage(d, i, True, self.dtype, self.remat, name=f"up_blocks_{i}")(x)
    x = blocks.make_norm("rms_norm", self.dtype, "norm_out")(x)
    x = blocks.activation(d.conv_act)(x)
    if d.layers[0] > 0:
      return layers.Conv(3, 3, self.dtype, name="conv_out")(x)
    return blocks.Upsample(3, d.resample, self.dtype, shortcut=False, name="conv_out")(x)


class Encoder(nn.Module):
  """Pixels to latents; attributes as of `Decoder`."""

  dims: presets.DcaeDims
  dtype: Any
  remat: str = "none"

  @nn.compact
  def __call__(self, image_signed: jax.Array) -> jax.Array:
    """float[B, 32h, 32w, 3] in [-1, 1] -> dtype[B, h, w, c], not multiplied by scaling_factor."""
    d = self.dims
    outer = _outer_channels(d)
    if d.layers[0] > 0:
      x = layers.Conv(outer, 3, self.dtype, name="conv_in")(image_signed)
    else:
      x = blocks.Downsample(outer, d.resample, self.dtype, shortcut=False, name="conv_in")(
          image_signed)
    for i in range(len(d.channels)):
      x = Stage(d, i, False, self.dtype, self.remat, name=f"down_blocks_{i}")(x)
    y = layers.Conv(d.latent_channels, 3, self.dtype, name="conv_out")(x)
    if d.shortcut:
      y += x.reshape(*x.shape[:-1], d.latent_channels, -1).mean(-1)
    return y


class Autoencoder(nn.Module):
  """Encodes and decodes; callable like models/tokenizer.py's Tokenizer.

  Attributes:
    encoder_dims: of the encoder.
    decoder_dims: of the decoder.
    dtype: of the computation.
    remat: policy of one block (layers.remat).
  """

  encoder_dims: presets.DcaeDims
  decoder_dims: presets.DcaeDims
  dtype: Any
  remat: str = "none"

  def setup(self):
    self.encoder = Encoder(self.encoder_dims, self.dtype, self.remat)
    self.decoder = Decoder(self.decoder_dims, self.dtype, self.remat)

  @property
  def side(self) -> int:
    """Pixels per side of one latent."""
    return 2 ** (len(self.encoder_dims.channels) - 1)

  def __call__(
      self, unit: jax.Array, *, align_corners: bool = False) -> dict[str, jax.Array]:
    """Reconstructs images.

    Args:
      unit: float32[B, H, W, 3] in [0, 1], H and W multiples of 32.
      align_corners: ignored, since nothing is resized; an argument so that calls equal the Tokenizer's.

    Returns:
      reconstruction float32[B, H, W, 3], about [-1, 1], and latents, unscaled.
    """
    del align_corners
    # The way to ImageNet's range and back rounds values in float32. It stays, so that older runs of this
    # stage resume bit by bit.
    unit = image_ops.unit_from_imagenet(image_ops.imagenet_from_unit(unit))
    latents = self.encoder(image_ops.signed_from_unit(unit))
    return {"reconstruction": self.decoder(latents).astype(jnp.float32), "latents": latents}
