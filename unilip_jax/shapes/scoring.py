"""Command line that scores a checkpoint on all that needs no judge and no download.

  python -m unilip_jax.evals shapes --checkpoint=shapes:gen3 --out=runs/shapes [--items=test:96]

Makes the images of prompts, edits, answers and reconstructions of the Shapes benchmarks (those that the
checkpoint can make), aggregates them, and prints a table. OUT/<benchmark> holds what `evals make` and
`evals aggregate` write, OUT/scores.md the table. A rerun continues. Further options are those of
`evals make`; guidance is 2 (none of a few-step checkpoint) and every prompt has noise of its own unless
they say otherwise.
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from etils import epath

from unilip_jax.common import atomic_io, command_options, paths
from unilip_jax.evals import fid
from unilip_jax.scores import answers, base, making, result

_BENCHMARKS = ("shapes", "shapes-edits", "shapes-questions", "shapes-reconstruction")
_DEFAULTS = ("--noise=prompt", "--max_new_tokens=8")  # of `evals make`
_GUIDANCE = "--guidance=2"  # as configs have it at tiny size: more of it distorts counts in Shapes


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command; unknown options are those of `evals make`."""
  out = argparse.ArgumentParser(prog="unilip evals shapes", description=__doc__,
                                formatter_class=command_options.Help)
  add = out.add_argument
  add("--checkpoint", default="shapes:gen3", help="workdir, step folder, imported weights or shapes:NAME")
  add("--out", required=True, help="folder of images, answers and results")
  add("--items", default="test:96", help="split and number of items: test:96, unseen, ...")
  add("--rules", default="official", help=" or ".join(base.RULES))
  add("--inception", default="",
      help="imported Inception-v3 of FID (docs/evals.md): also rFID of reconstructions; "
           "default: none")
  return out


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command.

  Raises:
    ValueError: for a checkpoint that can do nothing of this.
  """
  args, others = parser().parse_known_args(argv)
  base.check_rules(args.rules)
  paths.output_folder(args.out, "--out")  # before weights are read
  from unilip_jax.models import (  # JAX starts here, so that --help is answered at once
    tokenizer,
    unilip,
  )
  from unilip_jax.weights import sources

  weights = sources.open_weights(args.checkpoint)
  modules, few_step = weights.modules, weights.model.get("generate", {}).get("few_step")
  defaults = _DEFAULTS if few_step else (*_DEFAULTS, _GUIDANCE)
  needed = {"understanding": unilip.UNDERSTANDING, "reconstruction": tokenizer.MODULES}
  able = [name for name in _BENCHMARKS
          if modules >= set(needed.get(base.find(name).kind, unilip.MODULES))]
  if not able:
    raise ValueError(f"{args.checkpoint} holds {', '.join(sorted(modules))}: it neither generates, answers "
                     "nor reconstructs; `unilip eval` scores the reconstructions of a DC-AE alone")
  results = []
  for name in able:
    benchmark, folder = base.reading_once(base.find(name)), paths.path(args.out) / name
    making.main([f"--benchmark={name}", f"--items={args.items}", f"--checkpoint={args.checkpoint}",
                 f"--out={folder}", *defaults, *others])
    source = str(folder / answers.PREDICTIONS if benchmark.kind == "understanding" else folder)
    score = benchmark.aggregate(source, rules=args.rules, items=args.items)
    if args.inception and benchmark.kind == "reconstruction":
      distance = _rfid(benchmark, folder, args)
      score = dataclasses.replace(score, details={**score.details, **distance})
    results.append(result.build(benchmark, score, source, items=args.items))
    result.write(str(folder), results[-1])
  table = _table(results)
  atomic_io.write(paths.path(args.out) / "scores.md", table.encode())
  print(table, end="")


def _rfid(
    benchmark: base.Benchmark, folder: epath.Path, args: argparse.Namespace) -> dict[str, float | str]:
  """Computes rFID of the reconstructions in a folder; writes the originals next to it."""
  originals = paths.path(args.out) / "shapes-originals"
  originals.mkdir(parents=True, exist_ok=True)
  items = benchmark.read_items(args.items)
  for item in items:
    atomic_io.write(originals / benchmark.output_path(item, 0), base.image_bytes(item.images[0]))
  found = fid.compare([f"--images={folder}", f"--reference={originals}", f"--weights={args.inception}",
                       "--cache="])
  return {"rfid": found["fid"], "rfid_protocol": found["protocol"], "inception_weights": found["weights"]}


def _table(results: Sequence[Mapping[str, Any]]) -> str:
  lines = ["| benchmark | score | 95 % interval | n | missing | malformed | categories |",
           "|---|---|---|---|---|---|---|"]
  for found in results:
    interval = found["interval"] or {"low": float("nan"), "high": float("nan")}
    details = {name: value for name, value in found["details"].items() if isinstance(value, float)}
    categories = ", ".join(
        f"{name} {value:.2f}" for name, value in {**found["categories"], **details}.items())
    lines.append(f"| {found['benchmark']}: {found['published_variant']} | {found['score']:.3f} | "
                 f"{interval['low']:.3f} to {interval['high']:.3f} | {found['n']} | {found['missing']} | "
                 f"{found['malformed']} | {categories} |")
  return "\n".join(lines) + "\n"
