"""Many hosts as one run: the start, barriers that name who is missing, waits that have an end.

Processes meet (rendezvous.py), join JAX's coordination service, which process 0 holds, and watch each
other (watch.py). Where one is lost, all end with a message that names it; a rerun of the same command
continues from the last checkpoint.

The only file that touches the parts of JAX that are not public. On one process all of this does nothing.
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

from unilip_jax.multihost import rendezvous, watchdog

_GATHER = "unilip/gather/"
_BACKUP_SECONDS = 30  # JAX's own heartbeat ends the process this much later, should the watch fail
_SHARED_SECONDS = 30.0  # until a network file system shows a new file to other hosts


_watch: watchdog.Watch | None = None
_rounds: collections.Counter[str] = collections.Counter()  # of each gather's name


@contextlib.contextmanager
def joined(
    options: watchdog.Options, command: Sequence[str], explain: Callable[[BaseException], str]
) -> Iterator[None]:
  """Joins the other processes; an error inside ends all of them with a message.

  Args:
    options: see watch.Options.
    command: what every process has to be started with alike; differences are an error.
    explain: the message of an error, for the log.

  Raises:
    rendezvous.MeetingError: if the processes do not come together in time.
    ValueError: for options that do not fit together, or where no cluster is recognised.
  """
  global _watch
  place = resolve(options)
  if place is None:
    yield
    return
  names = rendezvous.meet(
      place.coordinator, place.count, place.index, command, options.start_timeout)
  death_notice = watchdog.DeathNotice(place, names)
  # A SIGTERM is handled by preemption.py, which needs no notice from JAX.
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
      place.coordinator, place.count, place.index, place.devices,
      cluster_detection_method="deactivate", initialization_timeout=int(options.start_timeout),
      heartbeat_timeout_seconds=int(options.silence_timeout + _BACKUP_SECONDS),
      shutdown_timeout_seconds=int(options.wait_timeout))
  _watch = watchdog.Watch(distributed.global_state.client, place, names, options, death_notice)
  _watch.start()
  logging.info("process %d of %d (%s), found by %s; coordinator %s", place.index, place.count,
               names[place.index], place.found_by, place.coordinator)
  try:
    yield
    all_gather_text("end")
  except BaseException as error:
    _watch.fail(error, explain(error))
  _watch.stop()
  _watch = None
  jax.distributed.shutdown()
  death_notice.cancel()


def resolve(options: watchdog.Options) -> watchdog.Place | None:
  """Where this process stands; None: alone.

  Raises:
    ValueError: for options that do not fit together, or where no cluster is recognised.
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
    return watchdog.Place(options.coordinator, count, index, None, "flags") if count > 1 else None
  wanted = options.multihost
  if wanted is None:
    wanted = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
  return _recognised(options.start_timeout) if wanted else None


def _recognised(timeout: float) -> watchdog.Place | None:
  """What JAX knows of the cluster."""
  address, count, index, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
      os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, int(timeout))
  if None in (address, count, index):
    raise ValueError(
        "--multihost: JAX recognises no cluster here (TPU pod, SLURM inside srun, Open MPI, Kubernetes); "
        "give --coordinator=HOST:PORT --process_count=N --process_index=I")
  # JAX gives a SLURM task one GPU, its local number. A task that has its node to itself takes all.
  if "SLURM_STEP_NUM_NODES" in os.environ and int(os.environ["SLURM_STEP_NUM_NODES"]) == count:
    devices = None
  return watchdog.Place(address, count, index, devices, "JAX") if count > 1 else None


def description() -> str:
  """This process's number and devices, for the log."""
  devices = ", ".join(str(d) for d in jax.local_devices())
  return f"process {jax.process_index()} of {jax.process_count()}, devices: {devices}"


def watched() -> bool:
  """Whether this process is one of several that watch each other."""
  return _watch is not None


def index() -> int:
  """Number of this process in the coordination service; 0 alone."""
  return distributed.global_state.process_id


def count() -> int:
  """Processes in the coordination service; 1 alone."""
  return distributed.global_state.num_processes


