"""Command line that writes answers as the prediction table that VLMEvalKit evaluates.

  python -m unilip_jax.evals predictions --benchmark=mmbench --items=MMBench_DEV_EN.tsv
      --answers=runs/mmbench --out=unilip_MMBench_DEV_EN.xlsx

The answers are a folder that `make` wrote, or a JSON file {index: answer} of any model. The table holds the
questions' columns without images, and `prediction`, as VLMEvalKit's inference writes it: .xlsx or .tsv by
the file's name. Pass it to VLMEvalKit's `dataset.evaluate`, or to `evals aggregate`.
"""

import argparse
from collections.abc import Sequence

from unilip_jax.common import command_options
from unilip_jax.scores import answers as answers_lib
from unilip_jax.scores import base, records, vlmeval


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command."""
  out = argparse.ArgumentParser(prog="unilip evals predictions", description=__doc__,
                                formatter_class=command_options.Help)
  out.add_argument("--benchmark", required=True, help="of understanding, e.g. mmbench")
  out.add_argument("--items", required=True, help="VLMEvalKit's table of questions")
  out.add_argument("--answers", required=True, help="folder of `make`, or a JSON file {index: answer}")
  out.add_argument("--out", required=True, help="<model>_<dataset>.xlsx or .tsv; for MME also a folder, "
                   "for the official <task>.txt")
  return out


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command.

  Raises:
    ValueError: for a benchmark that VLMEvalKit's tables do not hold, or answers to none of its questions.
  """
  args = parser().parse_args(argv)
  benchmark = base.find(args.benchmark)
  if not isinstance(benchmark, vlmeval.TableBenchmark):
    raise ValueError(f"{benchmark.name} has no table of VLMEvalKit")
  items, answers = benchmark.read_items(args.items), answers_lib.read(args.answers)
  known = {item.id for item in items}
  if not known & answers.keys():
    raise ValueError(f"{args.answers} answers none of the questions of {args.items}")
  benchmark.write_answers(args.out, items, answers)
  print(f"{len(known & answers.keys())} predictions in {args.out}")
  for what, names in (("questions without an answer, left out", [i for i in known if i not in answers]),
                      ("answers to other questions, left out", [i for i in answers if i not in known])):
    if names:
      print(f"{len(names)} {what}: {records.enumerate_names(sorted(names))}")
