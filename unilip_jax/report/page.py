"""Writes the report of a run, or a comparison of several, as one HTML page that needs no network.

The command line is __main__.py. This file chooses what is shown. runs.py reads workdirs, facts.py has what
a run is and where its time went, metric_labels.py names metrics, plots.py draws curves, and page.html.jinja
has layout and style.
"""

from collections.abc import Sequence
import dataclasses
import math
import os
import pathlib
import time
from typing import Any

from etils import epath
import jinja2

from unilip_jax.common import errors, paths, registry
from unilip_jax.report import facts, metric_labels, plots
from unilip_jax.report import runs as runs_lib
from unilip_jax.weights import sources

FILE = "report.html"
_TEMPLATE = pathlib.Path(__file__).with_name("page.html.jinja")
_SECTIONS = ("Evaluation", "Loss", "Optimisation", "Speed")
_RATES = {
    "rate/images_per_second": "images per second",
    "rate/step_seconds": "seconds per update",
    "rate/mfu": "model FLOPs utilisation",
    "rate/goodput": "goodput: share of training steps in the wall time",
}
_PERCENT = ("rate/mfu", "rate/goodput")
_HIDDEN = ("step", "time", "train/finite")


def write(workdir: str, compare: Sequence[str] = ()) -> epath.Path:
  """Writes the report of a run.

  Args:
    workdir: of the run.
    compare: workdirs of runs to show next to it.

  Returns:
    The path of report.html.

  Raises:
    FileNotFoundError: if one of the folders holds no run.
  """
  folders = [os.fspath(paths.existing_folder(workdir, "--workdir")),
             *(os.fspath(paths.existing_folder(f, "--compare")) for f in compare)]
  names = [epath.Path(f).name or str(f) for f in folders]
  if len(set(names)) < len(names):
    names = [str(f) for f in folders]
  runs = [runs_lib.read(folder, name, "") for folder, name in zip(folders, names)]
  path = epath.Path(folders[0]) / FILE
  path.write_text(render(runs))
  return path


def render(runs: Sequence[runs_lib.Run]) -> str:
  """Renders the page; the first run is its subject. Runs are shown in the order of the pipeline."""
  subject = runs[0].name
  runs = [dataclasses.replace(run, colour=plots.COLOURS[i % len(plots.COLOURS)])
          for i, run in enumerate(sorted(runs, key=runs_lib.Run.place))]
  main = next(run for run in runs if run.name == subject)
  environment = jinja2.Environment(
      autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
  return environment.from_string(_TEMPLATE.read_text()).render(
      runs=runs,
      main=main,
      facts=facts.table(runs),
      figures=_key_figures(main),
      showcase=main.showcase,
      times=facts.time_table(runs),
      progress=_progress_table(runs),
      included=_included_table(runs),
      evaluation=_evaluation_table(runs),
      sections=_sections(runs),
      grids=[[(step, plots.data_url(png, "image/png")) for step, png in run.grids] for run in runs],
      config=_config_table(runs),
      written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))


def _key_figures(run: runs_lib.Run) -> list[tuple[str, str, str]]:
  """(label, value, "" or what it fell from) of the tiles."""
  figures, labels = [], metric_labels.table()
  for key, value in sorted(run.scores().items(), key=_metric_order):
    _, metric, group = _split(key)
    if metric in labels and labels[metric].is_key and not group:
      _, values = run.curve(f"eval/{key}")
      fell = len(values) > 1 and _is_worse(metric, values[0], value)
      figures.append((_label(key), _number(value), _number(values[0]) if fell else ""))
  for key, label in (("train/loss", "training loss"), *list(_RATES.items())):
    value = run.last(key)
    if value is not None:
      figures.append((label, f"{value:.1%}" if key in _PERCENT else _number(value), ""))
  return figures


def _is_worse(metric: str, before: float, after: float) -> bool:
  """Whether a score fell, in the direction of its metric; False if neither direction is better."""
  higher = _metric(metric).higher_is_better
  return higher is not None and (after < before if higher else after > before)


def _split(key: str) -> tuple[str, str, str]:
  """(set, metric, group) of "<set>/<metric>" or "<set>/<metric>/<group>"."""
  name, metric, *group = key.split("/")
  return name, metric, group[0] if group else ""


def _label(key: str) -> str:
  """Returns "PSNR (dB), shapes" for "shapes/psnr"."""
  name, metric, _ = _split(key)
  return f"{_metric(metric).label}, {name}"


def _metric(name: str) -> metric_labels.Metric:
  return metric_labels.table().get(name, metric_labels.Metric(name, None))


def _is_progress(key: str) -> bool:
  """Whether "<set>/<metric>" is one of the few that summarise training."""
  _, metric, group = _split(key)
  return not group and (_metric(metric).is_key or _metric(metric).in_progress)


def _metric_order(item: tuple[str, Any]) -> tuple[str, int, str, str]:
  if item[0].count("/") not in (1, 2):
    return "", 0, item[0], ""
  name, metric, group = _split(item[0])
  known = list(metric_labels.table())
  return name, known.index(metric) if metric in known else len(known), metric, group


