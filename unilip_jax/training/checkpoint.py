"""Checkpoints of a run, and the order in which a run looks for its first state.

A workdir holds

  model.json            dimensions: the weights can be read without the run's config
  frozen/               weights that never change, written once
  checkpoints/<step>/   params, ema, old (policy of reward training), optimizer (moments, discriminator,
                        counters), data (JSON), checksums.json (weights/checksums.py)

A run restores, in this order: 1 its own workdir, 2 `config.resume` (another run's state, including
optimizer and data position), 3 `config.init_from` (weights alone: the EMA, or the parameters of a run
without one), 4 random weights. Arrays are saved sharded, without a gather, while training continues, and
can be restored onto any other mesh. No other file uses orbax' CheckpointManager.

Files are verified before they are read. A damaged newest checkpoint is renamed to <step>.damaged, and the
run continues from the one before it. If none is sound, the run stops and nothing is renamed.
"""

from collections.abc import Mapping
import json
from typing import Any

from absl import logging
from etils import epath
import jax
import ml_collections

from unilip_jax.common import errors, free_memory, json_file, tree
from unilip_jax.multihost import session
from unilip_jax.optim import state as state_lib
from unilip_jax.weights import checksums, finite, orbax_io, sources

ocp = orbax_io.library()  # as every use of orbax here, set up


class Manager:
  """Saves and restores the training state of one workdir."""

  def __init__(
      self, workdir: str, *, keep: int | None, keep_every: int = 0, read_only: bool = False):
    """Opens the workdir, or creates it.

    Args:
      workdir: local or gs:// path.
      keep: number of the newest checkpoints to keep; None keeps all.
      keep_every: also keep steps that are multiples of this; 0 keeps no more.
      read_only: create, write and delete nothing; for another run's workdir.
    """
    self._workdir = orbax_io.absolute(workdir)
    self._steps = self._workdir / sources.STEPS
    self._read_only, self._keep, self._keep_every = read_only, keep, keep_every
    self._saving = 0  # step of the newest save
    if not read_only and session.index() == 0 and "://" not in str(self._workdir):
      for folder in (self._workdir, self._steps):
        orbax_io.remove_unfinished(folder)
    self._manager = ocp.CheckpointManager(
        self._steps,
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None,
            create=not read_only, read_only=read_only, enable_async_checkpointing=not read_only,
            lightweight_initialize=True,  # reads no notes of orbax, which may be damaged
            # Called in the background on process 0, when all processes have written their files and before
            # the checkpoint gets its final name.
            async_options=None if read_only else ocp.AsyncOptions(
                post_finalization_callback=lambda: orbax_io.write_checksums(
                    self._steps / str(self._saving)))))

  def latest_step(self) -> int | None:
    """Returns the step of the newest checkpoint, or None."""
    return self._manager.latest_step()

  def save_frozen(self, frozen: tree.Tree, dims: Mapping[str, Any]) -> None:
    """Writes model.json, and the frozen weights unless they exist.

    Args:
      frozen: weights that never change during the run.
      dims: model.json.
    """
    if jax.process_index() == 0:
      json_file.write(self._workdir / sources.MODEL, dims, checksum=True)
    # All hosts write or none: a folder may be visible to one host before it is visible to another.
    folder = self._workdir / sources.FROZEN
    if frozen and "True" not in session.all_gather_text("frozen", str(orbax_io.is_complete(folder))):
      orbax_io.write_tree(folder, frozen, overwrite=True)  # of a killed process, in an object store

  def save(self, step: int, state: state_lib.TrainState, data: Mapping[str, Any]) -> None:
    """Starts an asynchronous save; a checkpoint becomes visible when it is complete.

    Args:
      step: name of the checkpoint, state.step.
      state: sharded arrays; may be donated to the next step as soon as this returns.
      data: JSON-ready data position.
    """
    if self._manager.latest_step() == step:
      return
    items = {
        name: ocp.args.StandardSave(item) for name, item in _items(state).items() if item}
    self._manager.wait_until_finished()  # orbax waits too, but after `_saving` would have changed
    free_memory.release()  # of the host copies of the last save; before the first, of the compiler
    self._saving = step
    self._manager.save(
        step, args=ocp.args.Composite(data=ocp.args.JsonSave(dict(data)), **items))

  def restore(
      self, abstract: state_lib.TrainState, step: int | None = None
  ) -> tuple[state_lib.TrainState, dict[str, Any]]:
    """Reads a checkpoint onto the shardings of `abstract`.

    Items are read one after another, each with a bounded host copy (orbax_io.restore_tree).

    Args:
      abstract: ShapeDtypeStructs with shardings, of any mesh.
      step: the default is the newest sound checkpoint; damaged newer ones are renamed to <step>.damaged.

    Returns:
      (state, data position as saved).

    Raises:
      ValueError: if the saved arrays differ from `abstract`, with each path and both shapes; if weights
        are NaN or infinite.
      checksums.DamagedError: naming each damaged file, if no checkpoint is sound, if `step` is given, if
        another run's newest checkpoint is damaged (read_only), or if the frozen weights are.
    """
    resumes = step is None
    if resumes:
      step = self._recover()
    elif wrong := self._faults(self._steps / str(step)):
      raise checksums.damaged(wrong, sources.older_step_remedy(self._workdir, step))
    folder = self._steps / str(step)
    items = {name: item for name, item in _items(abstract).items() if item}
    folders = {name: folder / name for name in items}
    if abstract.frozen:
      items["frozen"], folders["frozen"] = abstract.frozen, self._workdir / sources.FROZEN
      if wrong := self._faults(folders["frozen"]):
        raise checksums.damaged(wrong, sources.frozen_remedy(self._workdir))
    for name, item in items.items():
      _check_equal_shapes(folders[name], item)
    data = _read_data(folder)
    restored = {name: orbax_io.restore_tree(folders[name], item) for name, item in items.items()}
    finite.check(tree.flatten({name: restored[name] for name in ("params", "ema") if name in restored}),
                 str(folder), sources.older_step_remedy(self._workdir, step))
    if resumes:
      self._delete_superseded()
    optimizer = restored["optimizer"]
    return state_lib.TrainState(
        step=optimizer["step"], seed=optimizer["seed"], params=restored["params"],
        opt_state=optimizer["opt_state"], ema=restored.get("ema", {}), gan=optimizer.get("gan", {}),
        frozen=restored.get("frozen", {}), old=restored.get("old", {})), data

  def _recover(self) -> int:
    """Returns the newest sound step, and renames the damaged newer ones; equal on all processes."""
    damaged: dict[int, list[str]] = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      if not (wrong := self._faults(self._steps / str(step))):
        for number, lines in damaged.items():
          self._set_aside(number, lines, step)
        if damaged:
          self._manager.reload()
        return step
      if self._read_only:
        raise checksums.damaged(wrong, sources.older_step_remedy(self._workdir, step))
      damaged[step] = wrong
    if not damaged:
      raise FileNotFoundError(f"{self._steps} holds no checkpoint")
    raise checksums.damaged(
        [line for lines in damaged.values() for line in lines],
        f"no checkpoint in {self._steps} is sound: copy these files from a backup, or delete the folder to "
        "start again")

  def _delete_superseded(self) -> None:
    """Deletes the checkpoints that a process was to delete when it was killed, after its last save."""
    if self._read_only or self._keep is None:
      return
    old = [step for step in sorted(self._manager.all_steps())[:-self._keep]
           if not self._keep_every or step % self._keep_every]
    shares = session.all_gather_text("the superseded checkpoints", str(old))
    for step in old if len(set(shares)) == 1 else ():  # else the next save deletes them
      self._manager.delete(step)

  def _set_aside(self, step: int, lines: list[str], sound: int) -> None:
    """Renames a damaged checkpoint, so that neither orbax nor a reader takes it for one."""
    if session.index() == 0:
      folder = self._steps / str(step)
      names = [f"{step}.damaged", *(f"{step}.damaged-{i}" for i in range(2, 1000))]
      aside = next(p for p in map(self._steps.joinpath, names) if not p.exists())
      folder.rename(aside)
      logging.error(
          "checkpoint %d is damaged and was renamed to %s:\n%s\nThe run continues from step %d. The "
          "renamed folder may be deleted.", step, aside, errors.listed(lines), sound)
    session.all_gather_text(f"the damaged checkpoint {step} is renamed")

  def _faults(self, folder: epath.Path) -> list[str]:
    """Lists the damaged files of a checkpoint or of the frozen weights; equal on all processes."""
    wrong = checksums.faults_on_all(folder)
    if wrong is None:
      checksums.log_unverified(folder)
      shares = session.all_gather_text(f"{folder} is readable", json.dumps(_unreadable(folder)))
      wrong = sorted({line for share in shares for line in json.loads(share)})
    return wrong

  def wait(self) -> None:
    """Blocks until pending saves are on disk; raises the errors of background saves."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for pending saves and ends orbax' threads."""
    self._manager.close()


