"""gen2: pre-train connector and DiT on UniLIP's own latents, text→image and edits mixed.

  unilip train --config=configs/gen2.py:1b --workdir=runs/gen2 --config.init_from=runs/gen1
  unilip train --config=configs/gen2.py:tiny --workdir=/tmp/gen2         # two CPU cores, minutes

UniLIP section 3.2 and its official launch script: 200 000 steps of 512 at 448 px on BLIP3o-Pretrain
× 1 and GPT-Image-Edit-1.5M × 10, which makes 0.71 : 0.29 of a batch. The DiT reads the dual
condition: hidden states of prompt and image, and query states.

Paper: no score of this stage alone; gen3 has the final ones.
Hardware: planned with mesh.gather=step on 64 chips (v6e:8x8) 215 chip hours, on v5p:4x4x4 412, on
16 v5e chips 677.
Tiny: shapes:gen2 took 23 583 updates, 9.2 hours on two cores of AMD EPYC and Intel Xeon machines:
72.4 % of 240 prompts right, 89.4 % of 210 edits successful, 62.7 % with all other objects unchanged
(docs/results/gen2.json).
"""

from unilip_jax.configs import base, gen1


def get_config(size: str = "1b"):
  c = base.get_config(size)
  gen1.make_generation(c)
  c.stage = "gen2"
  c.init_from = "shapes:gen1" if size == "tiny" else "runs/gen1"
  c.param_rules = (("^(vision_tower|mlp1|latent_head|decoder|llm)/", gen1.FROZEN),)
  c.total_steps = 1000 if size == "tiny" else 200_000
  gen1.set_warmup(c)
  c.data.edit_share = 0.29
  c.data.edit = (("tar", "data/GPT-Image-Edit-1.5M/*.tar", 1.0),)
  if size == "tiny":
    c.data.edit = (("shapes", "train", 1.0),)
    c.data.edit_share = 0.375  # more than official: edits have seven categories in Shapes
    c.sample_set = ("edit", "shapes", "test")
  return c
