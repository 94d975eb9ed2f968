"""Writes and reads a run's metrics: metrics.jsonl and TensorBoard, and what else they go to (sinks.py).

metrics.jsonl holds one JSON object per line: {"step": int, "time": unix seconds, term: number, ...}.
Terms are prefixed train/, eval/<set>/, rate/, seconds/ (ledger.py) or sinks/. Values that JSON lacks are
written as the strings "nan", "inf", "-inf". Only process 0 writes. A killed process may leave an incomplete
last line: it is ignored by readers, and removed when the run continues. Other damaged lines are errors to
readers; a run that continues removes them, and keeps the damaged file as metrics.jsonl.damaged. Nothing
here waits for the devices: the loop passes metrics of finished updates.
"""

from collections.abc import Mapping
import io
import json
import math
import re
import sys
import time
from typing import Any

from absl import logging
from etils import epath
import jax
import numpy as np
from PIL import Image

from unilip_jax.common import atomic_io, errors
from unilip_jax.multihost import session
from unilip_jax.training import sinks as sinks_lib

FILE = "metrics.jsonl"
# Object stores cannot append: there the complete file is written at every checkpoint, and between them at
# most this often.
_REMOTE_FLUSH_SECONDS = 60.0
_CLIENT = "google.cloud.storage"


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """Reads the rows of a run, one per step in order; of a term written twice for a step, the last value.

  Raises:
    FileNotFoundError: if the run has no metrics.
    ValueError: if a line is damaged, with its number.
  """
  path = epath.Path(workdir) / FILE
  if not path.exists():
    raise FileNotFoundError(f"{path} is absent: is {workdir} the workdir of a run?")
  rows: dict[int, dict[str, Any]] = {}
  lines, damaged = _parse(path)
  if damaged:
    raise ValueError(f"{path} is damaged:\n{errors.listed(damaged)}\nremove these lines; training that "
                     "continues in this workdir removes them by itself")
  for _, row in lines:
    rows.setdefault(row["step"], {}).update(row)
  return [rows[step] for step in sorted(rows)]


def evaluation(row: Mapping[str, Any]) -> dict[str, float]:
  """Returns {"<set>/<metric>": value} of a row; empty if it holds no evaluation."""
  return {key.removeprefix("eval/"): value for key, value in row.items() if key.startswith("eval/")}


def _parse(path: epath.Path) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
  """Reads ([(line, row)], ["  line <number>: <what is wrong>"]) without an incomplete last line."""
  *lines, last = path.read_bytes().split(b"\n")
  if last.strip(b"\0 \r"):
    logging.warning("%s: the last line is incomplete and is ignored; a process was killed while it wrote",
                    path)
  rows, damaged = [], []
  for number, line in enumerate(lines, start=1):
    line = line.strip(b"\0 \r")  # a power failure leaves zeros
    if line:
      try:
        rows.append((line.decode(), _row(line)))
      except (ValueError, RecursionError) as error:
        damaged.append(f"  line {number}: {str(error)[:200]}")
  return rows, damaged


def _row(line: bytes) -> dict[str, Any]:
  """Parses a line; raises ValueError unless it holds a step and numbers."""
  row = json.loads(line)
  if not isinstance(row, dict) or type(row.get("step")) is not int:
    raise ValueError("it is not an object with a step")
  row = {k: float(v) if isinstance(v, str) else v for k, v in row.items()}
  if wrong := [k for k, v in row.items() if not isinstance(v, int | float)]:
    raise ValueError(f"{wrong[0]!r} is not a number")
  return row


def _tag(name: str) -> str:
  """Returns a term as TensorBoard accepts it; its writer warns at every other one."""
  return re.sub(r"[^-/\w.]", "_", name)


def _json_value(value: float) -> float | str:
  return value if math.isfinite(value) else str(value)


def _import_tensorboard(remote: bool) -> Any:
  """Imports tensorboardX without what it only tries to import, which would add seconds to a start.

  These are PyTorch, where it is installed, and the client of object stores, which `remote` folders need.
  """
  if remote and _CLIENT not in sys.modules:  # imported without it, for a local folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboardX"]:
      del sys.modules[name]
  hidden = [name for name in ["torch"] + [_CLIENT] * (not remote) if name not in sys.modules]
  sys.modules.update(dict.fromkeys(hidden))
  try:
    import tensorboardX
  finally:
    for name in hidden:
      del sys.modules[name]
  return tensorboardX


class Writer:
  """Appends to metrics.jsonl and TensorBoard of one workdir; writes on process 0 only."""

  def __init__(self, workdir: epath.PathLike, *, start_step: int, sinks: sinks_lib.Sinks | None = None):
    """Opens the files of a new or continued run.

    Args:
      workdir: local or gs:// folder; must exist.
      start_step: the restored step; later rows are dropped, since their updates run again.
      sinks: get what is written, and are closed with the writer.
    """
    self._sinks = sinks or sinks_lib.Sinks({})
    self._enabled = jax.process_index() == 0
    self._evaluated: set[int] = set()
    if not self._enabled:
      return
    self._path = epath.Path(workdir) / FILE
    self._remote = "://" in str(workdir)
    rows, damaged = _parse(self._path) if self._path.exists() else ([], [])
    if damaged:
      copy = self._path.with_name(FILE + ".damaged")
      self._path.copy(copy, overwrite=True)
      logging.error("%s is damaged; the run continues without these lines, the file is kept as %s:\n%s",
                    self._path, copy, errors.listed(damaged))
    rows = [(line, row) for line, row in rows if row["step"] <= start_step]
    self._lines = [line for line, _ in rows]
    for _, row in rows:
      self._record_evaluation(row)
    self._rewrite()
    self._flushed = time.monotonic()
    self._file = None if self._remote else open(self._path, "a")  # noqa: SIM115
    self._board = _import_tensorboard(self._remote).SummaryWriter(
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
    self._sinks.write(step, values)
    values |= self._sinks.lost()
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
      self._board.add_scalar(_tag(name), value, step)

  def write_image(self, step: int, name: str, png: bytes) -> None:
    """Writes a PNG to TensorBoard and the sinks."""
    if self._enabled:
      self._sinks.write_image(step, name, png)
      image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
      self._board.add_image(_tag(name), image, step, dataformats="HWC")

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
    self._sinks.close()

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
    if self._remote:  # an object appears when it is complete
      self._path.write_text(text)
    else:
      atomic_io.write(self._path, text.encode())
