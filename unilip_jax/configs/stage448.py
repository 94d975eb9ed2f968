"""Stage 448: continue stage 2 at 448 px, the discriminator on from the first step.

  python -m unilip_jax.main --config=configs/stage448.py:1b --workdir=runs/stage448 \
      --config.init_from=runs/stage2

Starts from stage 2's EMA; the encoder is rematerialised. At tiny the size stays 112 px,
and there is memory enough for all activations.
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
    c.remat.vit = "full"
    c.image_size = 448
    c.eval.sets = (("imagenet448", "448", "tar", "data/imagenet-val/*.tar"),)
  return c
