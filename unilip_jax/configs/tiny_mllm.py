"""Small replacement for InternVL3: ViT, mlp1 and LLM from random weights on Shapes questions.

  unilip train --config=configs/tiny_mllm.py:tiny --workdir=/tmp/tiny_mllm

At 1b and 3b the same config fine-tunes InternVL3 on conversations (data.train: tars with `jpg` and
`json`); config.param_rules chooses what trains.

Paper, MME-P / MMB / MMMU of UniLIP: 1B 1499 / 72.6 / 43.3, 3B 1636 / 80.7 / 48.7.
Tiny: shapes:mllm took 13 200 updates, 2.6 hours on two cores of AMD EPYC and Intel Xeon machines:
95.2 % of 960 questions right, 76.8 % in unseen combinations (docs/results/mllm.json).
"""

from unilip_jax.configs import base


def get_config(size: str = "tiny"):
  c = base.get_config(size)
  tiny = size == "tiny"
  c.stage = "tiny_mllm"
  c.task = "understand"
  c.image_size = 112 if tiny else 448
  c.data.example = "understand"
  c.param_rules = ()
  c.loss.perceptual = 0.0
  # A description has five times the tokens of short answers, which are as hard to learn.
  c.loss.reduction = "sample" if tiny else "square"
  c.total_steps = 3000 if tiny else 10_000
  c.optimizer.warmup_steps = 100 if tiny else 300
  c.optimizer.lr = 1e-3 if tiny else 1e-5
  c.optimizer.end_lr = c.optimizer.lr / 10
  c.optimizer.clip_norm = 1.0
  c.optimizer.weight_decay = 0.01
  c.ema_decay = 0.99 if tiny else 0.0
  if tiny:
    c.init_from = ""
  else:
    c.init_from = "weights/internvl3-1b" if size == "1b" else "weights/internvl3-2b"
    c.data.train = (("tar", "data/conversations/*.tar", 1.0),)
  c.eval.sets = (("questions", "questions", "shapes", "test"),
                 ("unseen", "questions", "shapes", "unseen")) if tiny else ()
  c.sample_every_steps = 0  # answers are no images
  return c
