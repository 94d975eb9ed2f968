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

from absl import logging
from etils import epath
import jax
import orbax.checkpoint as ocp

from unilip_jax import downloads, hosts, orbax_io, shipped, tree, weights
from unilip_jax import state as state_lib

_MODEL = "model.json"
_FROZEN = "frozen"
_STEPS = "checkpoints"


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
        self._workdir / _STEPS,
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None,
            create=not read_only, read_only=read_only, enable_async_checkpointing=not read_only))

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def save_once(self, frozen: tree.Tree, dims: Mapping[str, Any]) -> None:
    """Writes what never changes during a run, if it is not there yet."""
    if jax.process_index() == 0:
      (self._workdir / _MODEL).write_text(json.dumps(dims, indent=2))
    # All hosts write together, or none does: one may see what another has not seen yet.
    if frozen and "True" not in hosts.gather("frozen", str((self._workdir / _FROZEN).exists())):
      orbax_io.write_tree(self._workdir / _FROZEN, frozen)

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
    folder = self._workdir / _STEPS / str(step)
    for name, item in items.items():
      _check_same(folder / name, item)
    restored = self._manager.restore(step, args=ocp.args.Composite(
        data=ocp.args.JsonRestore(),
        **{name: ocp.args.StandardRestore(item) for name, item in items.items()}))
    frozen = {}
    if abstract.frozen:
      _check_same(self._workdir / _FROZEN, abstract.frozen)
      frozen = orbax_io.restore_tree(self._workdir / _FROZEN, abstract.frozen)
    optimizer = restored["optimizer"]
    return state_lib.TrainState(
        step=optimizer["step"], seed=optimizer["seed"], params=restored["params"],
        opt_state=optimizer["opt_state"], ema=restored["ema"] if abstract.ema else {},
        gan=optimizer["gan"] if abstract.gan else {}, frozen=frozen), dict(restored["data"])

  def wait(self) -> None:
    """Blocks until pending saves are on disk; errors of the background save surface here."""
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
  saved, wanted = orbax_io.saved_shapes(folder), orbax_io.leaf_shapes(abstract)
  wrong = [
      f"  {path}: checkpoint {saved.get(path, 'absent')}, model {wanted.get(path, 'absent')}"
      for path in sorted(saved.keys() | wanted.keys()) if saved.get(path) != wanted.get(path)]
  if wrong:
    more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
    raise ValueError(
        f"{folder} does not fit this config (was the size, the discriminator or what trains "
        "changed? use config.init_from to take weights alone):\n" + "\n".join(wrong[:20]) + more)


def load_weights(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads the weights of a run or of an imported folder, without optimizer.

  Args:
    path: a workdir (its newest checkpoint), `workdir/checkpoints/<step>`, or a folder written by
      `unilip_jax.convert import`, local or gs://; or "blocks:<name>", which ships (shipped.py).

  Returns:
    ({module: nested dict of numpy arrays}, model.json as a dict). Of a run, the average (EMA) is
    returned where one was kept, and the frozen weights with it.

  Raises:
    FileNotFoundError: if nothing is there, saying what to download or run.
  """
  if str(path).startswith(shipped.PREFIX):
    return shipped.load(str(path).removeprefix(shipped.PREFIX))
  if (folder := _imported(path)) is not None:
    return weights.load_weights(folder)
  workdir, items = _items_of(path)
  modules = tree.merge(*(orbax_io.read_tree(item) for item in items))
  return modules, json.loads((workdir / _MODEL).read_text())


def open_weights(path: str) -> weights.Stored:
  """The same weights, to be read in parts and straight onto the devices; errors as of `load_weights`."""
  if str(path).startswith(shipped.PREFIX):
    modules, model = shipped.load(str(path).removeprefix(shipped.PREFIX))
    return weights.Stored(str(path), model, arrays=tree.flatten(modules))
  if (folder := _imported(path)) is not None:
    return weights.open_weights(folder)
  workdir, items = _items_of(path)
  model = json.loads((workdir / _MODEL).read_text())
  return weights.Stored(str(path), model, tuple(("", item) for item in items))


def _imported(path: str) -> epath.Path | None:
  """The folder, if it is one of imported weights."""
  folder = orbax_io.absolute(path)
  is_run = folder.parent.name == _STEPS or (folder / _STEPS).exists()
  return None if is_run or not (folder / _MODEL).exists() else folder


def _items_of(path: str) -> tuple[epath.Path, list[epath.Path]]:
  """(workdir, folders that hold a run's weights)."""
  workdir, step_folder = _step_of(path)
  item = step_folder / "ema"
  if not item.exists():
    item = step_folder / "params"
  if not item.exists():
    raise FileNotFoundError(f"{step_folder} holds no weights: expected a folder params/ or ema/")
  logging.info("weights of %s: %s", step_folder, item.name)
  frozen = workdir / _FROZEN
  return workdir, [item, frozen] if frozen.exists() else [item]


def trained_modules(path: str) -> list[str]:
  """The modules of which a run trained at least a part.

  Args:
    path: a workdir or `workdir/checkpoints/<step>`.

  Raises:
    FileNotFoundError: if there is no checkpoint.
  """
  return sorted(orbax_io.saved_tree(_step_of(path)[1] / "params"))


def newest_step(workdir: str) -> int:
  """The step of a run's newest checkpoint.

  Raises:
    FileNotFoundError: if there is none.
  """
  return int(_step_of(workdir)[1].name)


def _step_of(path: str) -> tuple[epath.Path, epath.Path]:
  """(workdir, folder of the newest or the named step)."""
  folder = orbax_io.absolute(path)
  if folder.parent.name == _STEPS:
    return folder.parent.parent, folder
  if (folder / _STEPS).exists():
    return folder, _newest(folder)
  raise FileNotFoundError(downloads.missing_weights_message(str(path)))


def _newest(workdir: epath.Path) -> epath.Path:
  steps = [p for p in (workdir / _STEPS).iterdir() if p.name.isdigit()]
  if not steps:
    raise FileNotFoundError(f"{workdir / _STEPS} holds no finished checkpoint")
  return max(steps, key=lambda p: int(p.name))
