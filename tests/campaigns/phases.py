"""Tells from outside where a command is: a child writes the names of functions that it enters to a file."""

import dataclasses
import functools
import importlib
import inspect
import os
import pathlib
import time

VARIABLE = "CAMPAIGN_PHASES"
START = "start"
# Where files are written, and what lies between.
POINTS = (
    "common.atomic_io:open_file", "common.atomic_io:Folder.__enter__", "common.atomic_io:Folder.finish",
    "weights.orbax_io:write_tree", "weights.orbax_io:restore_tree", "weights.orbax_io:read_tree",
    "training.checkpoint:Manager.__init__", "training.checkpoint:Manager.save_frozen",
    "training.checkpoint:Manager.save", "training.checkpoint:Manager.wait",
    "training.checkpoint:Manager.close", "training.step:compile_step",
    "training.metrics:Writer.__init__", "training.metrics:Writer.write",
    "training.metrics:Writer.write_image", "training.late_metrics:LateMetrics.read",
    "evals.base:make_evaluators", "evaluate:run_all", "data.prepare.manifest:begin",
    "data.prepare.manifest:write_progress", "data.prepare.manifest:merge", "data.prepare.shard:make",
    "convert.importer:import_weights", "convert.exporter:export_weights", "weights.folder:Writer.add",
    "weights.folder:Writer.finish")


@dataclasses.dataclass(frozen=True)
class Event:
  """An entered function.

  Attributes:
    name: of POINTS, or START.
    time: of the monotonic clock, in seconds.
  """

  name: str
  time: float


def announce() -> None:
  """Makes this process write its phases to the file that $CAMPAIGN_PHASES names, if it is set."""
  path = os.environ.get(VARIABLE)
  if not path:
    return
  file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

  def wrapped(name, function):
    # A generator-based context manager is entered later than it is called, which is no matter here.
    @functools.wraps(function)
    def call(*args, **kwargs):
      os.write(file, f"{name} {time.monotonic()}\n".encode())
      return function(*args, **kwargs)

    return call

  for point in POINTS:
    module, _, path = point.partition(":")
    owner = importlib.import_module(f"unilip_jax.{module}")
    *parents, attribute = path.split(".")
    for parent in parents:
      owner = getattr(owner, parent)
    function = inspect.getattr_static(owner, attribute)
    setattr(owner, attribute, wrapped(point, function))
  os.write(file, f"{START} {time.monotonic()}\n".encode())


def read(path: pathlib.Path) -> list[Event]:
  """Reads the complete lines of a file of phases; none if it does not exist."""
  try:
    text = path.read_text()
  except FileNotFoundError:
    return []
  rows = [line.split() for line in text[:text.rfind("\n") + 1].splitlines()]
  return [Event(name, float(at)) for name, at in rows]
