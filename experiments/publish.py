"""Copies weights that a run trained on Shapes into the package, as pretrained weights that are included.

  python -m experiments.publish --run=WORKDIR --name=stage1 --over=mllm,dcae [--modules=latent_head,decoder]
  python -m experiments.publish --run=WORKDIR --name=stage2 --update

"shapes:stage1" then opens the weights (shapes/pretrained.py). The run's config, seed, machine, seconds and
scores are stored with them. Without --modules it copies every module that the run trained. With --update
these modules replace those of existing weights, whose other modules and origin (as `before`) stay.
"""

import argparse
from collections.abc import Sequence
import itertools
import json
import os
import platform
from typing import Any

from etils import epath
import jax

from unilip_jax.common import errors
from unilip_jax.shapes import pretrained
from unilip_jax.training import metrics
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import sources

# Entries of a run's config.json that do not influence its weights.
_IRRELEVANT = ("compilation_cache", "profile_steps", "keep_checkpoints", "keep_every_steps", "resume")
_PLACES = ("render_dir", "index_dir", "latents_dir")  # of `data`


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line; errors as of `publish`."""
  parser = argparse.ArgumentParser(
      prog="python -m experiments.publish", description=__doc__.split("\n\n")[0])
  parser.add_argument("--run", required=True, help="workdir of the run")
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
  about = origin(run) | ({"note": note} if note else {})
  if update:
    former = pretrained.read_about(name)
    modules = pretrained.read_modules(name) | modules
    dims, over = former["modules"] | dims, former["over"]
    about |= {"trained": names, "before": former["origin"]}
  size = pretrained.save(name, modules, dims, over, extra | {"origin": about})
  return f"{pretrained.PREFIX}{name}: {', '.join(modules)}, {size / 1e6:.1f} MB"


def origin(run: str) -> dict[str, Any]:
  """Describes how a run's weights were trained: config, machine, seconds, last scores, scores by update."""
  folder = epath.Path(run)
  config = json.loads((folder / "config.json").read_text())
  step = sources.newest_step(run)
  config["data"] = {k: v for k, v in config["data"].items() if k not in _PLACES}
  rows = [row for row in metrics.read(run) if row["step"] <= step]
  scores: dict[str, float] = {}
  curve: dict[int, dict[str, float]] = {}
  for row in rows:
    new = {k: round(v, 4) for k, v in metrics.evaluation(row).items()}
    scores |= new
    if new:  # without the groups of a score
      curve.setdefault(row["step"], {}).update({k: v for k, v in new.items() if k.count("/") == 1})
  return {
      "command": f"python -m unilip_jax.main --config=configs/{config['stage']}.py:{config['size']}",
      "started_from": config.pop("started_from"),
      "seed": config["seed"],
      "steps": step,
      "seconds": round(_seconds(rows)),
      "machine": machine(),
      "scores": scores,
      "curve": [{"step": at} | values for at, values in curve.items()],
      "config": {k: v for k, v in config.items() if k not in _IRRELEVANT}}


def machine() -> str:
  """Names cores, processor, JAX's platform and version."""
  return (f"{os.cpu_count()} cores {_processor()}, {jax.devices()[0].platform}, "
          f"jax {jax.__version__}")


def _seconds(rows: Sequence[dict[str, Any]]) -> float:
  """Time between the first and the last row, without the pauses between interrupted parts."""
  gaps = sorted(b["time"] - a["time"] for a, b in itertools.pairwise(rows))
  usual = gaps[len(gaps) // 2] if gaps else 0.0
  return sum(gap for gap in gaps if gap < 20 * usual)


def _processor() -> str:
  """The processor's name on Linux, otherwise its architecture."""
  info = epath.Path("/proc/cpuinfo")
  if info.exists():
    for line in info.read_text().splitlines():
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()


def _split(names: str) -> list[str]:
  return [n.strip() for n in names.split(",") if n.strip()]


if __name__ == "__main__":
  errors.run_command(main)
