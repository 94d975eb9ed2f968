"""Checkpoints of a run, and the order in which a run looks for its first state.

A workdir holds

  model.json            dimensions: the weights can be read without the run's config
  frozen/               weights that never change, written once
  checkpoints/<step>/   params, ema, optimizer (moments, discriminator, counters), data (JSON)

A run restores, in this order: 1 its own workdir, 2 `config.resume` (another run's state, including
optimizer and data position), 3 `config.init_from` (weights alone: the EMA, or the parameters of a run
without one), 4 random weights. Arrays are saved sharded, without a gather, while training continues, and
can be restored onto any other mesh. No other file uses orbax' CheckpointManager.
"""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp

from unilip_jax.common import errors, tree
from unilip_jax.multihost import session
from unilip_jax.optim import state as state_lib
from unilip_jax.weights import orbax_io, sources


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
    self._manager = ocp.CheckpointManager(
        self._workdir / sources.STEPS,
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None,
            create=not read_only, read_only=read_only, enable_async_checkpointing=not read_only))

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
      (self._workdir / sources.MODEL).write_text(json.dumps(dims, indent=2))
    # All hosts write or none: a folder may be visible to one host before it is visible to another.
    folder = self._workdir / sources.FROZEN
    if frozen and "True" not in session.all_gather_text("frozen", str(folder.exists())):
      orbax_io.write_tree(folder, frozen)

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
    self._manager.save(
        step, args=ocp.args.Composite(data=ocp.args.JsonSave(dict(data)), **items))

  def restore(
      self, abstract: state_lib.TrainState, step: int | None = None
  ) -> tuple[state_lib.TrainState, dict[str, Any]]:
    """Reads a checkpoint onto the shardings of `abstract`.

    Items are read one after another, each with a bounded host copy (orbax_io.restore_tree).

    Args:
      abstract: ShapeDtypeStructs with shardings, of any mesh.
      step: defaults to the newest.

    Returns:
      (state, data position as saved).

    Raises:
      ValueError: if the saved arrays differ from `abstract`, with each path and both shapes.
    """
    step = self.latest_step() if step is None else step
    folder = self._workdir / sources.STEPS / str(step)
    items = {name: item for name, item in _items(abstract).items() if item}
    folders = {name: folder / name for name in items}
    if abstract.frozen:
      items["frozen"], folders["frozen"] = abstract.frozen, self._workdir / sources.FROZEN
    for name, item in items.items():
      _check_equal_shapes(folders[name], item)
    data = self._manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]
    restored = {name: orbax_io.restore_tree(folders[name], item) for name, item in items.items()}
    optimizer = restored["optimizer"]
    return state_lib.TrainState(
        step=optimizer["step"], seed=optimizer["seed"], params=restored["params"],
        opt_state=optimizer["opt_state"], ema=restored.get("ema", {}), gan=optimizer.get("gan", {}),
        frozen=restored.get("frozen", {})), dict(data)

  def wait(self) -> None:
    """Blocks until pending saves are on disk; raises the errors of background saves."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for pending saves and ends orbax' threads."""
    self._manager.close()


def _items(state: state_lib.TrainState) -> dict[str, Any]:
  """Divides the state into items that can be read separately."""
  optimizer = {"step": state.step, "seed": state.seed, "opt_state": state.opt_state}
  if state.gan:
    optimizer["gan"] = state.gan
  return {"params": state.params, "ema": state.ema, "optimizer": optimizer}


def _check_equal_shapes(folder: epath.Path, abstract: Any) -> None:
  """Raises ValueError that lists every path that differs between a saved item and `abstract`."""
  if not folder.exists():
    raise ValueError(f"{folder} is absent: the checkpoint was written with other settings")
  errors.check_shapes(
      orbax_io.saved_shapes(folder), orbax_io.leaf_shapes(abstract),
      f"{folder} does not fit this config (were the size, the discriminator or the trained parameters "
      "changed? use config.init_from to take weights alone)", source="checkpoint")
