"""The stand-in of SANA at tiny size: a DiT from random weights on DC-AE's latents of Blocks scenes.

  python -m unilip_jax.main --config=configs/tiny_sana.py:tiny --workdir=/tmp/tiny_sana

SANA reads Gemma's states; this one reads the frozen LLM's through queries and a connector of its own,
which are thrown away: only the DiT ships. gen1 starts a new connector and aligns it with this DiT.
"""

from configs import gen1


def get_config(size: str = "tiny"):
  c = gen1.get_config(size)
  c.stage = "tiny_sana"
  if size == "tiny":
    c.init_from = "blocks:mllm,blocks:dcae"
    c.total_steps = 1000
  c.param_rules = (("^(vision_tower|mlp1|latent_head|decoder|llm|encoder)/", gen1.FROZEN),)
  return c
