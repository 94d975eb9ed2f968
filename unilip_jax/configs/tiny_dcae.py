"""Small replacement for DC-AE: encoder and decoder from random weights, on Shapes scenes.

  unilip train --config=configs/tiny_dcae.py:tiny --workdir=/tmp/tiny_dcae

Stage 1 starts from its decoder; gen1's target latents come from its encoder. At 1b and 3b the same
config fine-tunes the published DC-AE on images.

Tiny: shapes:dcae took 1500 updates, 31 minutes on two cores of an AMD EPYC: PSNR 32.8 dB
(docs/results/dcae.json).
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
