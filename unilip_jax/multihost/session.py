"""Joins the processes of a run: start, barriers that name who is missing, waits with a timeout.

Processes meet (rendezvous.py), connect to JAX's coordination service in process 0, and exchange heartbeats
(watchdog.py). When one is lost, all end with a message that names it; rerunning the same command continues
from the last checkpoint. On a single process every function here does nothing.

Barriers use the coordination service directly. The barriers of multihost_utils and orbax
(sync_global_devices, sync_global_processes) are collectives on the devices: they have no timeout, and a
process that does not come is not named.

The only file that uses private parts of JAX.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import contextlib
import os
import time
import uuid

from absl import logging
from etils import epath
import jax
from jax._src import clusters, distributed

from unilip_jax.multihost import coordinator, rendezvous, watchdog
from unilip_jax.multihost import options as options_lib

_GATHER = "unilip/gather/"
_JAX_EXTRA_SECONDS = 30  # JAX's own heartbeat ends the process this much later, if the watchdog fails
_SHARED_SECONDS = 30.0  # until a network file system shows a new file to other hosts


_watchdog: watchdog.Watchdog | None = None
_rounds: collections.Counter[str] = collections.Counter()  # of each barrier's name


@contextlib.contextmanager
def joined(
    options: options_lib.Options, command: Sequence[str], explain: Callable[[BaseException], str]
) -> Iterator[None]:
  """Joins the other processes; an error inside ends all of them with a message.

  Args:
    options: how to find the others.
    command: the arguments that must be the same on every process.
    explain: returns the message of an error, for the log.

  Raises:
    rendezvous.MeetingError: if processes are missing at the end of the timeout, or differ in `command`.
    ValueError: for options that exclude each other, or if no cluster is detected.
  """
  global _watchdog
  place = resolve(options)
  if place is None:
    yield
    return
  names = rendezvous.meet(
      place.coordinator, place.count, place.index, command, options.start_timeout)
  death_notice = watchdog.DeathNotice(place, names)
  # preemption.py handles SIGTERM, and states why.
  jax.config.update("jax_enable_preemption_service", False)
  with _service_in_child(options.silence_timeout + _JAX_EXTRA_SECONDS):
    jax.distributed.initialize(
        place.coordinator, place.count, place.index, place.devices,
        cluster_detection_method="deactivate", initialization_timeout=int(options.start_timeout),
        heartbeat_timeout_seconds=int(options.silence_timeout + _JAX_EXTRA_SECONDS),
        shutdown_timeout_seconds=int(options.wait_timeout))
  _watchdog = watchdog.Watchdog(
      distributed.global_state.client, place, names, options, death_notice)
  _watchdog.start()
  logging.info("process %d of %d (%s), found by %s; coordinator %s", place.index, place.count,
               names[place.index], place.found_by, place.coordinator)
  try:
    yield
    all_gather_text("end")
  except BaseException as error:
    _watchdog.fail(error, explain(error))
  _watchdog.stop()
  _watchdog = None
  jax.distributed.shutdown()
  death_notice.cancel()


@contextlib.contextmanager
def _service_in_child(linger: float) -> Iterator[None]:
  """Makes jax.distributed.initialize start the coordination service in a child process (coordinator.py)."""
  original = distributed._jax.get_distributed_runtime_service
  distributed._jax.get_distributed_runtime_service = coordinator.starter(linger)
  try:
    yield
  finally:
    distributed._jax.get_distributed_runtime_service = original


def resolve(options: options_lib.Options) -> options_lib.Place | None:
  """Returns this process's place among the others; None if it is alone.

  Raises:
    ValueError: for options that exclude each other, or if no cluster is detected.
  """
  given = {
      "--coordinator": options.coordinator or None,
      "--process_count": options.process_count, "--process_index": options.process_index}
  absent = [name for name, value in given.items() if value is None]
  if len(absent) < len(given):
    if absent:
      raise ValueError(f"{', '.join(n for n in given if n not in absent)} without {', '.join(absent)}: "
                       "the three go together")
    if options.multihost is False:
      raise ValueError("--nomultihost with --coordinator: choose one")
    count, index = options.process_count, options.process_index
    if count < 1 or not 0 <= index < count:
      raise ValueError(f"--process_index={index} is none of --process_count={count}, numbered from 0")
    rendezvous.split_address(options.coordinator)
    return options_lib.Place(options.coordinator, count, index, None, "flags") if count > 1 else None
  detect = options.multihost
  if detect is None:
    detect = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
  return _detect(options.start_timeout) if detect else None


def _detect(timeout: float) -> options_lib.Place | None:
  """Returns the place that JAX detects from the cluster's environment; None for a single process."""
  address, count, index, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
      os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, int(timeout))
  if None in (address, count, index):
    raise ValueError(
        "--multihost: JAX detects no cluster here (TPU pod, SLURM inside srun, Open MPI, Kubernetes); "
        "give --coordinator=HOST:PORT --process_count=N --process_index=I")
  # JAX gives a SLURM task one GPU, its local number. A task that has its node to itself takes all.
  if "SLURM_STEP_NUM_NODES" in os.environ and int(os.environ["SLURM_STEP_NUM_NODES"]) == count:
    devices = None
  return options_lib.Place(address, count, index, devices, "JAX") if count > 1 else None


