"""GenEval with a trained run of gen3: makes four images of each of 553 prompts by UniLIP's protocol.

  unilip eval --config=configs/eval_geneval.py:1b --workdir=runs/gen3

The official detector scores them (docs/evals.md); its results.jsonl belongs into the folder that the log
names, and the same command then adds the score. Paper: 1B .88, 3B .90.
"""

from unilip_jax.configs import gen3


def get_config(size: str = "1b"):
  c = gen3.get_config(size)
  set_benchmark(c, "geneval", "data/geneval/evaluation_metadata.jsonl")
  return c


def set_benchmark(c, name: str, path: str, **options) -> None:
  """Makes a benchmark the only evaluation set, with UniLIP's seed."""
  c.eval.sets = ((name, "benchmark", name, path, options),)
  c.eval.seed = 42  # set again before each prompt in the official code