def _progress_table(runs: Sequence[runs_lib.Run]) -> list[dict[str, str]]:
  """Rows {run, metric, start, end, change, mark, updates} of the runs that evaluated their start."""
  table = []
  for run in runs:
    keys = sorted({k for row in run.rows for k in row if k.startswith("eval/")},
                  key=lambda k: _metric_order((k.removeprefix("eval/"), None)))
    for key in keys:
      name = key.removeprefix("eval/")
      steps, values = run.curve(key)
      if _is_progress(name) and len(steps) > 1 and steps[0] == 0:
        metric = _split(name)[1]
        mark = ("worse" if _is_worse(metric, values[0], values[-1])
                else "better" if _is_worse(metric, values[-1], values[0]) else "")
        table.append({
            "run": run.name, "metric": _label(name), "mark": mark,
            "change": f"{values[-1] - values[0]:+.4g}", "start": _number(values[0]),
            "end": _number(values[-1]), "updates": f"{steps[-1]:.0f}"})
  return table


def _included_table(runs: Sequence[runs_lib.Run]) -> list[dict[str, Any]]:
  """Rows {name, steps, from, time, machine, scores} of registered weights that the runs started from.

  The entry `origin` of their model.json describes them; the weights of `over` follow. Weights that cannot
  be opened, for example because only an older version included them, have the error as their scores.
  """
  started = {source.strip() for run in runs for source in run.config.get("started_from", "").split(",")}
  names = sorted(source for source in started if registry.has("weights", source.partition(":")[0]))
  table = []
  for name in names:  # grows by what completes them
    try:
      model = sources.open_weights(name).model
    except errors.USER_ERRORS as error:
      table.append({"name": name, "steps": "–", "from": "–", "time": "–", "machine": "–",
                    "scores": str(error)})
      continue
    prefix = name.partition(":")[0]
    names += [under for n in model.get("over", ()) if (under := f"{prefix}:{n}") not in names]
    origin = model["origin"]
    scores = {key: value for key, value in origin["scores"].items() if _is_progress(key)}
    table.append({
        "name": name, "steps": origin["steps"], "from": origin["started_from"],
        "time": facts.duration(origin["seconds"]), "machine": origin["machine"],
        "scores": "; ".join(f"{_label(k)}: {_number(v)}" for k, v in scores.items())})
  return table


def _evaluation_table(runs: Sequence[runs_lib.Run]) -> list[dict[str, Any]]:
  """Rows {set, metric, cells: [(text, is best)]} over runs."""
  scores = [run.scores() for run in runs]
  keys = sorted({k for s in scores for k in s}, key=lambda k: _metric_order((k, None)))
  table = []
  for key in keys:
    name, metric, group = _split(key)
    label, higher = _metric(metric).label, _metric(metric).higher_is_better
    values = [s.get(key) for s in scores]
    present = [v for v in values if v is not None and math.isfinite(v)]
    best = None
    if higher is not None and len(present) > 1:
      best = max(present) if higher else min(present)
    arrow = {True: " ↑", False: " ↓", None: ""}[higher]
    label = f"… {group.replace('_', ' ')}" if group else label + arrow
    table.append({"set": "" if group else name, "metric": label, "cells": [
        ("–" if v is None else _number(v), best is not None and v == best) for v in values]})
  return table


def _sections(runs: Sequence[runs_lib.Run]) -> list[tuple[str, list[dict[str, str]]]]:
  """[(heading, [{title, image}])] of the headings that have curves."""
  keys = {k for run in runs for row in run.rows for k in row} - set(_HIDDEN)
  sections: dict[str, list[dict[str, str]]] = {name: [] for name in _SECTIONS}
  for key in sorted(keys, key=lambda k: (k != "train/loss", _metric_order((k, None)))):
    section, title, log = _panel(key)
    if not section:
      continue
    sections[section].append({"title": title, "image": plots.curves(
        [(run.colour, run.name, *run.curve(key)) for run in runs], title, log=log)})
  return [(name, panels) for name, panels in sections.items() if panels]


def _panel(key: str) -> tuple[str, str, bool]:
  """(section, title, logarithmic) of a term."""
  prefix, _, name = key.partition("/")
  if prefix == "eval":
    name, metric, group = _split(name)
    if metric == "count" or group:  # a group's value is in the table
      return "", "", False
    return "Evaluation", _label(f"{name}/{metric}"), False
  if prefix == "rate":
    return "Speed", _RATES.get(key, name), False
  if prefix != "train":
    return "", "", False  # seconds/ has a table of its own, sinks/ is among the facts
  title = name.replace("_", " ")
  if name == "loss" or name.endswith("_loss"):
    return "Loss", title, name in ("loss", "reconstruction_loss")
  return "Optimisation", title, False


def _config_table(runs: Sequence[runs_lib.Run]) -> list[dict[str, Any]]:
  """Rows {field, values, differs}, differing fields first."""
  flat = [_flatten(run.config) for run in runs]
  fields = sorted({f for c in flat for f in c})
  rows = []
  for field in fields:
    values = [str(c.get(field, "–")) for c in flat]
    rows.append({"field": field, "values": values, "differs": len(set(values)) > 1})
  return sorted(rows, key=lambda row: not row["differs"])


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat


def _number(value: float) -> str:
  """Formats with four significant digits, integers without a point."""
  if not math.isfinite(value):
    return str(value)
  return f"{value:.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"
