"""Checkpoints of a run, and the order in which a run finds its weights.

A workdir holds

  model.json            dimensions, so that the weights can be read without the run's config
  frozen/               weights that never change, written once
  checkpoints/<step>/   params, ema, optimizer (moments, discriminator, counters), data (JSON)

A run restores, in this order: 1 its own workdir, 2 `config.resume` (another run's state, optimizer and
data position included), 3 `config.init_from` (weights alone, the average where one was kept), 4 random.
Arrays are saved sharded, without a gather, while training goes on, and restore onto any other mesh.
The only file that touches orbax' CheckpointManager.
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
    """Opens (or creates) the workdir.

    Args:
      workdir: local or gs:// path.
      keep: newest checkpoints to keep; None keeps all.
      keep_every: also keep steps that are multiples of this; 0 keeps none.
      read_only: of another run: nothing is created, written or deleted.
    """
    self._workdir = orbax_io.absolute(workdir)
    self._manager = ocp.CheckpointManager(
        self._workdir / sources.STEPS,
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None,
            create=not read_only, read_only=read_only, enable_async_checkpointing=not read_only))

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def save_frozen(self, frozen: tree.Tree, dims: Mapping[str, Any]) -> None:
    """Writes what never changes during a run, if it is not there yet."""
    if jax.process_index() == 0:
      (self._workdir / sources.MODEL).write_text(json.dumps(dims, indent=2))
    # All hosts write together, or none does: one may see what another has not seen yet.
    folder = self._workdir / sources.FROZEN
    if frozen and "True" not in session.all_gather_text("frozen", str(folder.exists())):
      orbax_io.write_tree(folder, frozen)

  def save(self, step: int, state: state_lib.TrainState, data: Mapping[str, Any]) -> None:
    """Starts an asynchronous save; a checkpoint becomes visible only when it is whole.

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

    Args:
      abstract: ShapeDtypeStructs with shardings, of any mesh.
      step: defaults to the newest.

    Returns:
      (state, data position as saved).

    Raises:
      ValueError: if the saved arrays differ from `abstract`, with each path and both shapes.
    """
    step = self.latest_step() if step is None else step
    items = {name: item for name, item in _items(abstract).items() if item}
    folder = self._workdir / sources.STEPS / str(step)
    for name, item in items.items():
      _check_same(folder / name, item)
    restored = self._manager.restore(step, args=ocp.args.Composite(
        data=ocp.args.JsonRestore(),
        **{name: ocp.args.StandardRestore(item) for name, item in items.items()}))
    frozen = {}
    if abstract.frozen:
      _check_same(self._workdir / sources.FROZEN, abstract.frozen)
      frozen = orbax_io.restore_tree(self._workdir / sources.FROZEN, abstract.frozen)
    optimizer = restored["optimizer"]
    return state_lib.TrainState(
        step=optimizer["step"], seed=optimizer["seed"], params=restored["params"],
        opt_state=optimizer["opt_state"], ema=restored["ema"] if abstract.ema else {},
        gan=optimizer["gan"] if abstract.gan else {}, frozen=frozen), dict(restored["data"])

  def wait(self) -> None:
    """Shapes until pending saves are on disk; errors of the background save surface here."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.close()


def _items(state: state_lib.TrainState) -> dict[str, Any]:
  """The state as separately readable parts."""
  optimizer = {"step": state.step, "seed": state.seed, "opt_state": state.opt_state}
  if state.gan:
    optimizer["gan"] = state.gan
  return {"params": state.params, "ema": state.ema, "optimizer": optimizer}


def _check_same(folder: epath.Path, abstract: Any) -> None:
  """Raises ValueError listing every path that differs between a saved item and `abstract`."""
  if not folder.exists():
    raise ValueError(f"{folder} is absent: the checkpoint was written with other settings")
  errors.check_shapes(
      orbax_io.saved_shapes(folder), orbax_io.leaf_shapes(abstract),
      f"{folder} does not fit this config (was the size, the discriminator or what trains changed? use "
      "config.init_from to take weights alone)", source="checkpoint")
