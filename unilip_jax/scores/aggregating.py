"""`evals aggregate`: computes a score from the files of an official scorer, made by anyone."""

import argparse
from collections.abc import Sequence
import dataclasses
import json
import textwrap

from unilip_jax.common import command_options, errors, paths
from unilip_jax.scores import base, result

_WIDTH = 200  # characters of a remark; --json prints all of it
_DESCRIPTION = """Computes a score from the files of an official scorer.

--rules=official equals the official scorer, its bugs included; --rules=strict lets missing and malformed
records count 0. Both counts are always shown. docs/evals.md says which files each benchmark takes.
"""


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command."""
  out = argparse.ArgumentParser(prog="unilip evals aggregate", description=_DESCRIPTION,
                                formatter_class=command_options.Help)
  add = out.add_argument
  add("--benchmark", required=True, help=", ".join(base.names()))
  add("--source", required=True, help="file or folder of the scorer's own files")
  add("--rules", default="official", help=" or ".join(base.RULES))
  add("--items", help="the benchmark's own files, to count exactly what is missing; default: what the "
      "source alone tells")
  add("--json", action="store_true", help="print one JSON object")
  add("--out", help="folder for results.json and results.md: all the score depends on; default: none")
  add("--images", help="with --out: the folder of `make`; default: that of the judge's record")
  add("--judged_by", help="with --out: the judge (model id, date) of others' files; default: not stated")
  return out


def main(arguments: Sequence[str]) -> None:
  """Runs the command; prints the score as text or as one JSON object."""
  options = parser().parse_args(arguments)
  benchmark = base.reading_once(base.find(options.benchmark))
  if options.out:
    paths.output_folder(options.out, "--out")
  score = benchmark.aggregate(options.source, rules=options.rules, items=options.items)
  if not score.n:
    score = dataclasses.replace(score, messages=(*score.messages, "nothing was scored"))
  if options.out:
    result.write(options.out, result.build(
        benchmark, score, options.source, items=options.items, images=options.images,
        judged_by=options.judged_by))
  if options.json:
    print(json.dumps({**score.as_json(), **benchmark.as_json()}, ensure_ascii=False))
  else:
    print(as_text(benchmark, score))


def as_text(benchmark: base.Benchmark, score: base.Score) -> str:
  """Formats a score, its categories, counts, variants, remarks and published numbers."""
  lines = [f"{benchmark.name} ({score.rules} rules): {_number(score.score)}",
           f"  n {score.n}, missing {score.missing}, malformed {score.malformed}"]
  lines += [f"  {name:<28} {_number(value)}" for name, value in score.categories.items()]
  if len(score.variants) > 1:
    lines.append("overall by each rule in use (* the one of published numbers):")
    lines += [f"  {name:<28} {_number(value)}{' *' if name == score.published_variant else ''}"
              for name, value in score.variants.items()]
  if benchmark.published:
    lines.append("published:")
    lines += [f"  {p.system:<28} {p.score:g}  ({p.source}{'; ' if p.note else ''}{p.note})"
              for p in benchmark.published]
  if score.messages:
    lines.append("remarks:")
    lines.append(errors.listed(
        f"  {textwrap.shorten(message, _WIDTH, placeholder=' …')}" for message in score.messages))
  return "\n".join(lines)


def _number(value: float | None) -> str:
  return "none" if value is None or value != value else f"{value:.4f}"
