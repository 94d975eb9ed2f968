"""What a run is, for the head of the report: command, commit, seed, machine, dates, versions; its time."""

from collections.abc import Sequence
import math
import time
from typing import Any

from unilip_jax.report import runs as runs_lib
from unilip_jax.training import ledger

# Of the ledger's entries, in their order: what trains is green, what waits is red, the rest is between.
_COLOURS = (
    "#2e8b57", "#b3261e", "#2563a8", "#d1632a", "#8a4fb0", "#b98bd4", "#6b6b2b", "#5f6368", "#4aa3b5",
    "#9aa0a6", "#e08a7d", "#3c4043", "#d5d8dc")


def table(runs: Sequence[runs_lib.Run]) -> dict[str, list[str]]:
  """{label: one value for each run}, what identifies the run first."""
  facts = [_facts(run) for run in runs]
  labels = dict.fromkeys(label for f in sorted(facts, key=len, reverse=True) for label in f)
  return {label: [f.get(label, "–") for f in facts] for label in labels}


def _facts(run: runs_lib.Run) -> dict[str, str]:
  config, starts = run.config, run.record.get("starts", [])
  first, last = (starts[0], starts[-1]) if starts else ({}, {})
  facts = {"stage": f"{config.get('stage', '?')}, size {config.get('size', '?')}"}
  if last:
    commit, _, changes = last.get("commit", "").partition(" ")
    facts |= {"command": last.get("command", "?"),
              "commit": f"{commit[:12]} {changes}".strip() or "not in a git checkout"}
  if "seed" in config:
    facts["seed"] = str(config["seed"])
  if last:
    hosts = f", {last['processes']} processes" if last.get("processes", 1) > 1 else ""
    facts |= {"machine": f"{last.get('devices', '?')}{hosts}; {last.get('machine', '?')}",
              "versions": ", ".join(f"{k} {v}" for k, v in last.get("versions", {}).items())}
  times = [row["time"] for row in run.rows if isinstance(row.get("time"), (int, float))]
  if first.get("time") or times:
    began = first.get("time", "").replace("T", " ").replace("Z", " UTC") or _date(times[0])
    ended = f", last row {_date(times[-1])}" if times else ""
    count = f", started {run.record['count']} times" if run.record.get("count", 1) > 1 else ""
    facts["date"] = f"{began}{ended}{count}"
  steps = run.rows[-1]["step"] if run.rows else run.results.get("step")
  total = config.get("total_steps")
  facts |= {
      "updates": f"{steps}" + (f" of {total}" if total and run.rows else ""),
      "image": f"{config.get('image_size', '?')} px, batch {config.get('batch_size', '?')}",
      "started from": str(
          config.get("started_from") or run.results.get("checkpoint")
          or config.get("init_from") or "random weights"),
  }
  if run.seconds() or len(times) > 1:
    wall = sum(run.seconds().values()) or times[-1] - times[0]
    facts["wall time"] = duration(wall)
  for key in sorted({k for row in run.rows[-1:] for k in row if k.startswith("sinks/")}):
    facts[key.removeprefix("sinks/").replace("_", ": rows ")] = f"{run.last(key):.0f}"
  if run.results:
    machine = run.results.get("machine", {})
    facts["results of"] = (
        f"{run.results.get('checkpoint')} on {machine.get('devices', '?')}, "
        f"{run.results.get('time', '?')}")
  return facts


def time_table(runs: Sequence[runs_lib.Run]) -> dict[str, Any]:
  """Where the wall time of the runs that have a ledger went.

  Returns:
    {names, rows: [{label, colour, cells}], total: cells, bars: [[(colour, label, percent)]]}; {} without.
  """
  booked = {run.name: seconds for run in runs if (seconds := run.seconds())}
  if not booked:
    return {}
  totals = {name: sum(seconds.values()) for name, seconds in booked.items()}
  present = [(entry, colour) for entry, colour in zip(ledger.ENTRIES, _COLOURS)
             if any(entry in seconds for seconds in booked.values())]
  return {
      "names": list(booked),
      "rows": [{"label": ledger.ENTRIES[entry], "colour": colour, "cells": [
          f"{duration(s[entry])}, {s[entry] / totals[name]:.1%}" if entry in s else "–"
          for name, s in booked.items()]} for entry, colour in present],
      "total": [duration(totals[name]) for name in booked],
      "bars": [[(colour, ledger.ENTRIES[entry], f"{100 * s[entry] / totals[name]:.2f}")
                for entry, colour in present if entry in s] for name, s in booked.items()]}


def duration(seconds: float) -> str:
  """Formats seconds as hours, minutes and seconds; below a minute with one decimal."""
  if seconds < 60:
    return f"{math.floor(10 * seconds + 0.5) / 10:g} s"
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _date(seconds: float) -> str:
  return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
