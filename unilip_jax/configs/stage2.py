"""Stage 2: train the whole tokenizer at 224 px, the CLIP tower held by self-distillation.

  python -m unilip_jax.main --config=configs/stage2.py:1b --workdir=runs/stage2 \
      --config.init_from=runs/stage1
  python -m unilip_jax.main --config=configs/stage2.py:tiny --workdir=/tmp/stage2 \
      --config.init_from=/tmp/stage1                                     # laptop, minutes

Starts from stage 1's EMA; the teacher is the original ViT + mlp1. ViT and mlp1 learn at 0.1 ×.
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
    c.init_from = "shapes:stage1"  # or a stage 1 of your own
    c.eval.sets += (("questions", "questions", "shapes", "test"),)  # does the tower still understand?
    c.total_steps = 300
    c.gan.start_step = 270
  return c
