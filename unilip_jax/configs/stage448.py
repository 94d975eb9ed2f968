"""Stage 448: continue stage 2 at 448 px, with the discriminator from the first step.

  unilip train --config=configs/stage448.py:1b --workdir=runs/stage448 --config.init_from=runs/stage2
  unilip train --config=configs/stage448.py:tiny --workdir=/tmp/stage448   # two CPU cores, minutes; 112 px

Starts from stage 2's EMA; 100 000 steps of 128 images; encoder (official) and decoder are
rematerialised. At tiny the size stays 112 px, and activations are kept.

Paper, ImageNet validation at 448 px: rFID 0.31, PSNR 24.62, SSIM .788.
Hardware: planned on 64 chips (v6e:8x8) 232 chip hours, on v5p:4x4x4 306; 128 images do not fit on
16 v5e chips.
Tiny: no weights included; 15.1 images/s on one CPU core (docs/performance.md).
"""

from unilip_jax.configs import stage2


def get_config(size: str = "1b"):
  c = stage2.get_config(size)
  c.stage = "stage448"
  if size != "tiny":
    c.init_from = "runs/stage2"
  c.total_steps = 300 if size == "tiny" else 100_000
  c.gan.start_step = 0
  if size != "tiny":
    c.remat.vit = c.remat.decoder = "full"
    c.image_size = 448
    c.eval.sets = (("imagenet448", "448", "tar", "data/imagenet-val/*.tar"),)
  return c
