"""`evals list`: the benchmarks, what judges them and what is published.

One line a benchmark: its name, kind and judge, and the revision of the official code whose rules these are.
Below it the published scores, each with its source.
"""

import argparse
from collections.abc import Sequence

from unilip_jax.common import command_options
from unilip_jax.scores import base


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command."""
  return argparse.ArgumentParser(prog="unilip evals list", description=__doc__,
                                 formatter_class=command_options.Help)


def main(arguments: Sequence[str]) -> None:
  """Prints a table of all benchmarks."""
  parser().parse_args(arguments)
  for name in base.names():
    benchmark = base.find(name)
    judge = benchmark.judge.model if benchmark.judge else (
        "none" if benchmark.scores_images else "none, or a detector")
    print(f"{name:<20} {benchmark.kind:<14} judge: {judge:<24} rules of: {benchmark.revision}")
    for published in benchmark.published:
      note = f"; {published.note}" if published.note else ""
      print(f"{'':<20} {published.system:<16} {published.score:<8g} {published.source}{note}")
