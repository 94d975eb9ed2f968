"""Command line that scores a checkpoint on all that needs no judge and no download.

  python -m unilip_jax.evals shapes --checkpoint=shapes:gen3 --out=runs/shapes [--items=test:96]

Makes the images of prompts, edits and answers of the Shapes benchmarks (those that the checkpoint can
make), aggregates them, and prints a table. OUT/<benchmark> holds what `evals make` and `evals aggregate`
write, OUT/scores.md the table. A rerun continues. Further options are those of `evals make`; guidance is 2
and every prompt has noise of its own unless they say otherwise.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from unilip_jax.common import atomic_io, command_options, paths
from unilip_jax.scores import answers, base, making, result

_BENCHMARKS = ("shapes", "shapes-edits", "shapes-questions")
# Of `evals make`, as configs have them at tiny size: more guidance distorts counts in Shapes.
_DEFAULTS = ("--guidance=2", "--noise=prompt", "--max_new_tokens=8")


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command; unknown options are those of `evals make`."""
  out = argparse.ArgumentParser(prog="python -m unilip_jax.evals shapes", description=__doc__,
                                formatter_class=command_options.Help)
  add = out.add_argument
  add("--checkpoint", default="shapes:gen3", help="workdir, step folder, imported weights or shapes:NAME")
  add("--out", required=True, help="folder of images, answers and results")
  add("--items", default="test:96", help="split and number of items: test:96, unseen, ...")
  add("--rules", default="official", help=" or ".join(base.RULES))
  return out


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command.

  Raises:
    ValueError: for a checkpoint that can do nothing of this.
  """
  args, others = parser().parse_known_args(argv)
  base.check_rules(args.rules)
  from unilip_jax.models import unilip  # JAX starts here, so that --help is answered at once
  from unilip_jax.weights import sources

  modules = sources.open_weights(args.checkpoint).modules
  able = [name for name in _BENCHMARKS if modules >= set(
      unilip.UNDERSTANDING if base.find(name).kind == "understanding" else unilip.MODULES)]
  if not able:
    raise ValueError(f"{args.checkpoint} holds {', '.join(sorted(modules))}: it neither generates nor "
                     "answers; `unilip eval` scores its reconstructions")
  results = []
  for name in able:
    benchmark, folder = base.reading_once(base.find(name)), paths.path(args.out) / name
    making.main([f"--benchmark={name}", f"--items={args.items}", f"--checkpoint={args.checkpoint}",
                 f"--out={folder}", *_DEFAULTS, *others])
    source = str(folder / answers.PREDICTIONS if benchmark.kind == "understanding" else folder)
    score = benchmark.aggregate(source, rules=args.rules, items=args.items)
    results.append(result.build(benchmark, score, source, items=args.items))
    result.write(str(folder), results[-1])
  table = _table(results)
  atomic_io.write(paths.path(args.out) / "scores.md", table.encode())
  print(table, end="")


def _table(results: Sequence[Mapping[str, Any]]) -> str:
  lines = ["| benchmark | score | 95 % interval | n | missing | malformed | categories |",
           "|---|---|---|---|---|---|---|"]
  for found in results:
    interval = found["interval"] or {"low": float("nan"), "high": float("nan")}
    categories = ", ".join(f"{name} {value:.2f}" for name, value in found["categories"].items())
    lines.append(f"| {found['benchmark']}: {found['published_variant']} | {found['score']:.3f} | "
                 f"{interval['low']:.3f} to {interval['high']:.3f} | {found['n']} | {found['missing']} | "
                 f"{found['malformed']} | {categories} |")
  return "\n".join(lines) + "\n"
