"""Shows the progress of a run: a bar on a terminal, log lines elsewhere."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import sys
import time
from typing import Any

from absl import logging
import jax
import tqdm

from unilip_jax.common import progress_bar
from unilip_jax.training import flops, ledger


@contextlib.contextmanager
def compilation(config: Any) -> Iterator[None]:
  """Logs what to expect before the train step is compiled inside, and how long it took."""
  usual = "about a minute at size tiny" if config.size == "tiny" else f"minutes at size {config.size}"
  later = (f"compiled programs are kept in {config.compilation_cache}, so that the next start is faster"
           if config.compilation_cache else "none is kept, since compilation_cache is empty")
  if config.data.buckets:
    usual += f", for each of the {len(config.data.buckets)} sizes of data.buckets"
  logging.info("compiling the train step: %s, without further output; %s", usual, later)
  begin = time.monotonic()
  with ledger.during("compile"):
    yield
  logging.info("compiled in %.0f s", time.monotonic() - begin)


class Progress:
  """Shows steps, time left, images per second and MFU: a bar on a terminal, log lines elsewhere.

  Rates are from the wall time between finished updates, without the time inside `paused`. The first update
  after the start is excluded, since it may wait for compilation.
  """

  def __init__(
      self, total_steps: int, first_step: int, batch_size: int,
      step_flops: Callable[[int], float] | None,
      mesh: jax.sharding.Mesh, *, log_every_steps: int = 1):
    """Starts counting.

    Args:
      total_steps: of the run.
      first_step: number of earlier updates.
      batch_size: images per update, over all devices.
      step_flops: update -> FLOPs of the model's own work in it (flops.count), over all devices; None omits
        MFU.
      mesh: the devices that share the work.
      log_every_steps: steps between log lines without a terminal.
    """
    self._total, self._batch_size, self._step_flops = total_steps, batch_size, step_flops
    self._log_every = log_every_steps
    self._peak, source = flops.peak(list(mesh.devices.flat))
    if step_flops:
      logging.info("one update: %.3g FLOPs of model work; peak: %s", step_flops(first_step + 1), source)
    self._main = jax.process_index() == 0
    self._mark: tuple[int, float] | None = None  # (step, time) where the window of rates began
    self._step, self._now = first_step, 0.0
    self._overall: tuple[int, float] | None = None
    self._bar = progress_bar.bar(
        total=total_steps, initial=first_step, unit="step",
        disable=not (self._main and sys.stderr.isatty()))

  def update(self, step: int, values: Mapping[str, Any]) -> None:
    """Records that update `step` is finished, and shows the `loss` of its metrics `values`."""
    self._bar.update(step - self._step)
    self._step, self._now = step, time.monotonic()
    if self._mark is None:
      self._mark = self._overall = (step, self._now)
    if not self._bar.disable:
      self._bar.set_postfix_str(self._line(values), refresh=False)
    elif self._main and (step % self._log_every == 0 or step == self._total):
      logging.info("step %d/%d  %s  %s left", step, self._total, self._line(values), self._left())

  def rates(self) -> dict[str, float]:
    """Returns {"rate/images_per_second", "rate/step_seconds", "rate/mfu"} since the last call.

    Empty before the second update. MFU is absent if the peak is unknown. It is also absent if it would
    exceed 1, which means a bug in the count or a CPU that was busy when its peak was measured.
    """
    rates = self._rates(self._mark)
    if rates:
      self._mark = (self._step, self._now)
    return rates

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Excludes the time inside from the rates: evaluation, samples."""
    begin = time.monotonic()
    try:
      yield
    finally:
      pause = time.monotonic() - begin
      self._mark = self._mark and (self._mark[0], self._mark[1] + pause)
      self._overall = self._overall and (self._overall[0], self._overall[1] + pause)

  def close(self) -> None:
    """Closes the bar."""
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
      work = self._step_flops(mark[0] + 1)  # of the window's first update: at most the later ones'
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

  def _left(self) -> str:
    rates = self._rates(self._overall)
    if not rates:
      return "?"
    return tqdm.tqdm.format_interval(int((self._total - self._step) * rates["rate/step_seconds"]))
