"""Command line of benchmarks: makes images and answers, has them judged, and computes scores.

  python -m unilip_jax.evals list
  python -m unilip_jax.evals aggregate --benchmark=NAME --source=PATH [--rules=official|strict] [--json]

Each step reads files and writes files, so that each can start from what others made (docs/evals.md).
"""

import importlib
import sys

from unilip_jax.common import errors

# {verb: module whose `main` takes the arguments after the verb}
VERBS = {
    "list": "unilip_jax.scores.listing",
    "aggregate": "unilip_jax.scores.aggregating",
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
