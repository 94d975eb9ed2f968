"""Stage 1: train the latent head and the pixel decoder on a frozen CLIP tower, at 224 px.

  unilip train --config=configs/stage1.py:1b --workdir=runs/stage1
  unilip train --config=configs/stage1.py:tiny --workdir=/tmp/stage1     # two CPU cores, minutes

Starts from InternVL3's ViT and mlp1 (the MLP that maps its features to the LLM's width) and DC-AE's
decoder; 300 000 steps of 128 images.

Paper: no score of this stage alone; its ablation with a frozen CLIP tower has rFID 6.14, PSNR
16.26, SSIM .572.
Hardware: planned on 64 chips (v6e:8x8) 134 chip hours (docs/scaling.md).
Tiny: shapes:stage1 took 600 updates, 22 minutes on two cores of an AMD EPYC: PSNR 30.1 dB, 45.8 %
of the scenes read back exactly (docs/results/stage1.json).
"""

from unilip_jax.configs import base


def get_config(size: str = "1b"):
  c = base.get_config(size)
  c.stage = "stage1"
  # The official discriminator starts at step 500 000 of 300 000, that is never: none is built.
  c.gan.weight = 0.0
  return c
