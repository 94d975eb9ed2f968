"""reca: reconstruction alignment, images rebuilt from the model's own understanding of them.

  unilip train --config=configs/reca.py:1b --workdir=runs/reca --config.init_from=runs/gen2
  unilip train --config=configs/reca.py:tiny --workdir=/tmp/reca           # two CPU cores, minutes

RecA (arXiv 2509.07295) as one more kind of edit in gen2's mixture: input and target are the same image,
and the instruction asks for all of it (data/realignment.py). It needs no captions. Half of a batch are such
rows; prompts and edits stay in it, so that they are not forgotten. Rate as published: constant 4e-5.

Paper, GenEval / ImgEdit: BAGEL 78.8 → 82.4 / 3.38 → 3.75.
Hardware: not planned on TPUs yet; `unilip plan` does it.
Tiny, one seed: 500 updates take scenes that an edit without a change returns exactly from .238 to .754,
prompts and edits stay within chance (docs/results/reca.json); no weights included.
"""

from unilip_jax.configs import gen2


def get_config(size: str = "1b"):
  c = gen2.get_config(size)
  tiny = size == "tiny"
  c.stage = "reca"
  c.init_from = "shapes:gen2" if tiny else "runs/gen2"
  edits = c.data.edit
  same = ("shapes", "train", 1.0, {"same": True}) if tiny else (
      "tar", "data/BLIP3o-60k/*.tar", 1.0, {"same": True})
  # Weights so that half of the batch are images to rebuild.
  c.data.edit_share = 0.75 if tiny else 0.7
  share = 0.5 / c.data.edit_share
  c.data.edit = (*((*row[:2], (1 - share) / len(edits), *row[3:]) for row in edits),
                 (*same[:2], share, same[3]))
  if tiny:
    c.text.edit_length = 96  # words that the tokenizer of Shapes spells
    c.eval.sets += (("same", "same", "shapes", "test"),)
  c.total_steps = 500 if tiny else 2000
  c.optimizer.lr = c.optimizer.end_lr = 5e-5 if tiny else 4e-5
  c.optimizer.warmup_steps = 20 if tiny else 100
  c.ema_decay = 0.99 if tiny else 0.999
  return c
