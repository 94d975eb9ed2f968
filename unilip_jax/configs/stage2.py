"""Stage 2: train the complete tokenizer at 224 px, with self-distillation of the CLIP tower.

  unilip train --config=configs/stage2.py:1b --workdir=runs/stage2 --config.init_from=runs/stage1
  unilip train --config=configs/stage2.py:tiny --workdir=/tmp/stage2     # two CPU cores, minutes

Starts from stage 1's EMA; 400 000 steps of 128 images. The teacher is the original ViT with mlp1;
ViT and mlp1 learn at 0.1 × the rate. The discriminator starts at step 200 000.

Paper, ImageNet validation at 256 px: rFID 0.79, PSNR 22.99, SSIM .747.
Hardware: planned on 64 chips (v6e:8x8) 334 chip hours, on v5p:4x4x4 433, on 16 v5e chips 704.
Tiny: shapes:stage2 took 18 600 updates, 3.6 hours on two cores of AMD EPYC and Intel Xeon machines:
PSNR 41.1 dB, 95.8 % of the scenes read back exactly (docs/results/stage2.json).
"""

from unilip_jax.configs import base


def get_config(size: str = "1b"):
  c = base.get_config(size)
  c.stage = "stage2"
  c.init_from = "runs/stage1"
  c.param_rules = (("^(vision_tower|mlp1)/", {"lr": 0.1}),)
  c.loss.distill = 1.0
  c.gan.weight = 0.1
  c.total_steps = 400_000
  c.gan.start_step = 200_000
  if size == "tiny":
    c.init_from = "shapes:stage1"  # or your own stage 1
    c.eval.sets += (("questions", "questions", "shapes", "test"),)  # whether the tower still understands
    c.total_steps = 300
    c.gan.start_step = 270
  return c
