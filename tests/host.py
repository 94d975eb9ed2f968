"""Runs one process of several without training, for tests/multihost: `python -m tests.host ACT`."""

import os
import pathlib
import signal
import sys
import time

from absl import logging

from unilip_jax.multihost import options as options_lib
from unilip_jax.multihost import preemption, session


def _late(index: int) -> None:
  """Process 1 never comes to the barrier."""
  session.doing("looking for its data")
  if index == 1:
    time.sleep(60)
  session.all_gather_text("the start", timeout=4)


def _lonely_wait(index: int) -> None:
  """Process 1 does not reach the step that process 0 waits in."""
  session.doing("reading the batch of step 7")
  if index == 1:
    time.sleep(60)
  with session.waiting("step 7"):
    time.sleep(60)


def _killed(index: int) -> None:
  """The process that $VICTIM names is killed."""
  session.doing("step 3")
  print("ready", flush=True)
  session.all_gather_text("ready")
  if index == int(os.environ["VICTIM"]):
    time.sleep(1.5)  # a heartbeat later
    os.kill(os.getpid(), signal.SIGKILL)
  time.sleep(60)


def _fails(index: int) -> None:
  """Process 1 fails."""
  session.all_gather_text("ready")
  if index == 1:
    raise ValueError("shard 7 is broken")
  time.sleep(60)


def _agree(index: int) -> None:
  """Steps at different speeds; process 1 gets SIGTERM. Prints the step where each stops."""
  assert session.all_gather_text("names", f"p{index}") == [f"p{i}" for i in range(session.count())]
  with preemption.StopRequest() as stop:
    if index == 1:
      os.kill(os.getpid(), signal.SIGTERM)
    step = 0
    while step < 10_000 and not stop.reached():
      step += 1
      time.sleep(0.01 + 0.003 * index)
    print(f"stopped at {step}", flush=True)


def _evaluate(index: int) -> None:
  """The same within an evaluation."""
  passed = 0
  with preemption.StopRequest() as stop:
    try:
      with stop.interruptible():
        while passed < 10_000:
          if index == 0 and passed == 5:
            os.kill(os.getpid(), signal.SIGTERM)
          preemption.preemption_point()
          passed += 1
          time.sleep(0.01 + 0.003 * index)
    except preemption.Stopped:
      print(f"stopped at {passed}", flush=True)


def _recover(index: int) -> None:
  """Saves two checkpoints; process 0 damages the newer one; prints the step that each restores."""
  import jax
  import jax.numpy as jnp

  from unilip_jax.optim import state as state_lib
  from unilip_jax.sharding import mesh as mesh_lib
  from unilip_jax.training import checkpoint

  folder = os.environ["FOLDER"]
  mesh = mesh_lib.make_mesh(fsdp=jax.device_count())
  sharded, replicated = mesh_lib.NamedSharding(mesh, mesh_lib.P("fsdp")), mesh_lib.replicated(mesh)

  def make(step):
    return jax.jit(lambda: state_lib.TrainState(
        step=jnp.int32(step), seed=jnp.uint32(0), opt_state=(), ema={}, gan={}, frozen={},
        params={"a": jnp.arange(2**16, dtype=jnp.float32) * step}),
        out_shardings=state_lib.TrainState(
            step=replicated, seed=replicated, opt_state=(), ema={}, gan={}, frozen={},
            params={"a": sharded}))()

  manager = checkpoint.Manager(folder, keep=None)
  for step in (3, 6):
    manager.save(step, make(step), {"step": step, "position": step})
    manager.wait()
  session.all_gather_text("saved")
  if index == 0:
    files = pathlib.Path(folder, "checkpoints/6").rglob(f"ocdbt.process_{session.count() - 1}/d/*")
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"?")
  session.all_gather_text("damaged")
  abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make(0))
  state, data = manager.restore(abstract)
  first = state.params["a"].addressable_shards[0]
  assert first.data[1] == (first.index[0].start or 0) * data["step"] + data["step"]
  print(f"restored {data['step']}", flush=True)
  manager.close()


def main() -> None:
  index = int(os.environ["UNILIP_PROCESS_INDEX"])
  options = options_lib.Options(
      coordinator=os.environ["UNILIP_COORDINATOR"], process_count=int(os.environ["UNILIP_PROCESS_COUNT"]),
      process_index=index, start_timeout=60, silence_timeout=5, wait_timeout=4)
  logging.set_verbosity(logging.INFO)
  with session.joined(options, sys.argv[1:], lambda error: f"error: {error}"):
    globals()[f"_{sys.argv[1]}"](index)


if __name__ == "__main__":
  try:
    main()
  except ValueError as error:
    sys.exit(f"error: {error}")
