"""Opens weights of every kind: a run, a checkpoint of it, an imported folder, or a registered prefix.

Paths are local or gs://. Plug-ins register prefixes such as "shapes:" of "shapes:gen3" with the function
that opens the rest of the path (common/registry.py, group "weights").
"""

from absl import logging
from etils import epath

from unilip_jax.common import json_file, registry
from unilip_jax.weights import checksums, download_hints, orbax_io
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
  model = json_file.read(
      workdir / MODEL, remedy="start the run's training command again: it writes the file, even if no "
      "step is left", kinds={"modules": dict}, optional={"generate": dict})
  if wrong := [name for name, dims in model["modules"].items() if not isinstance(dims, dict | None)]:
    raise ValueError(f"{workdir / MODEL} is damaged: the dimensions of {', '.join(wrong)} are no objects")
  return stored_lib.Stored(
      str(path), model, tuple(("", item) for item in items),
      remedies={str(item): _remedy(workdir, item) for item in items})


def trained_modules(path: str) -> list[str]:
  """Lists the modules of which a run trained at least a part.

  Args:
    path: a workdir or `workdir/checkpoints/<step>`.

  Raises:
    FileNotFoundError: if there is no checkpoint.
  """
  return sorted(orbax_io.saved_tree(_step_of(path)[1] / "params"))


def has_checkpoint(workdir: epath.PathLike) -> bool:
  """Returns whether a workdir holds a finished checkpoint."""
  return bool(steps_of(orbax_io.absolute(workdir)))


def newest_step(workdir: str) -> int:
  """Returns the step of a run's newest checkpoint.

  Raises:
    FileNotFoundError: if there is none.
  """
  return int(_step_of(workdir)[1].name)


def split_step(path: str) -> tuple[str, int | None]:
  """Splits `workdir/checkpoints/<step>` into (workdir, step); of another path the step is None."""
  folder = orbax_io.absolute(path)
  if folder.parent.name == STEPS and folder.name.isdigit():
    return str(folder.parent.parent), int(folder.name)
  return path, None


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
    if "ema" in checksums.subfolders(step_folder):
      raise checksums.damaged(
          [f"  {item}: absent"], older_step_remedy(workdir, int(step_folder.name)))
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


def steps_of(workdir: epath.Path) -> list[int]:
  """Lists the steps of a run's complete checkpoints, in order; without damaged ones that were set aside."""
  folder = workdir / STEPS
  return sorted(int(p.name) for p in (folder.iterdir() if folder.exists() else ())
                if p.name.isdigit() and orbax_io.is_complete(p))


def _newest(workdir: epath.Path) -> epath.Path:
  steps = steps_of(workdir)
  if not steps:
    raise FileNotFoundError(f"{workdir / STEPS} holds no finished checkpoint; run the command of its "
                            "training again, which continues it")
  return workdir / STEPS / str(steps[-1])


def _remedy(workdir: epath.Path, item: epath.Path) -> str:
  """Returns what to do about damaged weights of a run."""
  if item.name == FROZEN:
    return frozen_remedy(workdir)
  return older_step_remedy(workdir, int(item.parent.name) if item.parent.name.isdigit() else 0)


def frozen_remedy(workdir: epath.Path) -> str:
  """Returns what to do about damaged frozen weights of a run."""
  return (f"{workdir / FROZEN} is written once in a run: copy these files from a backup, or train again in "
          "another workdir")


def older_step_remedy(workdir: epath.Path, step: int) -> str:
  """Returns which checkpoint of a run to use if that of `step` is damaged."""
  older = [s for s in steps_of(workdir) if s < step]
  if not older:
    return f"{workdir} holds no older checkpoint: copy the files from a backup, or train again"
  return (f"use the checkpoint before it, {workdir / STEPS / str(older[-1])}; training in {workdir} "
          "continues from there by itself")
