"""Draws curves of runs as SVG, for the report."""

import base64
from collections.abc import Sequence
import io
import math

import matplotlib
import matplotlib.figure
import matplotlib.ticker
import numpy as np

COLOURS = ("#2563a8", "#d1632a", "#2e8b57", "#8a4fb0", "#b03a5b", "#6b6b2b", "#5f6368")  # of runs
_MAX_POINTS = 1500  # per curve; longer ones are averaged in equal parts
_SMOOTH_OVER = 60  # curves with more points get a running mean, and are faint themselves

Curve = tuple[str, str, np.ndarray, np.ndarray]  # (colour, label, steps, values)


def curves(lines: Sequence[Curve], title: str, *, log: bool = False) -> str:
  """Draws one term over updates.

  Args:
    lines: one for each run.
    title: of the image, for screen readers.
    log: whether the values' axis is logarithmic if all are positive.

  Returns:
    The data URL of an SVG.
  """
  with matplotlib.rc_context({
      "font.size": 9, "svg.fonttype": "path", "axes.edgecolor": "#9aa0a6",
      "axes.labelcolor": "#3c4043", "xtick.color": "#5f6368", "ytick.color": "#5f6368"}):
    figure = matplotlib.figure.Figure(figsize=(4.6, 2.7), layout="constrained")
    axes = figure.add_subplot()
    lowest = math.inf
    for colour, label, steps, values in lines:
      steps, values = _thinned(steps, values)
      finite = values[np.isfinite(values)]
      lowest = min(lowest, finite.min()) if len(finite) else lowest
      if not len(steps):
        continue
      if len(steps) > _SMOOTH_OVER:
        alone = "values" if len(lines) == 1 else None
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8, label=alone)
        label = "running mean" if alone else f"{label}, running mean"
        axes.plot(steps, _smooth(values), color=colour, linewidth=1.5, label=label)
      else:
        marker = "o" if len(steps) < 25 else None
        axes.plot(steps, values, color=colour, linewidth=1.5, marker=marker, markersize=3, label=label)
    if len(axes.lines) > 1:
      axes.legend(fontsize=7, frameon=False, labelcolor="#3c4043")
    if log and 0 < lowest < math.inf:
      axes.set_yscale("log")
    else:
      axes.ticklabel_format(axis="y", useOffset=False)
      low, high = axes.get_ylim()
      if high - low < 1e-6 * abs(high):  # a constant, whose rounding errors would fill the axis
        axes.set_ylim(low - abs(low) / 10, high + abs(high) / 10)
    axes.set_xlabel("update")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
    axes.grid(color="#e3e5e8", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Title": title, "Date": None})
  return data_url(buffer.getvalue(), "image/svg+xml")


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Averages equal parts of a curve, to at most _MAX_POINTS points."""
  if len(steps) <= _MAX_POINTS:
    return steps, values
  parts = np.linspace(0, len(steps), _MAX_POINTS + 1).astype(int)[:-1]
  counts = np.diff(np.append(parts, len(steps)))
  return np.add.reduceat(steps, parts) / counts, np.add.reduceat(values, parts) / counts


def _smooth(values: np.ndarray) -> np.ndarray:
  """Centred running mean over 1/30 of the curve, of finite values alone."""
  half = max(len(values) // 60, 1)
  finite = np.isfinite(values)
  total = np.cumsum(np.concatenate([[0.0], np.where(finite, values, 0.0)]))
  count = np.cumsum(np.concatenate([[0], finite]))
  low = np.maximum(np.arange(len(values)) - half, 0)
  high = np.minimum(np.arange(len(values)) + half + 1, len(values))
  means = (total[high] - total[low]) / np.maximum(count[high] - count[low], 1)
  return np.where(finite, means, np.nan)


def data_url(content: bytes, kind: str) -> str:
  """Encodes `content` of a MIME type as a URL that needs no network."""
  return f"data:{kind};base64,{base64.b64encode(content).decode()}"
