"""How the weights of a run were trained: config, machine, seconds, scores; for model cards."""

from collections.abc import Sequence
import itertools
import shlex
from typing import Any

from etils import epath

from unilip_jax.common import json_file, machine
from unilip_jax.training import metrics
from unilip_jax.weights import sources

# Entries of a run's config.json without influence on its weights.
_IRRELEVANT = ("compilation_cache", "log", "profile_steps", "keep_checkpoints", "keep_every_steps",
               "resume", "tokenizer_sha256")
_FOLDERS = ("render_dir", "blocks_dir", "index_dir", "latents_dir")  # of `data`; the second is an old name
_OWN = ("own", "own_prompt", "own_caption", "own_layout")  # of `data`, part of the command


def describe_run(workdir: epath.PathLike) -> dict[str, Any]:
  """Returns a run's command, config, machine, seconds, last scores and scores by step, JSON-ready.

  Raises:
    FileNotFoundError: if `workdir` has no config.json, checkpoint or metrics.
  """
  config = json_file.read(
      epath.Path(workdir) / "config.json", kinds={"data": dict},
      remedy="start the run's training command again: it writes the file")
  step = sources.newest_step(str(workdir))
  config["data"] = {k: v for k, v in config["data"].items() if k not in _FOLDERS}
  rows = [row for row in metrics.read(workdir) if row["step"] <= step]
  scores: dict[str, float] = {}
  curve: dict[int, dict[str, float]] = {}
  for row in rows:
    new = {k: round(v, 4) for k, v in metrics.evaluation(row).items()}
    scores |= new
    if new:  # of every evaluation, the metrics that are no part of another one
      curve.setdefault(row["step"], {}).update({k: v for k, v in new.items() if k.count("/") == 1})
  # Of own data the name alone: nobody else has the path.
  own = [f"--config.data.{key}={value.rstrip('/').rpartition('/')[2] if key == 'own' else value}"
         for key in _OWN if (value := config["data"].get(key))]
  return {
      "command": shlex.join(["python", "-m", "unilip_jax.main",
                             f"--config=configs/{config['stage']}.py:{config['size']}", *own]),
      "started_from": config.pop("started_from"),
      "seed": config["seed"],
      "steps": step,
      "seconds": round(_seconds(rows)),
      "machine": machine.describe(),
      "scores": scores,
      "curve": [{"step": at} | values for at, values in curve.items()],
      "config": {k: v for k, v in config.items() if k not in _IRRELEVANT}}


def _seconds(rows: Sequence[dict[str, Any]]) -> float:
  """Time between the first and the last row, without the pauses between interrupted parts."""
  gaps = sorted(b["time"] - a["time"] for a, b in itertools.pairwise(rows))
  usual = gaps[len(gaps) // 2] if gaps else 0.0
  return sum(gap for gap in gaps if gap < 20 * usual)
