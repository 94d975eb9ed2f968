"""`evals list`: the benchmarks, what judges them and what is published."""

import argparse
from collections.abc import Sequence

from unilip_jax.scores import base


def main(arguments: Sequence[str]) -> None:
  """Prints a table of all benchmarks."""
  argparse.ArgumentParser(
      prog="python -m unilip_jax.evals list", description=__doc__).parse_args(arguments)
  for name in base.names():
    benchmark = base.find(name)
    judge = benchmark.judge.model if benchmark.judge else "none, or a detector"
    print(f"{name:<20} {benchmark.kind:<14} judge: {judge:<24} rules of: {benchmark.revision}")
    for published in benchmark.published:
      note = f"; {published.note}" if published.note else ""
      print(f"{'':<20} {published.system:<16} {published.score:<8g} {published.source}{note}")
