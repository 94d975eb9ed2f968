"""gen1: train queries, connector and projector towards DC-AE's latents; everything else is frozen.

  unilip train --config=configs/gen1.py:1b --workdir=runs/gen1
  unilip train --config=configs/gen1.py:tiny --workdir=/tmp/gen1         # two CPU cores, minutes

The first of three generation stages (UniLIP section 3.2 and its official launch script): 50 000
steps of 512 on BLIP3o-Pretrain, images of 512 px. Queries start as N(0, 1), the connector as the
LLM's last six layers, the projector as PyTorch's default.

Paper: no score of this stage alone.
Hardware: planned on 64 chips (v6e:8x8) 58 chip hours (docs/scaling.md).
Tiny: shapes:gen1 took 1500 updates, 10 minutes on two cores of an Intel Xeon: flow-matching loss
0.296, with the prompt of another scene 0.924 (docs/results/gen1.json).
"""

from unilip_jax.configs import base


def get_config(size: str = "1b"):
  c = base.get_config(size)
  make_generation(c)
  c.stage = "gen1"
  c.init_from = _WEIGHTS[size]
  c.generate.target = "dcae"
  c.image_size = 128 if size == "tiny" else 512
  c.param_rules = (("^(vision_tower|mlp1|latent_head|decoder|llm|encoder|dit)/", FROZEN),)
  # No images: these latents are for DC-AE's decoder, which this model does not hold.
  c.eval.sets = (("pairs", "flow_t2i", "shapes", "test"),) if size == "tiny" else ()
  c.sample_every_steps = 0
  c.total_steps = 300 if size == "tiny" else 50_000
  set_warmup(c)
  return c


# Later ones win: tower, mlp1 and decoder are those of the tokenizer that stage 448 trained. Of DC-AE only
# the encoder is left, which makes the targets; its decoder would pass through gen1 into gen2 and gen3, and
# decode there what it was not made for.
_WEIGHTS = {
    "tiny": "shapes:dcae,shapes:stage2,shapes:sana",
    "1b": "weights/internvl3-1b,weights/dc-ae-f32c32-sana-1.1,weights/sana-600m,runs/stage448",
    "3b": "weights/internvl3-2b,weights/dc-ae-f32c32-sana-1.1,weights/sana-1600m,runs/stage448"}

FROZEN = {"train": False, "dtype": "bfloat16"}  # official: the whole model is loaded in bfloat16


def set_warmup(c) -> None:
  """Sets the warm-up to 0.003 of the updates (official); at tiny, where that would be none, to 20."""
  c.optimizer.warmup_steps = 20 if c.size == "tiny" else c.total_steps * 3 // 1000


def make_generation(c) -> None:
  """Sets what gen1, gen2 and gen3 share (official launch scripts)."""
  tiny = c.size == "tiny"
  c.task = "generate"
  c.image_size = 112 if tiny else 448
  c.batch_size = 64 if tiny else 512
  c.ema_decay = 0.99 if tiny else 0.0
  c.generate.noise_samples_per_image = 4 if tiny else 1
  # Simple scenes can be recognised through much noise: only near pure noise the prompt matters.
  c.generate.timestep_shift = 3.0 if tiny else 1.0
  c.optimizer.lr = 1e-3 if tiny else 1e-4
  c.optimizer.end_lr = c.optimizer.lr / 10
  c.optimizer.weight_decay = 0.0
  c.optimizer.clip_norm = 1.0
  # LLM and ViT, 1.4 GB at 1b and 3.7 GB at 3b; sharded, they would be most of what a step gathers.
  c.mesh.frozen_sharding = "replicated"
  if not tiny:  # kept activations of 64 examples would not fit an 80 GB GPU (docs/scaling.md)
    c.remat.llm = c.remat.dit = "full"
  c.gan.weight = 0.0
  c.loss.perceptual = 0.0
  c.data.example = "t2i"
  if not tiny:
    c.data.train = (("tar", "data/BLIP3o-Pretrain-*/*.tar", 1.0),)
    c.sample_set = ("t2i", "tar", "data/BLIP3o-60k/*.tar")
  # Scored automatically on Shapes. GenEval and ImgEdit, for 1b and 3b, do not run during training.
  c.eval.sets = (
      ("t2i", "t2i", "shapes", "test"), ("edits", "edits", "shapes", "test"),
      ("pairs", "flow_t2i", "shapes", "test"), ("edit_pairs", "flow_edit", "shapes", "test"),
  ) if tiny else ()
  c.eval.batch_size = 48
