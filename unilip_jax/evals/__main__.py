"""Command line of benchmarks: makes images and answers, has them judged, and computes scores.

  python -m unilip_jax.evals list
  python -m unilip_jax.evals make --benchmark=NAME --items=PATH --checkpoint=DIR --out=DIR
  python -m unilip_jax.evals judge --benchmark=NAME --items=PATH --images=DIR --prompts=FILE --out=DIR
  python -m unilip_jax.evals detect --items=PATH --images=DIR --detector=DIR --clip=DIR --out=DIR
  python -m unilip_jax.evals predictions --benchmark=NAME --items=PATH --answers=DIR --out=table.xlsx
  python -m unilip_jax.evals aggregate --benchmark=NAME --source=PATH [--rules=official|strict] [--json]
  python -m unilip_jax.evals fid --images=DIR --reference=DIR|FILE.npz --weights=DIR [--json]
  python -m unilip_jax.evals pairs --images=DIR --reference=DIR [--lpips=DIR] [--json]
  python -m unilip_jax.evals compare A B
  python -m unilip_jax.evals show --benchmark=NAME --items=PATH --images=DIR --judged=DIR --out=page.html
  python -m unilip_jax.evals shapes --checkpoint=shapes:gen3 --out=DIR: all that needs no judge, at once

Each step reads files and writes files, so that each can start from what others made (docs/evals.md).
"""

import importlib
import sys

from unilip_jax.common import errors

# {verb: module whose `main` takes the arguments after the verb}
VERBS = {
    "list": "unilip_jax.scores.listing",
    "make": "unilip_jax.scores.making",
    "judge": "unilip_jax.scores.judging",
    "detect": "unilip_jax.convert.geneval_detector",
    "predictions": "unilip_jax.scores.predicting",
    "aggregate": "unilip_jax.scores.aggregating",
    "fid": "unilip_jax.evals.fid",
    "pairs": "unilip_jax.evals.pairs",
    "compare": "unilip_jax.scores.comparing",
    "show": "unilip_jax.scores.showing",
    "shapes": "unilip_jax.shapes.scoring",
}


def main() -> None:
  """Runs the verb that `sys.argv` names.

  Raises:
    ValueError: for an unknown verb.
  """
  verb, *arguments = sys.argv[1:] or ["--help"]
  if verb in ("--help", "-h"):
    print(__doc__.strip())
    return
  if verb not in VERBS:
    raise ValueError(f"unknown command {verb!r}; choose {', '.join(VERBS)}")
  importlib.import_module(VERBS[verb]).main(arguments)


if __name__ == "__main__":
  errors.run_command(main)
