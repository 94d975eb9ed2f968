"""UniLIP's pixel decoder: the half of diffusers' AutoencoderDC that UniLIP has."""

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders import autoencoder_dc
import torch


class UniLIPDecoder(ModelMixin, ConfigMixin):
  """DC-AE's decoder."""

  @register_to_config
  def __init__(self, layers: dict, scaling_factor: float):
    """Makes the decoder.

    Args:
      layers: arguments of diffusers' own.
      scaling_factor: the transformer was trained on latents × scaling_factor.
    """
    super().__init__()
    self.decoder = autoencoder_dc.Decoder(**layers)

  def forward(self, latents: torch.Tensor) -> torch.Tensor:
    """Decodes unscaled latents: float[B, C, h, w] -> float[B, 3, 32h, 32w], about [-1, 1]."""
    return self.decoder(latents)
