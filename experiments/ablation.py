"""Runs the paper's ablations in miniature on the Shapes world: a resumable job over variants and seeds.

  python -m experiments.ablation --workdir=DIR [--seeds=0,1,2] [--only=frozen,both] [--steps=300,2000]

Two claims of UniLIP (arXiv 2507.23278, the ablation tables of section 4):

  tokenizer  stage 2 from the included stage 1 with distillation weights 0, 0.1 and 1, the vision tower
             at 0.1 × and at 1 × the learning rate, and with a frozen tower: understanding against PSNR
  condition  gen2 whose DiT is conditioned on the queries and the hidden states, on the queries alone or
             on the hidden states alone. Each starts from the same SANA with a new connector, and three
             quarters of its batches are edits: scores of images from text, and of edits

Nothing else differs between the variants of a question. Running the command again continues it and skips
finished runs. Writes ablation.json, ablation.md and ablation.png into the workdir.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import json
import shlex
import statistics
import subprocess
import sys
import time
from typing import Any

from absl import logging
from etils import epath
import matplotlib.figure

from unilip_jax.common import command_options, errors, machine
from unilip_jax.report import plots
from unilip_jax.training import metrics
from unilip_jax.weights import sources

FILE = "ablation.json"
_EVALUATIONS = 6  # points of a curve, besides the start
_TOWER = "^(vision_tower|mlp1)/"
# Edits are where the conditions differ most. Short runs learn them from many edits at low noise.
_EDITS = {"data.edit_share": 0.75, "generate.timestep_shift": 1.5, "optimizer.end_lr": 2e-5,
          "grad_accum_steps": 4}
# {question: {label: key of the evaluation}}.
_MEASURES = {
    "tokenizer": {"PSNR (dB)": "shapes/psnr", "exact scenes": "scenes/exact",
                  "questions": "questions/accuracy"},
    "condition": {"text to image": "t2i/score", "edits": "edits/success_and_preserved",
                  "edits made": "edits/success", "flow loss, text": "pairs/flow_loss",
                  "flow loss, edits": "edit_pairs/flow_loss"},
}
# {variant: scores in the paper}.
_PAPER = {
    "frozen": "PSNR 16.26, MME-P 1492",
    "distill0": "PSNR 18.4, MME-P 709 (two stages, no distillation)",
    "distill1": "PSNR 24.62, MME-P 1499",
    "both": "WISE .56, ImgEdit 3.81",
    "queries": "WISE .52, ImgEdit 3.38",
    "hidden": "WISE .47, ImgEdit 3.62",
}


@dataclasses.dataclass(frozen=True)
class Variant:
  """One row of an ablation: its name, question, stage, and the config fields that differ."""

  name: str
  question: str  # "tokenizer" | "condition"
  stage: str
  fields: dict[str, Any]


def variants() -> list[Variant]:
  """All variants, grouped by question."""
  tokenizer = [_tokenizer("frozen", 0.0, {"train": False})]
  for suffix, rate in (("", 0.1), ("_hot", 1.0)):
    tokenizer += [_tokenizer(f"distill{weight:g}{suffix}", weight, {"lr": rate})
             for weight in (0.0, 0.1, 1.0)]
  return tokenizer + [
      Variant(condition, "condition", "gen2", _EDITS | {
          "generate.condition": condition, "init_from": "shapes:stage2,shapes:sana"})
      for condition in ("both", "queries", "hidden")]


def _tokenizer(name: str, weight: float, tower: dict[str, Any]) -> Variant:
  return Variant(name, "tokenizer", "stage2", {
      "loss.distill": weight, "param_rules": ((_TOWER, tower),), "init_from": "shapes:stage1",
      "gan.weight": 0.0})


def command(variant: Variant, seed: int, steps: int, workdir: str, more: Sequence[str]) -> list[str]:
  """Builds the command that trains a variant.

  Args:
    variant: of `variants()`.
    seed: of the run.
    steps: updates.
    workdir: of the job.
    more: further flags of unilip_jax.main.
  """
  every = max(steps // _EVALUATIONS, 1)
  fields = variant.fields | {
      "seed": seed, "total_steps": steps, "eval.every_steps": every, "eval.at_start": True,
      "checkpoint_every_steps": every, "keep_checkpoints": 1, "sample_every_steps": 0,
      "data.render_dir": f"{workdir}/shapes"}
  if variant.question == "condition":
    fields["data.latents_dir"] = f"{workdir}/latents"
  return [sys.executable, "-m", "unilip_jax.main", f"--config=configs/{variant.stage}.py:tiny",
          f"--workdir={_folder(workdir, variant, seed)}",
          *(f"--config.{key}={value}" for key, value in fields.items()), *more]


def _folder(workdir: str, variant: Variant, seed: int) -> str:
  return f"{workdir}/{variant.name}/seed{seed}"


def run(
    workdir: str, chosen: Sequence[Variant], seeds: Sequence[int], steps: dict[str, int],
    more: Sequence[str], command_line: str
) -> None:
  """Trains what is not finished, all variants with one seed before the next, and writes results after each.

  Args:
    workdir: of the job.
    chosen: variants to train; results include the runs of earlier calls in the workdir.
    seeds: of the runs.
    steps: {question: updates}.
    more: further flags of unilip_jax.main.
    command_line: recorded in the results.

  Raises:
    subprocess.CalledProcessError: if a run fails.
  """
  epath.Path(workdir).mkdir(parents=True, exist_ok=True)
  jobs = [(variant, seed) for seed in seeds for variant in chosen]
  for number, (variant, seed) in enumerate(jobs, 1):
    count = steps[variant.question]
    folder = _folder(workdir, variant, seed)
    if _finished(folder, count):
      logging.info("%d of %d: %s, seed %d is finished", number, len(jobs), variant.name, seed)
    else:
      words = command(variant, seed, count, workdir, more)
      logging.info("%d of %d: %s", number, len(jobs), shlex.join(words))
      subprocess.run(words, check=True)
    write(workdir, seeds, command_line)


def _finished(folder: str, count: int) -> bool:
  """Whether a run was evaluated and saved at its last step."""
  try:
    return sources.newest_step(folder) == count and (
        any(row["step"] == count for row in _evaluated(folder)))
  except FileNotFoundError:
    return False


def _evaluated(folder: str) -> list[dict[str, float]]:
  """Rows of metrics.jsonl that hold an evaluation, by step."""
  if not (epath.Path(folder) / metrics.FILE).exists():
    return []
  return [{"step": row["step"]} | scores
          for row in metrics.read(folder) if (scores := metrics.evaluation(row))]


def write(workdir: str, seeds: Sequence[int], command_line: str) -> None:
  """Writes the measurements of the runs so far to ablation.json, .md and .png."""
  results = []
  for variant in variants():
    curves = {seed: rows for seed in seeds if (rows := _evaluated(_folder(workdir, variant, seed)))}
    if curves:
      results.append({
          "variant": variant.name, "question": variant.question, "paper": _PAPER.get(variant.name, ""),
          "fields": {k: str(v) for k, v in variant.fields.items()},
          "curves": {str(seed): [_measured(variant.question, row) for row in rows]
                     for seed, rows in curves.items()}})
  folder = epath.Path(workdir)
  (folder / FILE).write_text(json.dumps({
      "command": command_line, "machine": machine.describe(),
      "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "results": results}, indent=1))
  (folder / "ablation.md").write_text(table(results))
  with (folder / "ablation.png").open("wb") as f:
    plot(results).savefig(f, dpi=130)


def _measured(question: str, row: dict[str, float]) -> dict[str, float]:
  return {"step": row["step"]} | {
      label: row[key] for label, key in _MEASURES[question].items() if key in row}


def table(results: Sequence[dict[str, Any]]) -> str:
  """Formats the last value of every measure as Markdown: mean ± deviation over seeds, next to the paper."""
  lines = []
  for question, measures in _MEASURES.items():
    rows = [r for r in results if r["question"] == question]
    if not rows:
      continue
    lines += [f"### {question}", "", f"| variant | updates | {' | '.join(measures)} | the paper |",
              "|---|---|" + "---|" * (len(measures) + 1)]
    for row in rows:
      last = [curve[-1] for curve in row["curves"].values()]
      cells = [_spread([point[m] for point in last if m in point]) for m in measures]
      steps = "/".join(str(point["step"]) for point in last)
      lines.append(f"| {row['variant']} | {steps} | {' | '.join(cells)} | {row['paper']} |")
    lines.append("")
  return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
  if not values:
    return "–"
  deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
  return f"{statistics.mean(values):.3f}{deviation}"


def plot(results: Sequence[dict[str, Any]]) -> matplotlib.figure.Figure:
  """Plots understanding against PSNR, and generation over updates: a line per variant and seed."""
  panels = (("tokenizer", "PSNR (dB)", "questions"), ("condition", "step", "flow loss, text"),
            ("condition", "step", "flow loss, edits"), ("condition", "step", "edits"))
  measured = {r["question"] for r in results}
  panels = [panel for panel in panels if panel[0] in measured]
  figure = matplotlib.figure.Figure(figsize=(4.3 * len(panels), 4.2), layout="constrained")
  for axes, (question, x, y) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
    rows = [r for r in results if r["question"] == question]
    for i, row in enumerate(rows):
      for j, curve in enumerate(row["curves"].values()):
        points = [(p[x], p[y]) for p in curve if x in p and y in p]
        axes.plot(*zip(*points), marker="o", markersize=3, color=plots.COLOURS[i % len(plots.COLOURS)],
                  label=None if j else row["variant"])
    axes.set_xlabel("update" if x == "step" else x)
    axes.set_ylabel(y)
    if y.startswith("flow loss"):
      axes.set_yscale("log")  # most of the decrease is in the first updates
    axes.grid(color="#e3e5e8", linewidth=0.6)
    if axes.get_legend_handles_labels()[0]:
      axes.legend(fontsize=8, frameon=False)
  return figure


def _command_line(argv: Sequence[str]) -> str:
  """The command for the results, without folders of this machine."""
  places = ("--workdir", "--config.data.render_dir", "--config.data.latents_dir=/")
  flags = [flag for flag in argv if not flag.startswith(places)]
  return shlex.join(["python", "-m", "experiments.ablation", "--workdir=DIR", *flags])


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line; unknown flags go to unilip_jax.main."""
  parser = argparse.ArgumentParser(
      prog="python -m experiments.ablation", description=__doc__.split("\n\n")[0])
  parser.add_argument("--workdir", required=True, type=command_options.path,
                      help="where the runs and results are written")
  parser.add_argument("--seeds", default="0,1,2", help="comma-separated (default: 0,1,2)")
  parser.add_argument("--steps", default="300,2000", metavar="TOKENIZER,CONDITION",
                      help="updates of a run of each question (default: 300,2000)")
  names = [v.name for v in variants()]
  parser.add_argument("--only", default="", help=f"of {', '.join(names)}; default all")
  args, more = parser.parse_known_args(argv)
  only = [n.strip() for n in args.only.split(",") if n.strip()] or names
  unknown = sorted(set(only) - set(names))
  if unknown:
    parser.error(f"--only: no variant {', '.join(unknown)}; choose of {', '.join(names)}")
  wrong = [flag for flag in more if not flag.startswith("--config.")]
  if wrong:
    parser.error(f"{' '.join(wrong)} is neither an option nor a --config.FIELD=VALUE of the runs")
  try:
    seeds = [int(s) for s in args.seeds.split(",")]
    steps = dict(zip(_MEASURES, map(int, args.steps.split(",")), strict=True))
  except ValueError as error:
    parser.error(f"--seeds and --steps take integers, --steps two of them: {error}")
  logging.set_verbosity(logging.INFO)
  try:
    run(args.workdir, [v for v in variants() if v.name in only], seeds, steps, more,
        _command_line(sys.argv[1:] if argv is None else argv))
  except subprocess.CalledProcessError as error:
    sys.exit(f"error: a run failed with status {error.returncode}, see above; run again to continue")
  print(f"{args.workdir}/{FILE}")


if __name__ == "__main__":
  errors.run_command(main)