def description() -> str:
  """Returns this process's number and devices, for the log."""
  devices = ", ".join(str(d) for d in jax.local_devices())
  return f"process {jax.process_index()} of {jax.process_count()}, devices: {devices}"


def watched() -> bool:
  """Returns whether this process is one of several that exchange heartbeats."""
  return _watchdog is not None


def index() -> int:
  """Returns this process's number in the coordination service; 0 if it is alone."""
  return distributed.global_state.process_id


def count() -> int:
  """Returns the number of processes in the coordination service; 1 if this one is alone."""
  return distributed.global_state.num_processes


def listen(listener: watchdog.Listener) -> None:
  """Calls `listener(rows, post, left)` at every heartbeat, from the watchdog's thread.

  `rows` are the entries that listeners have posted, {key: text}; `post(key, text)` writes one for all;
  `left` are the processes that have ended in order. It returns whether to call it again soon.
  """
  if _watchdog is not None:
    _watchdog.listeners.append(listener)


def all_gather_text(name: str, text: str = "", timeout: float | None = None) -> list[str]:
  """Waits for all processes at a barrier and returns the text of each, by process number.

  Args:
    name: the same on all processes; may be used again.
    text: of this process.
    timeout: seconds; None takes the run's wait_timeout.

  Raises:
    watchdog.LateError: naming the processes that did not come in time.
  """
  state = distributed.global_state
  if state.client is None or state.num_processes == 1:
    return [text]
  seconds = timeout or (
      _watchdog.options.wait_timeout if _watchdog else options_lib.Options.wait_timeout)
  folder = f"{_GATHER}{name}#{_rounds[name]}/"
  _rounds[name] += 1
  state.client.key_value_set(f"{folder}{state.process_id}", f"={text}")
  with _at(f"the barrier {name!r}"):
    try:
      state.client.wait_at_barrier(folder, int(seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
      present = _read_texts(state.client, folder)
      missing = [i for i in range(state.num_processes) if i not in present]
      if not missing:
        raise
      raise watchdog.LateError(
          f"the barrier {name!r} was not reached within {seconds:.0f} s by "
          f"{', '.join(_watchdog.describe(i) if _watchdog else f'process {i}' for i in missing)}"
      ) from error
  texts = _read_texts(state.client, folder)
  return [texts[i] for i in range(state.num_processes)]


def _read_texts(client, folder: str) -> dict[int, str]:
  return {int(key.rsplit("/", 1)[1]): text[1:] for key, text in client.key_value_dir_get(folder)}


def assert_equal_across_hosts(name: str, text: str, remedy: str) -> None:
  """Raises watchdog.HostsError on all processes if `text` differs between them."""
  texts = all_gather_text(f"same {name}", text)
  other = next((i for i, t in enumerate(texts) if t != texts[0]), None)
  if other is not None:
    raise watchdog.HostsError(
        f"{name} differs between hosts: {texts[0]} on process 0, {texts[other]} on process {other}; "
        f"{remedy}")


def check_shared(folder: epath.PathLike) -> None:
  """Checks that all hosts see the same folder.

  Raises:
    watchdog.HostsError: naming the process that does not see what process 0 writes.
  """
  if not watched():
    return
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  mark = folder / f".hosts-{all_gather_text('mark', uuid.uuid4().hex)[0]}"
  if index() == 0:
    for leftover in folder.glob(".hosts-*"):  # of killed processes
      leftover.unlink()
    mark.write_text("written by process 0, to be read by all processes; it may be deleted")
  all_gather_text("mark written")
  deadline = time.monotonic() + _SHARED_SECONDS
  while not mark.exists() and time.monotonic() < deadline:
    time.sleep(0.5)
  blind = [
      _watchdog.describe(i) for i, seen in enumerate(all_gather_text("mark seen", str(mark.exists())))
      if seen != "True"]
  if index() == 0:
    mark.unlink()
  if blind:
    raise watchdog.HostsError(
        f"{folder} is not the same folder on all hosts: what process 0 writes there is not seen by "
        f"{', '.join(blind)}. Give a path on gs:// or on a shared file system")


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
  """Ends the run if the work inside, which all processes do together, takes longer than wait_timeout."""
  if _watchdog is None:
    yield
    return
  _watchdog.waits.append([what, time.monotonic()])
  try:
    yield
  finally:
    _watchdog.waits.pop()


def beat() -> None:
  """Restarts the timeouts of the current waits: the work inside goes on."""
  if _watchdog is not None:
    now = time.monotonic()
    for wait in _watchdog.waits:
      wait[1] = now


@contextlib.contextmanager
def _at(what: str) -> Iterator[None]:
  """Names what this process does, for the others' messages, without a timeout."""
  before = _watchdog.doing if _watchdog else ""
  doing(what)
  try:
    yield
  finally:
    doing(before)


def doing(what: str) -> None:
  """Names what this process does outside of waits, for the others' messages."""
  if _watchdog is not None:
    _watchdog.doing = what
