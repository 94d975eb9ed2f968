"""Puts what a run of the Shapes world trained among the weights that ship with the package.

  python -m experiments.publish --run=WORKDIR --name=stage1 --over=mllm,dcae [--modules=latent_head,decoder]
  python -m experiments.publish --run=WORKDIR --name=stage2 --update

The run's config, seed, machine, seconds and scores go with them. Without --modules it is every module that
the run trained. `shapes:stage1` then names the weights (shapes/pretrained.py). With --update the modules
replace those that exist already, the others stay, and how those were trained is kept as `before`.
"""

import argparse
from collections.abc import Sequence
import sys

from unilip_jax.shapes import pretrained
from unilip_jax.training import origin
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import sources


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  parser = argparse.ArgumentParser(
      prog="python -m experiments.publish", description=__doc__.split("\n\n")[0])
  parser.add_argument("--run", required=True, help="workdir of the run")
  parser.add_argument("--name", required=True, help="the weights will be shapes:NAME")
  parser.add_argument("--over", default="", help="names that complete them, comma-separated")
  parser.add_argument("--modules", default="", help="what to take, comma-separated")
  parser.add_argument("--update", action="store_true", help="keep the other modules of shapes:NAME")
  parser.add_argument("--note", default="", help="what config and scores do not tell")
  args = parser.parse_args(argv)
  try:
    print(ship(args.run, args.name, _listed(args.over), _listed(args.modules), args.note,
               update=args.update))
  except (FileNotFoundError, ValueError) as error:
    print(f"ship: {error}", file=sys.stderr)
    return 1
  return 0


def ship(
    run: str, name: str, over: Sequence[str], chosen: Sequence[str] = (), note: str = "", *,
    update: bool = False) -> str:
  """Writes blocks:`name`.

  Args:
    run: workdir.
    name: of the weights.
    over: names of shipped weights that complete them.
    chosen: modules; () takes all that the run trained.
    note: what config and scores do not tell.
    update: put the modules into the weights of that name, whose `over` is kept.

  Returns:
    What was written, for people.

  Raises:
    FileNotFoundError: if the run, one of `over` or what is to be updated is not there.
    ValueError: if the run did not train a chosen module.
  """
  for under in over:
    pretrained.read_about(under)
  modules, model = sources.load_weights(run)
  trained = sources.trained_modules(run)
  absent = sorted(set(chosen) - set(trained))
  if absent:
    raise ValueError(f"{run} did not train {', '.join(absent)}; it trained {', '.join(trained)}")
  kept = {m: modules[m] for m in chosen or trained}
  dims = {m: d for m, d in dims_lib.module_dims(model).items() if m in kept}
  extra = {"generate": model["generate"]} if "generate" in model else {}
  about = origin.describe_run(run) | ({"note": note} if note else {})
  if update:
    former = pretrained.read_about(name)
    kept = pretrained.read_modules(name) | kept
    dims, over = former["modules"] | dims, former["over"]
    about |= {"trained": list(chosen or trained), "before": former["origin"]}
  size = pretrained.save(name, kept, dims, over, extra | {"origin": about})
  return f"{pretrained.PREFIX}{name}: {', '.join(kept)}, {size / 1e6:.1f} MB"


def _listed(names: str) -> list[str]:
  return [n.strip() for n in names.split(",") if n.strip()]


if __name__ == "__main__":
  sys.exit(main())
