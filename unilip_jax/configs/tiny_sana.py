"""The stand-in of SANA at tiny size: a DiT from random weights on DC-AE's latents of Shapes scenes.

  python -m unilip_jax.main --config=configs/tiny_sana.py:tiny --workdir=/tmp/tiny_sana

SANA learns to draw with a reader that knows its language, Gemma. Here that is a bag of words for each
clause (models/clauses.py), which is thrown away: only the DiT ships, one that follows its condition. gen1
then aligns a connector with it.
"""

from unilip_jax.configs import gen1


def get_config(size: str = "tiny"):
  if size != "tiny":
    raise ValueError(f"tiny_sana stands in for SANA at tiny alone, not at {size!r}; import SANA's weights")
  c = gen1.get_config(size)
  c.stage = "tiny_sana"
  c.init_from = "shapes:dcae"
  c.task = "shapes_clauses"
  c.optimizer.lr = 2e-3
  c.optimizer.end_lr = 2e-4
  c.total_steps = 400
  c.param_rules = (("^encoder/", gen1.FROZEN),)
  return c