def open_run(config: ml_collections.ConfigDict, workdir: str) -> Manager:
  """Opens the workdir of a run to write to, and checks that all hosts see the same checkpoints."""
  free_memory.limit_fragmentation()  # each save runs in new threads
  manager = Manager(workdir, keep=config.keep_checkpoints, keep_every=config.keep_every_steps)
  session.assert_equal_across_hosts(
      "the newest checkpoint", str(manager.latest_step()), f"is {workdir} the same folder on all hosts?")
  return manager


def _read_data(folder: epath.Path) -> dict[str, Any]:
  """Reads the data position of a checkpoint."""
  return json_file.read(folder / "data" / "metadata", remedy=f"{folder} is damaged",
                        kinds={"step": int, "position": int})


def _unreadable(folder: epath.Path) -> list[str]:
  """Lists what is wrong with a folder without checksums, as far as its descriptions show it."""
  is_step = folder.name != sources.FROZEN
  wrong = []
  for item in [folder / "params", folder / "optimizer"] if is_step else [folder]:
    try:
      orbax_io.saved_tree(item)
    except (checksums.DamagedError, FileNotFoundError) as error:
      wrong.append(f"  {error}")
  if is_step:
    try:
      _read_data(folder)
    except (ValueError, FileNotFoundError) as error:
      wrong.append(f"  {error}")
  return wrong


def _items(state: state_lib.TrainState) -> dict[str, Any]:
  """Divides the state into items that can be read separately."""
  optimizer = {"step": state.step, "seed": state.seed, "opt_state": state.opt_state}
  if state.gan:
    optimizer["gan"] = state.gan
  return {"params": state.params, "ema": state.ema, "old": state.old, "optimizer": optimizer}


def _check_equal_shapes(folder: epath.Path, abstract: Any) -> None:
  """Raises ValueError that lists every path that differs between a saved item and `abstract`."""
  if not folder.exists():
    raise ValueError(f"{folder} is absent: the checkpoint was written with other settings")
  errors.check_shapes(
      orbax_io.saved_shapes(folder), orbax_io.leaf_shapes(abstract),
      f"{folder} does not fit this config (were the size, the discriminator or the trained parameters "
      "changed? then give another --workdir, and config.init_from to take weights alone)",
      source="checkpoint")
