"""Writes and reads a run's metrics: metrics.jsonl and TensorBoard.

metrics.jsonl holds one JSON object per line: {"step": int, "time": unix seconds, term: number, ...}.
Terms are prefixed train/, eval/<set>/ or rate/. Values that JSON lacks are written as the strings "nan",
"inf", "-inf". Only process 0 writes. Nothing here waits for the devices: the loop passes metrics of
finished updates.
"""

from collections.abc import Mapping
import io
import json
import math
import time
from typing import Any

from etils import epath
import jax
import numpy as np
from PIL import Image

from unilip_jax.multihost import session

FILE = "metrics.jsonl"
# Object stores cannot append: there the complete file is written at every checkpoint, and between them at
# most this often.
_REMOTE_FLUSH_SECONDS = 60.0


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """Reads the rows of a run, one per step in order; of a term written twice for a step, the last value.

  Raises:
    FileNotFoundError: if the run has no metrics.
  """
  path = epath.Path(workdir) / FILE
  if not path.exists():
    raise FileNotFoundError(f"{path} is absent: is {workdir} the workdir of a run?")
  rows: dict[int, dict[str, Any]] = {}
  for line in _complete_lines(path):
    row = {k: float(v) if isinstance(v, str) else v for k, v in json.loads(line).items()}
    rows.setdefault(row["step"], {}).update(row)
  return [rows[step] for step in sorted(rows)]


def evaluation(row: Mapping[str, Any]) -> dict[str, float]:
  """Returns {"<set>/<metric>": value} of a row; empty if it holds no evaluation."""
  return {key.removeprefix("eval/"): value for key, value in row.items() if key.startswith("eval/")}


def _complete_lines(path: epath.Path) -> list[str]:
  """Reads the lines of the file without an incomplete last one, which a killed process may leave."""
  text = path.read_text()
  return [line for line in text[:text.rfind("\n") + 1].splitlines() if line]


def _json_value(value: float) -> float | str:
  return value if math.isfinite(value) else str(value)


class Writer:
  """Appends to metrics.jsonl and TensorBoard of one workdir; writes on process 0 only."""

  def __init__(self, workdir: epath.PathLike, *, start_step: int):
    """Opens the files of a new or continued run.

    Args:
      workdir: local or gs:// folder; must exist.
      start_step: the restored step; later rows are dropped, since their updates run again.
    """
    self._enabled = jax.process_index() == 0
    self._evaluated: set[int] = set()
    if not self._enabled:
      return
    self._path = epath.Path(workdir) / FILE
    self._remote = "://" in str(workdir)
    lines = _complete_lines(self._path) if self._path.exists() else []
    self._lines = [line for line in lines if json.loads(line)["step"] <= start_step]
    for line in self._lines:
      self._record_evaluation(json.loads(line))
    self._rewrite()
    self._flushed = time.monotonic()
    self._file = None if self._remote else open(self._path, "a")  # noqa: SIM115
    import tensorboardX  # late: it imports torch wherever that is installed

    self._board = tensorboardX.SummaryWriter(
        str(epath.Path(workdir) / "tensorboard"), purge_step=start_step + 1)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes one row.

    Args:
      step: number of updates.
      values: {term: number or scalar array}; arrays must be of finished updates.
    """
    if not self._enabled:
      return
    values = {k: float(np.asarray(v)) for k, v in jax.device_get(dict(values)).items()}
    row = {"step": int(step), "time": round(time.time(), 3)}
    row |= {k: _json_value(v) for k, v in values.items()}
    self._record_evaluation(row)
    line = json.dumps(row)
    if self._remote:
      self._lines.append(line)
      if time.monotonic() - self._flushed > _REMOTE_FLUSH_SECONDS:
        self.flush()
    else:
      self._file.write(line + "\n")
      self._file.flush()
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def write_image(self, step: int, name: str, png: bytes) -> None:
    """Writes a PNG to TensorBoard."""
    if self._enabled:
      image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
      self._board.add_image(name, image, step, dataformats="HWC")

  def flush(self) -> None:
    """Writes the pending rows of an object store; a file system has them already."""
    if self._enabled and self._remote:
      self._rewrite()
      self._flushed = time.monotonic()

  def has_evaluation(self, step: int) -> bool:
    """Tells whether the file holds an evaluation of `step`; every process returns process 0's answer."""
    evaluated = self._enabled and step in self._evaluated
    return "True" in session.all_gather_text("the evaluation exists", str(evaluated))

  def close(self) -> None:
    """Writes what is pending and closes the files."""
    if not self._enabled:
      return
    if self._remote:
      self._rewrite()
    else:
      self._file.close()
    self._board.close()

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def _record_evaluation(self, row: Mapping[str, Any]) -> None:
    if evaluation(row):
      self._evaluated.add(row["step"])

  def _rewrite(self) -> None:
    """Writes all rows to a new file; on a file system it replaces the old one atomically."""
    text = "".join(line + "\n" for line in self._lines)
    if self._remote:
      self._path.write_text(text)
      return
    new = self._path.with_name(FILE + ".new")
    new.write_text(text)
    new.replace(self._path)
