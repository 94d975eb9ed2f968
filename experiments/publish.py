"""Copies weights that a run trained on Shapes into the package, as pretrained weights that are included.

  python -m experiments.publish --run=WORKDIR --name=stage1 --over=mllm,dcae [--modules=latent_head,decoder]
  python -m experiments.publish --run=WORKDIR --name=stage2 --update

"shapes:stage1" then opens the weights (shapes/pretrained.py). The run's config, seed, machine, seconds and
scores are stored with them. Without --modules it copies every module that the run trained. With --update
these modules replace those of existing weights, whose other modules and origin (as `before`) stay.
"""

import argparse
from collections.abc import Sequence

from unilip_jax.common import command_options, errors
from unilip_jax.shapes import pretrained
from unilip_jax.training import origin
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import sources


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line; errors as of `publish`."""
  parser = argparse.ArgumentParser(
      prog="python -m experiments.publish", description=__doc__.split("\n\n")[0])
  parser.add_argument("--run", required=True, type=command_options.path, help="workdir of the run")
  parser.add_argument("--name", required=True, help="the weights will be shapes:NAME")
  parser.add_argument("--over", default="", help="names of weights that complete them, comma-separated")
  parser.add_argument("--modules", default="", help="to copy, comma-separated (default: all trained)")
  parser.add_argument("--update", action="store_true", help="keep the other modules of shapes:NAME")
  parser.add_argument("--note", default="", help="remark to store with them")
  args = parser.parse_args(argv)
  print(publish(args.run, args.name, _split(args.over), _split(args.modules), args.note,
                update=args.update))


def publish(
    run: str, name: str, over: Sequence[str], chosen: Sequence[str] = (), note: str = "", *,
    update: bool = False) -> str:
  """Writes shapes:`name`.

  Args:
    run: workdir.
    name: of the weights.
    over: names of included weights that complete them.
    chosen: modules; () takes all that the run trained.
    note: remark to store with them.
    update: whether the modules go into the existing weights of that name, whose `over` stays.

  Returns:
    A line that summarises what was written.

  Raises:
    FileNotFoundError: if the run, one of `over` or what is to be updated does not exist.
    ValueError: if the run did not train a chosen module.
  """
  for under in over:
    pretrained.read_about(under)
  stored, trained = sources.open_weights(run), sources.trained_modules(run)
  absent = sorted(set(chosen) - set(trained))
  if absent:
    raise ValueError(f"{run} did not train {', '.join(absent)}; it trained {', '.join(trained)}")
  names = list(chosen or trained)
  modules = stored.load(names)
  dims = {m: d for m, d in dims_lib.module_dims(stored.model).items() if m in modules}
  extra = {"generate": stored.model["generate"]} if "generate" in stored.model else {}
  about = origin.describe_run(run) | ({"note": note} if note else {})
  if update:
    former = pretrained.read_about(name)
    modules = pretrained.read_modules(name) | modules
    dims, over = former["modules"] | dims, former["over"]
    about |= {"trained": names, "before": former["origin"]}
  size = pretrained.save(name, modules, dims, over, extra | {"origin": about})
  return f"{pretrained.PREFIX}{name}: {', '.join(modules)}, {size / 1e6:.1f} MB"


def _split(names: str) -> list[str]:
  return [n.strip() for n in names.split(",") if n.strip()]


if __name__ == "__main__":
  errors.run_command(main)
