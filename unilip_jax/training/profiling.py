"""A trace of some steps for xprof and TensorBoard, and the names to read it by (`config.profile_steps`).

The trace stands in <workdir>/tensorboard/plugins/profile/steps_<first>_<last>/, where TensorBoard's
profile plugin and xprof look for it; beside it step.hlo.txt, the compiled step, whose instructions say
which module they are of. `python -m benchmarks.profile_table --trace=DIR` makes a table of both.
"""

from collections.abc import Sequence
import tempfile
from typing import Any

from absl import logging
from etils import epath
import jax

FOLDER = "tensorboard"
TEXT = "step.hlo.txt"


def check_steps(steps: Sequence[int]) -> None:
  """Refuses what is neither empty nor (first, last).

  Raises:
    ValueError: naming the field.
  """
  if len(steps) not in (0, 2) or (steps and not 1 <= steps[0] <= steps[1]):
    raise ValueError(
        f"profile_steps={tuple(steps)}: give (first, last), two steps counted from 1, or ()")


class Profile:
  """Traces the steps of one process from the first to the last of `steps`."""

  def __init__(self, steps: Sequence[int], workdir: epath.PathLike):
    """Nothing is written yet.

    Args:
      steps: (first, last), counted from 1, or () for none.
      workdir: of the run, local or gs://.

    Raises:
      ValueError: for other steps.
    """
    check_steps(steps)
    self._first, self._last = tuple(steps) or (0, 0)
    self._session = f"steps_{self._first}_{self._last}"  # the same folder on all hosts
    self._target = epath.Path(workdir) / FOLDER
    self._folder: str | None = None  # while a trace runs

  def starts_at(self, step: int) -> bool:
    """Whether the trace begins with this step."""
    return step == self._first

  def start(self, compiled: Any) -> None:
    """Begins the trace.

    Args:
      compiled: the step, of jax.stages.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # a million Python calls would push out the device's events
    options.session_id = self._session
    remote = "://" in str(self._target)
    self._folder = tempfile.mkdtemp(prefix="unilip_trace_") if remote else str(self._target)
    self._text = compiled.as_text()
    jax.profiler.start_trace(self._folder, profiler_options=options)

  def ends_at(self, step: int) -> bool:
    """Whether this step is the trace's last."""
    return self._folder is not None and step == self._last

  def close(self) -> None:
    """Ends a trace that runs; a run that ends before the last step keeps what was traced."""
    if self._folder is None:
      return
    folder, self._folder = epath.Path(self._folder), None
    jax.profiler.stop_trace()
    place = _place(self._target, self._session)
    if folder != self._target:
      place.mkdir(parents=True, exist_ok=True)
      for file in _place(folder, self._session).iterdir():
        file.copy(place / file.name, overwrite=True)
      folder.rmtree()
    if jax.process_index() == 0:
      (place / TEXT).write_text(self._text)
    logging.info("trace written to %s: tensorboard --logdir=%s, or python -m benchmarks.profile_table "
                 "--trace=%s", place, self._target, place)

  def __enter__(self) -> "Profile":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()


def _place(folder: epath.Path, session: str) -> epath.Path:
  return folder / "plugins" / "profile" / session
