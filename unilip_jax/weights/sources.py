"""Opens weights of every kind: a run, a checkpoint of it, an imported folder, or a registered prefix.

Paths are local or gs://. Plug-ins register prefixes such as "shapes:" of "shapes:gen3" with the function
that opens the rest of the path (common/registry.py, group "weights").
"""

import json

from absl import logging
from etils import epath

from unilip_jax.common import registry
from unilip_jax.weights import download_hints, orbax_io
from unilip_jax.weights import folder as folder_lib
from unilip_jax.weights import stored as stored_lib

STEPS = "checkpoints"
FROZEN = "frozen"
MODEL = folder_lib.MODEL


def open_weights(path: str) -> stored_lib.Stored:
  """Opens weights without the optimizer; reads no array yet.

  Args:
    path: a workdir (its newest checkpoint), `workdir/checkpoints/<step>`, a folder from
      `unilip_jax.convert import`, or "<prefix>:<name>" of a plug-in.

  Returns:
    The weights. Of a run: the EMA, or the parameters of a run without one, and the frozen weights.

  Raises:
    FileNotFoundError: if there are no weights; the message explains what to download or run.
    ValueError: if a folder is damaged or of another format.
  """
  prefix, colon, name = str(path).partition(":")
  if colon and not name.startswith("//") and registry.has("weights", prefix):
    return registry.find("weights", prefix)(name)
  if (folder := _imported_folder(path)) is not None:
    return folder_lib.open_folder(folder)
  workdir, items = _items_of(path)
  model = json.loads((workdir / MODEL).read_text())
  return stored_lib.Stored(str(path), model, tuple(("", item) for item in items))


def trained_modules(path: str) -> list[str]:
  """Lists the modules of which a run trained at least a part.

  Args:
    path: a workdir or `workdir/checkpoints/<step>`.

  Raises:
    FileNotFoundError: if there is no checkpoint.
  """
  return sorted(orbax_io.saved_tree(_step_of(path)[1] / "params"))


def newest_step(workdir: str) -> int:
  """Returns the step of a run's newest checkpoint.

  Raises:
    FileNotFoundError: if there is none.
  """
  return int(_step_of(workdir)[1].name)


def _imported_folder(path: str) -> epath.Path | None:
  """Returns the folder if it holds imported weights, else None."""
  folder = orbax_io.absolute(path)
  if (folder / STEPS).exists() and (folder / "params").exists():
    raise ValueError(f"{folder} holds imported weights (params/) and a run ({STEPS}/); move one of them to "
                     f"another folder, or name a step, {folder / STEPS}/<step>")
  is_run = folder.parent.name == STEPS or (folder / STEPS).exists()
  return None if is_run or not (folder / MODEL).exists() else folder


def _items_of(path: str) -> tuple[epath.Path, list[epath.Path]]:
  """Returns (workdir, orbax folders of a run's weights)."""
  workdir, step_folder = _step_of(path)
  item = step_folder / "ema"
  if not item.exists():
    item = step_folder / "params"
  if not item.exists():
    raise FileNotFoundError(f"{step_folder} holds no weights: expected a folder params/ or ema/")
  logging.info("weights of %s: %s", step_folder, item.name)
  frozen = workdir / FROZEN
  return workdir, [item, frozen] if frozen.exists() else [item]


def _step_of(path: str) -> tuple[epath.Path, epath.Path]:
  """Returns (workdir, folder of the newest or the named step)."""
  folder = orbax_io.absolute(path)
  if folder.parent.name == STEPS:
    return folder.parent.parent, folder
  if (folder / STEPS).exists():
    return folder, _newest(folder)
  raise FileNotFoundError(download_hints.missing_weights_message(str(path)))


def _newest(workdir: epath.Path) -> epath.Path:
  steps = [p for p in (workdir / STEPS).iterdir() if p.name.isdigit()]
  if not steps:
    raise FileNotFoundError(f"{workdir / STEPS} holds no finished checkpoint")
  return max(steps, key=lambda p: int(p.name))
