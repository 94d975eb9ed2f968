"""Sends metrics, sample grids and the config of a run to W&B or trackio (`config.log`), on process 0.

Each sink has a thread and a bounded queue: training waits for none. What a sink does not take is counted,
named in the log and in metrics.jsonl (`sinks/<name>_lost`), and never ends the run. Keys are read from the
environment by the packages themselves. The only file that knows these packages.
"""

from collections.abc import Callable, Mapping
import dataclasses
import importlib
import importlib.util
import io
import json
import netrc
import os
import queue
import threading
from typing import Any

from absl import logging
import ml_collections
from PIL import Image

from unilip_jax.common import paths
from unilip_jax.multihost import session

_ROWS = 1000  # that wait for a sink; more are lost
_SECONDS = 60  # that W&B may take to open a run and, at the end, to send what is left
_WAIT = 2 * _SECONDS  # for a sink's thread at the end
_NO_SERVER = ("offline", "disabled", "dryrun")  # of $WANDB_MODE


def check(config: ml_collections.ConfigDict) -> None:
  """Checks that the packages of `log.sinks` are installed and have their key, on process 0.

  Raises:
    ValueError: with the command or variable that is missing.
  """
  for name in config.log.sinks if session.index() == 0 else ():
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:  # a folder of that name, e.g. of W&B's files, has no origin
      raise ValueError(f"log.sinks names {name}, which is not installed: pip install {name}")
    if name == "wandb" and not config.log.offline and not _has_key():
      raise ValueError("log.sinks names wandb, and there is no key: set WANDB_API_KEY in the environment, "
                       "or keep the run's files for `wandb sync` with --config.log.offline=True")


def _has_key() -> bool:
  if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in _NO_SERVER:
    return True
  try:
    return any("wandb" in host for host in netrc.netrc(os.environ.get("NETRC")).hosts)
  except (OSError, netrc.NetrcParseError):
    return False


def open_sinks(config: ml_collections.ConfigDict, workdir: str, record: Mapping[str, Any]) -> "Sinks":
  """Opens the sinks of a run in the background.

  Args:
    config: of the run.
    workdir: of the run; offline files of W&B are written there, if it is local.
    record: of this start, from run_files.write; its `id` stays the run's over restarts.
  """
  if session.index():
    return Sinks({})
  described = json.loads(json.dumps(config.to_dict() | {"start": dict(record)}, default=str))
  options = _Options(config.log.project, config.log.name or os.path.basename(workdir.rstrip("/")),
                     record["id"], described, None if paths.is_remote(workdir) else workdir,
                     config.log.offline)
  return Sinks({name: _KINDS[name](options) for name in config.log.sinks})


@dataclasses.dataclass(frozen=True)
class _Options:
  """What a sink is told about the run."""

  project: str
  name: str
  id: str
  config: dict[str, Any]
  folder: str | None
  offline: bool


class _Wandb:
  """A run of W&B; the step is a metric of its own, since W&B drops steps that a restart repeats."""

  def __init__(self, options: _Options):
    self._options = options

  def open(self) -> None:
    self._wandb = importlib.import_module("wandb")
    self._run = self._wandb.init(
        project=self._options.project, name=self._options.name, id=self._options.id, resume="allow",
        config=self._options.config, dir=self._options.folder,
        mode="offline" if self._options.offline else None,  # None: $WANDB_MODE, else online
        settings=self._wandb.Settings(init_timeout=_SECONDS, finish_timeout=_SECONDS, console="off"))
    self._run.define_metric("step")
    self._run.define_metric("*", step_metric="step")

  def send(self, step: int, values: Mapping[str, Any]) -> None:
    values = {k: self._wandb.Image(v, caption=f"step {step}") if isinstance(v, Image.Image) else v
              for k, v in values.items()}
    self._run.log({"step": step} | values)

  def close(self) -> None:
    self._run.finish()


