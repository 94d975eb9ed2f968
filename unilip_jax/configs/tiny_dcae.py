"""The stand-in of DC-AE at tiny size: encoder and decoder from random weights, on Shapes scenes.

  python -m unilip_jax.main --config=configs/tiny_dcae.py:tiny --workdir=/tmp/tiny_dcae

Stage 1 starts from its decoder, gen1's target latents come from its encoder. At 1b and 3b the same
config fine-tunes the published DC-AE on images.
"""

from unilip_jax.configs import base


def get_config(size: str = "tiny"):
  c = base.get_config(size)
  c.stage = "tiny_dcae"
  c.autoencoder = "dcae"
  c.param_rules = ()
  c.init_from = "" if size == "tiny" else "weights/dc-ae-f32c32-sana-1.1"
  c.image_size = 128 if size == "tiny" else 512
  return c
