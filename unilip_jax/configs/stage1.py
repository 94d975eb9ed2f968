"""Stage 1: align the latent head and the pixel decoder with the frozen CLIP tower, at 224 px.

  python -m unilip_jax.main --config=configs/stage1.py:1b --workdir=runs/stage1
  python -m unilip_jax.main --config=configs/stage1.py:tiny --workdir=/tmp/stage1   # laptop, minutes

Starts from InternVL3's ViT + mlp1 and DC-AE's decoder; trains 300 000 steps of 128 images.
"""

from unilip_jax.configs import base


def get_config(size: str = "1b"):
  c = base.get_config(size)
  c.stage = "stage1"
  # The official discriminator starts at step 500 000 of 300 000, that is never: none is built.
  c.gan.weight = 0.0
  return c