class _Trackio:
  """A run of trackio, in its local database ($TRACKIO_DIR, else trackio's own folder)."""

  def __init__(self, options: _Options):
    self._options = options

  def open(self) -> None:
    self._trackio = importlib.import_module("trackio")
    # A name is all that tells runs of a project apart there.
    self._run = self._trackio.init(
        project=self._options.project, name=f"{self._options.name}-{self._options.id}", resume="allow",
        config=self._options.config)

  def send(self, step: int, values: Mapping[str, Any]) -> None:
    values = {k: self._trackio.Image(v, caption=f"step {step}") if isinstance(v, Image.Image) else v
              for k, v in values.items()}
    self._run.log(values, step=step)

  def close(self) -> None:
    self._run.finish()


_KINDS: Mapping[str, Callable[[_Options], Any]] = {"wandb": _Wandb, "trackio": _Trackio}


class Sinks:
  """The sinks of a run."""

  def __init__(self, sinks: Mapping[str, Any]):
    """Starts a thread for each of {name: object with open, send and close}."""
    self._threads = [_Sink(name, sink) for name, sink in sinks.items()]

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Sends a row of metrics."""
    for sink in self._threads:
      sink.put(step, dict(values))

  def write_image(self, step: int, name: str, png: bytes) -> None:
    """Sends an image."""
    for sink in self._threads:
      sink.put(step, {name: Image.open(io.BytesIO(png)).convert("RGB")})

  def lost(self) -> dict[str, int]:
    """Returns {"sinks/<name>_lost": rows} of the sinks that did not take all rows."""
    return {f"sinks/{sink.name}_lost": sink.lost for sink in self._threads if sink.lost}

  def close(self) -> None:
    """Sends what waits, for a limited time, and logs what was lost."""
    for sink in self._threads:
      sink.close()


class _Sink:
  """One sink with its queue and thread.

  Attributes:
    name: of the sink.
    lost: rows that it did not take.
  """

  def __init__(self, name: str, sink: Any):
    self.name, self.lost = name, 0
    self._sink, self._sent, self._why = sink, 0, ""
    self._rows: queue.Queue = queue.Queue(_ROWS)
    self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
    self._thread.start()

  def put(self, step: int, values: Mapping[str, Any]) -> None:
    """Queues a row; one that finds no room is lost."""
    try:
      self._rows.put_nowait((step, values))
    except queue.Full:
      self._lose(f"it is {_ROWS} rows behind")

  def close(self) -> None:
    """Waits for the thread, and logs the outcome."""
    try:
      self._rows.put(None, timeout=_WAIT)
    except queue.Full:
      self._lose("it takes no more rows")
    self._thread.join(_WAIT)
    if self._thread.is_alive():
      logging.error("%s did not end within %d seconds: it may lack the last rows", self.name, _WAIT)
    if self.lost:
      logging.error("%s lost %d of %d rows, which metrics.jsonl has: %s", self.name, self.lost,
                    self.lost + self._sent, self._why)

  def _run(self) -> None:
    """Opens the sink, sends rows until None, and closes it."""
    is_open = self._try(self._sink.open)
    while (row := self._rows.get()) is not None:
      if not is_open:
        self._lose(self._why)
      elif self._try(self._sink.send, *row):
        self._sent += 1
    if is_open:
      self._try(self._sink.close)

  def _try(self, function: Callable[..., None], *arguments: Any) -> bool:
    """Returns whether a call into the package succeeded; any of its errors is logged and counted."""
    try:
      function(*arguments)
    except Exception as error:  # a package of others, and its network, must not end the run
      why = f"{type(error).__name__}: {error}"
      if function == self._sink.send:
        self._lose(why)
      else:
        self._why = why
        logging.error("%s: %s failed: %s", self.name, function.__name__, why)
      return False
    return True

  def _lose(self, why: str) -> None:
    self.lost, self._why = self.lost + 1, why
    if str(self.lost).strip("0") == "1":  # the 1st, 10th, 100th …
      logging.error("%s lost %d rows so far; training goes on: %s", self.name, self.lost, why)
