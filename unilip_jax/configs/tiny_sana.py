"""Small replacement for SANA: a DiT from random weights on DC-AE's latents of Shapes scenes.

  unilip train --config=configs/tiny_sana.py:tiny --workdir=/tmp/tiny_sana

SANA learned with Gemma as its text encoder. Here the text encoder is a bag of words for each clause
(shapes/clauses.py), which is thrown away: only the DiT is included, and gen1 aligns a connector
with it.

Tiny: shapes:sana took 400 updates, 8 minutes on two cores of an AMD EPYC: flow-matching loss 0.295,
with the prompt of another scene 0.885.
"""

from unilip_jax.configs import gen1


def get_config(size: str = "tiny"):
  if size != "tiny":
    raise ValueError(f"tiny_sana replaces SANA at size tiny only, not at {size!r}; import SANA's weights")
  c = gen1.get_config(size)
  c.stage = "tiny_sana"
  c.init_from = "shapes:dcae"
  c.task = "shapes_clauses"
  c.optimizer.lr = 2e-3
  c.optimizer.end_lr = 2e-4
  c.total_steps = 400
  c.param_rules = (("^encoder/", gen1.FROZEN),)
  return c
