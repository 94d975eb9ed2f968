"""gen3: fine-tune connector and DiT on few, fine pairs and edits.

  python -m unilip_jax.main --config=configs/gen3.py:1b --workdir=runs/gen3 --config.init_from=runs/gen2
  python -m unilip_jax.main --config=configs/gen3.py:tiny --workdir=/tmp/gen3      # laptop

UniLIP section 3.2 and its official launch script: 30 000 steps of 512 on BLIP3o-60k and
ShareGPT-4o-Image's text→image pairs × 1, and its edits × 3. Of the Shapes world it is what people ask
for in their own words (shapes/paraphrases.py), three to one of the sentences that gen2 knows.
"""

from unilip_jax.configs import gen1, gen2


def get_config(size: str = "1b"):
  c = gen2.get_config(size)
  c.stage = "gen3"
  if size == "tiny":
    c.init_from = "shapes:gen2"
    c.total_steps = 500
    c.data.train = (("shapes", "train", 3.0, {"count": 2048, "paraphrased": True}),
                    ("shapes", "train", 1.0))
    c.data.edit = c.data.train
    c.text.edit_length = 64  # the words around an instruction take up to 7 tokens
    paraphrased = ("shapes", "test", {"paraphrased": True})
    c.eval.sets += (
        ("paraphrases", "t2i", *paraphrased), ("edit_paraphrases", "edits", *paraphrased),
        ("paraphrase_pairs", "flow_t2i", *paraphrased))
    c.generate.timestep_shift = 1.5  # scenes are planned well by then; shapes, drawn at less noise, are not
    c.optimizer.lr = 3e-4
    c.optimizer.end_lr = 3e-5
  else:
    c.init_from = "runs/gen2"
    c.total_steps = 30_000
    # 60 000 and 45 000 pairs, 46 000 edits × 3.
    c.data.train = (("tar", "data/BLIP3o-60k/*.tar", 60.0),
                    ("tar", "data/ShareGPT-4o-Image/t2i/*.tar", 45.0))
    c.data.edit = (("tar", "data/ShareGPT-4o-Image/edit/*.tar", 1.0),)
    c.data.edit_share = 0.57
  gen1.set_warmup(c)
  return c
