"""WISE (legacy, the paper's) with a trained run of gen3: one image of each of 1000 prompts.

  unilip eval --config=configs/eval_wise.py:1b --workdir=runs/gen3

Makes the images; `unilip evals judge` has them judged (docs/evals.md), or here with the row's options
judge_url and judge_prompts. Paper: 1B .56, 3B .63.
"""

from unilip_jax.configs import eval_geneval, gen3


def get_config(size: str = "1b"):
  c = gen3.get_config(size)
  eval_geneval.set_benchmark(c, "wise", "data/WISE/WISE_legacy/data")
  return c
