"""A run's numbers: metrics.jsonl, TensorBoard, and a progress line with throughput, ETA and MFU.

metrics.jsonl holds one JSON object per line: {"step": int, "time": unix seconds, term: number,
...}, terms prefixed train/, eval/<set>/ or rate/. Values that JSON lacks are written as the strings
"nan", "inf", "-inf". Only process 0 writes. Nothing here waits for the device: the loop hands over
metrics of updates that are done.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import io
import json
import math
import sys
import time
from typing import Any

from absl import logging
from etils import epath
import jax
import numpy as np
from PIL import Image
import tqdm

from unilip_jax import flops, hosts

FILE = "metrics.jsonl"
# Object stores cannot append: there the whole file is written, at most this often.
_REMOTE_FLUSH_SECONDS = 60.0


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """The rows of a run, one per step in order; terms written twice for a step count as last written.

  Raises:
    FileNotFoundError: if the run has written none.
  """
  path = epath.Path(workdir) / FILE
  if not path.exists():
    raise FileNotFoundError(f"{path} is absent: is {workdir} the workdir of a run?")
  rows: dict[int, dict[str, Any]] = {}
  for line in _whole_lines(path):
    row = {k: float(v) if isinstance(v, str) else v for k, v in json.loads(line).items()}
    rows.setdefault(row["step"], {}).update(row)
  return [rows[step] for step in sorted(rows)]


def evaluation(row: Mapping[str, Any]) -> dict[str, float]:
  """{"<set>/<metric>": value} of a row; empty if it holds no evaluation."""
  return {key.removeprefix("eval/"): value for key, value in row.items() if key.startswith("eval/")}


def _whole_lines(path: epath.Path) -> list[str]:
  """Lines of the file without the torn last one that a killed process may leave."""
  text = path.read_text()
  return [line for line in text[:text.rfind("\n") + 1].splitlines() if line]


def _json_value(value: float) -> float | str:
  return value if math.isfinite(value) else str(value)


class Writer:
  """Appends to metrics.jsonl and TensorBoard of one workdir; does nothing but on process 0."""

  def __init__(self, workdir: epath.PathLike, *, start_step: int):
    """Opens the files of a new or continued run.

    Args:
      workdir: local or gs:// folder; must exist.
      start_step: the step that was restored: rows beyond it belong to updates that will be made
        again, and are dropped.
    """
    self._enabled = jax.process_index() == 0
    self._evaluated: set[int] = set()
    if not self._enabled:
      return
    self._path = epath.Path(workdir) / FILE
    self._remote = "://" in str(workdir)
    lines = _whole_lines(self._path) if self._path.exists() else []
    self._lines = [line for line in lines if json.loads(line)["step"] <= start_step]
    for line in self._lines:
      self._note_evaluation(json.loads(line))
    self._rewrite()
    self._flushed = time.monotonic()
    self._file = None if self._remote else open(self._path, "a")  # noqa: SIM115
    import tensorboardX  # late: it imports torch wherever that is installed

    self._board = tensorboardX.SummaryWriter(
        str(epath.Path(workdir) / "tensorboard"), purge_step=start_step + 1)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes one row.

    Args:
      step: updates made.
      values: {term: number or scalar array}; arrays must belong to updates that are done.
    """
    if not self._enabled:
      return
    values = {k: float(np.asarray(v)) for k, v in jax.device_get(dict(values)).items()}
    row = {"step": int(step), "time": round(time.time(), 3)}
    row |= {k: _json_value(v) for k, v in values.items()}
    self._note_evaluation(row)
    line = json.dumps(row)
    if self._remote:
      self._lines.append(line)
      if time.monotonic() - self._flushed > _REMOTE_FLUSH_SECONDS:
        self._rewrite()
        self._flushed = time.monotonic()
    else:
      self._file.write(line + "\n")
      self._file.flush()
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def write_image(self, step: int, name: str, png: bytes) -> None:
    """Shows a PNG in TensorBoard."""
    if self._enabled:
      image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
      self._board.add_image(name, image, step, dataformats="HWC")

  def has_evaluation(self, step: int) -> bool:
    """Whether an evaluation of `step` stands in the file (process 0's answer, on every process)."""
    found = self._enabled and step in self._evaluated
    return "True" in hosts.gather("evaluation found", str(found))

  def close(self) -> None:
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

  def _note_evaluation(self, row: Mapping[str, Any]) -> None:
    if evaluation(row):
      self._evaluated.add(row["step"])

  def _rewrite(self) -> None:
    """Writes the kept rows; on a file system the new file replaces the old one at once."""
    text = "".join(line + "\n" for line in self._lines)
    if self._remote:
      self._path.write_text(text)
      return
    new = self._path.with_name(FILE + ".new")
    new.write_text(text)
    new.replace(self._path)


