"""Traces some steps for xprof and TensorBoard (`config.profile_steps`).

The trace is written to <workdir>/tensorboard/plugins/profile/steps_<first>_<last>/, where TensorBoard's
profile plugin and xprof look for it. Next to it is step.hlo.txt, the compiled step, whose instructions name
their modules. `python -m benchmarks.profile_table --trace=DIR` makes a table of both.
"""

from collections.abc import Sequence
import tempfile
from typing import Any

from absl import logging
from etils import epath
import jax

FOLDER = "tensorboard"
TEXT = "step.hlo.txt"



class Profile:
  """Traces the steps of one process from the first to the last of `steps`."""

  def __init__(self, steps: Sequence[int], workdir: epath.PathLike):
    """Checks the steps; writes nothing yet.

    Args:
      steps: (first, last), counted from 1, or () for none.
      workdir: of the run, local or gs://.

    Raises:
      ValueError: for other steps.
    """
    if len(steps) not in (0, 2) or (steps and not 1 <= steps[0] <= steps[1]):
      raise ValueError(
          f"profile_steps={tuple(steps)}: pass (first, last), two steps counted from 1, or ()")
    self._first, self._last = tuple(steps) or (0, 0)
    self._session = f"steps_{self._first}_{self._last}"  # the same folder on all hosts
    self._target = epath.Path(workdir) / FOLDER
    self._folder: str | None = None  # while a trace runs

  def starts_at(self, step: int) -> bool:
    """Tells whether the trace begins with this step."""
    return step == self._first

  def start(self, compiled: Any) -> None:
    """Begins the trace.

    Args:
      compiled: the compiled step (jax.stages.Compiled).
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # a million Python calls would push out the device's events
    options.session_id = self._session
    remote = "://" in str(self._target)
    self._folder = tempfile.mkdtemp(prefix="unilip_trace_") if remote else str(self._target)
    self._text = compiled.as_text()
    jax.profiler.start_trace(self._folder, profiler_options=options)

  def ends_at(self, step: int) -> bool:
    """Tells whether this step is the last of the trace."""
    return self._folder is not None and step == self._last

  def close(self) -> None:
    """Ends a running trace; a run that ends before the last step keeps the traced steps."""
    if self._folder is None:
      return
    folder, self._folder = epath.Path(self._folder), None
    jax.profiler.stop_trace()
    final = _trace_folder(self._target, self._session)
    if folder != self._target:
      final.mkdir(parents=True, exist_ok=True)
      for file in _trace_folder(folder, self._session).iterdir():
        file.copy(final / file.name, overwrite=True)
      folder.rmtree()
    if jax.process_index() == 0:
      (final / TEXT).write_text(self._text)
    logging.info("trace written to %s: tensorboard --logdir=%s, or python -m benchmarks.profile_table "
                 "--trace=%s", final, self._target, final)

  def __enter__(self) -> "Profile":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()


def _trace_folder(folder: epath.Path, session: str) -> epath.Path:
  return folder / "plugins" / "profile" / session
