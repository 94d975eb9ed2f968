"""gen3: fine-tune connector and DiT on a small set of curated pairs and edits.

  unilip train --config=configs/gen3.py:1b --workdir=runs/gen3 --config.init_from=runs/gen2
  unilip train --config=configs/gen3.py:tiny --workdir=/tmp/gen3         # two CPU cores, minutes

UniLIP section 3.2 and its official launch script: 30 000 steps of 512 on BLIP3o-60k and
ShareGPT-4o-Image's text→image pairs × 1, and its edits × 3. At tiny it learns paraphrased prompts
(shapes/paraphrases.py), three for each template prompt that gen2 knows.

Paper, GenEval / WISE / ImgEdit: 1B .88 / .56 / 3.81, 3B .90 / .63 / 3.94.
Hardware: planned with mesh.gather=step on 64 chips (v6e:8x8) 35 chip hours (docs/scaling.md).
Tiny: shapes:gen3 took 2500 updates, 56 minutes on two cores of an AMD EPYC: 63.6 % of paraphrased
prompts right, 62.3 % of paraphrased edits successful with all other objects unchanged
(docs/results/gen3.json).
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
    c.text.edit_length = 64  # a paraphrase adds up to 7 tokens to an instruction
    paraphrased = ("shapes", "test", {"paraphrased": True})
    c.eval.sets += (
        ("paraphrases", "t2i", *paraphrased), ("edit_paraphrases", "edits", *paraphrased),
        ("paraphrase_pairs", "flow_t2i", *paraphrased))
    c.generate.timestep_shift = 1.5  # gen2 gets positions right; shapes are decided at less noise
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