class Progress:
  """Steps done, ETA, images per second and MFU: a bar on a terminal, log lines elsewhere.

  Rates are wall time between updates that are known to be done, without the pauses of `paused`; the
  first update after the start, which may wait for compilation, is left out.
  """

  def __init__(
      self, total_steps: int, first_step: int, batch_size: int,
      step_flops: Callable[[int], float] | None,
      mesh: jax.sharding.Mesh, *, log_every_steps: int = 1):
    """Starts counting.

    Args:
      total_steps: of the run.
      first_step: updates made before.
      batch_size: images per update, over all devices.
      step_flops: update -> FLOPs of the model's own work in it (flops.count), over all devices; None omits
        MFU.
      mesh: the devices that share the work.
      log_every_steps: between log lines where there is no terminal.
    """
    self._total, self._batch_size, self._step_flops = total_steps, batch_size, step_flops
    self._log_every = log_every_steps
    self._peak, how = flops.peak(list(mesh.devices.flat))
    if step_flops:
      logging.info("one update: %.3g FLOPs of model work; peak: %s", step_flops(first_step + 1), how)
    self._main = jax.process_index() == 0
    self._mark: tuple[int, float] | None = None  # (step, time) where the window of rates began
    self._step, self._now = first_step, 0.0
    self._overall: tuple[int, float] | None = None
    self._bar = tqdm.tqdm(
        total=total_steps, initial=first_step, unit="step", dynamic_ncols=True,
        disable=not (self._main and sys.stderr.isatty()))

  def update(self, step: int, values: Mapping[str, Any]) -> None:
    """Notes that update `step` is done; `values` are its metrics, of which `loss` is shown."""
    self._bar.update(step - self._step)
    self._step, self._now = step, time.monotonic()
    if self._mark is None:
      self._mark = self._overall = (step, self._now)
    if not self._bar.disable:
      self._bar.set_postfix_str(self._line(values), refresh=False)
    elif self._main and (step % self._log_every == 0 or step == self._total):
      logging.info("step %d/%d  %s  ETA %s", step, self._total, self._line(values), self._eta())

  def rates(self) -> dict[str, float]:
    """{"rate/images_per_second", "rate/step_seconds", "rate/mfu"} since the last call.

    Empty while nothing can be said; MFU is absent where the peak is unknown, and where it would
    exceed 1, which is a bug in the count or a CPU that was busy while it was measured.
    """
    rates = self._rates(self._mark)
    if rates:
      self._mark = (self._step, self._now)
    return rates

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves the time inside out of the rates: evaluation, samples."""
    begin = time.monotonic()
    try:
      yield
    finally:
      pause = time.monotonic() - begin
      self._mark = self._mark and (self._mark[0], self._mark[1] + pause)
      self._overall = self._overall and (self._overall[0], self._overall[1] + pause)

  def close(self) -> None:
    self._bar.close()

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def _rates(self, mark: tuple[int, float] | None) -> dict[str, float]:
    if mark is None or self._step <= mark[0] or self._now <= mark[1]:
      return {}
    seconds = (self._now - mark[1]) / (self._step - mark[0])
    rates = {"rate/images_per_second": self._batch_size / seconds, "rate/step_seconds": seconds}
    if self._step_flops and self._peak:
      work = self._step_flops(mark[0] + 1)  # of the window's first update: never overstated
      mfu = work / seconds / self._peak
      if mfu <= 1:
        rates["rate/mfu"] = mfu
      else:
        logging.log_first_n(
            logging.ERROR, "MFU %.2f is impossible and is not reported: FLOPs %.3g, peak %.3g", 1,
            mfu, work, self._peak)
    return rates

  def _line(self, values: Mapping[str, Any]) -> str:
    parts = [f"loss {float(values['loss']):.4f}"] if "loss" in values else []
    rates = self._rates(self._mark) or self._rates(self._overall)
    if rates:
      parts.append(f"{rates['rate/images_per_second']:.1f} images/s")
    if "rate/mfu" in rates:
      parts.append(f"MFU {rates['rate/mfu']:.1%}")
    return "  ".join(parts)

  def _eta(self) -> str:
    rates = self._rates(self._overall)
    if not rates:
      return "?"
    return tqdm.tqdm.format_interval(int((self._total - self._step) * rates["rate/step_seconds"]))