def listen(listener: watchdog.Listener) -> None:
  """Has `listener(rows, post, left)` called with every sign of life, from the watch's thread.

  `rows` are the entries that listeners have posted, {key: text}; `post(key, text)` writes one for all;
  `left` are the processes that have ended in order. It returns whether it wants to be called again soon.
  """
  if _watch is not None:
    _watch.listeners.append(listener)


def all_gather_text(name: str, text: str = "", timeout: float | None = None) -> list[str]:
  """A barrier at which every process leaves a text: all texts, by process, on every process.

  Args:
    name: the same on all processes; may be used again.
    text: of this process.
    timeout: seconds; None takes the run's wait_timeout.

  Raises:
    watch.LateError: naming the processes that did not come in time.
  """
  state = distributed.global_state
  if state.client is None or state.num_processes == 1:
    return [text]
  seconds = timeout or (_watch.options.wait_timeout if _watch else watchdog.Options.wait_timeout)
  folder = f"{_GATHER}{name}#{_rounds[name]}/"
  _rounds[name] += 1
  state.client.key_value_set(f"{folder}{state.process_id}", f"={text}")
  with _at(f"the barrier {name!r}"):
    try:
      state.client.wait_at_barrier(folder, int(seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
      came = _gathered(state.client, folder)
      missing = [i for i in range(state.num_processes) if i not in came]
      if not missing:
        raise
      raise watchdog.LateError(
          f"the barrier {name!r} was not reached within {seconds:.0f} s by "
          f"{', '.join(_watch.describe(i) if _watch else f'process {i}' for i in missing)}") from error
  texts = _gathered(state.client, folder)
  return [texts[i] for i in range(state.num_processes)]


def _gathered(client, folder: str) -> dict[int, str]:
  return {int(key.rsplit("/", 1)[1]): text[1:] for key, text in client.key_value_dir_get(folder)}


def assert_equal_across_hosts(name: str, text: str, remedy: str) -> None:
  """Raises watch.HostsError, on all processes, where `text` differs between them."""
  texts = all_gather_text(f"same {name}", text)
  other = next((i for i, t in enumerate(texts) if t != texts[0]), None)
  if other is not None:
    raise watchdog.HostsError(
        f"{name} differs between hosts: {texts[0]} on process 0, {texts[other]} on process {other}; "
        f"{remedy}")


def check_shared(folder: epath.PathLike) -> None:
  """Makes sure that all hosts see one folder.

  Raises:
    watch.HostsError: naming the process that does not see what process 0 writes.
  """
  if not watched():
    return
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  mark = folder / f".hosts-{all_gather_text('mark', uuid.uuid4().hex)[0]}"
  if index() == 0:
    mark.write_text("written by process 0, to be seen by all; it may be deleted")
  all_gather_text("mark written")
  deadline = time.monotonic() + _SHARED_SECONDS
  while not mark.exists() and time.monotonic() < deadline:
    time.sleep(0.5)
  blind = [_watch.describe(i) for i, seen in enumerate(all_gather_text("mark seen", str(mark.exists())))
           if seen != "True"]
  if index() == 0:
    mark.unlink()
  if blind:
    raise watchdog.HostsError(
        f"{folder} is not one folder for all hosts: what process 0 writes there is not seen by "
        f"{', '.join(blind)}. Give a path on gs:// or on a shared file system")


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
  """Work that all processes do together: ends the run if it takes longer than wait_timeout."""
  if _watch is None:
    yield
    return
  _watch.waits.append([what, time.monotonic()])
  try:
    yield
  finally:
    _watch.waits.pop()


def beat() -> None:
  """Says that a long wait moves on: its time starts anew."""
  if _watch is not None:
    now = time.monotonic()
    for wait in _watch.waits:
      wait[1] = now


@contextlib.contextmanager
def _at(what: str) -> Iterator[None]:
  """Names what this process does, for the others' messages; it has a timeout of its own."""
  before = _watch.doing if _watch else ""
  if _watch:
    _watch.doing = what
  try:
    yield
  finally:
    if _watch:
      _watch.doing = before


def doing(what: str) -> None:
  """Names what this process does outside of waits, for the others' messages."""
  if _watch is not None:
    _watch.doing = what
