"""How the processes of a run find each other, and how long they wait for one another."""

from collections.abc import Sequence
import dataclasses


@dataclasses.dataclass(frozen=True)
class Options:
  """Settings of one process, as its command line gives them (flags.py).

  Attributes:
    multihost: True: JAX detects the cluster (TPU pod, SLURM, Open MPI, Kubernetes); False: one process;
      None: as True on a TPU pod of several hosts.
    coordinator: HOST:PORT of process 0; process_count and process_index are then required.
    process_count: number of processes.
    process_index: number of this process, from 0.
    start_timeout: seconds until all processes must have started.
    silence_timeout: seconds without a heartbeat after which a process counts as dead.
    wait_timeout: seconds that a step, an evaluation batch, a save or a barrier may take.
  """

  multihost: bool | None = None
  coordinator: str = ""
  process_count: int | None = None
  process_index: int | None = None
  start_timeout: float = 300.0
  silence_timeout: float = 100.0
  wait_timeout: float = 1800.0


@dataclasses.dataclass(frozen=True)
class Place:
  """This process among the others.

  Attributes:
    coordinator: HOST:PORT of process 0.
    count: number of processes.
    index: number of this process.
    devices: local device numbers that this process uses; None: all.
    found_by: "flags" or "JAX", for the log.
  """

  coordinator: str
  count: int
  index: int
  devices: Sequence[int] | None
  found_by: str
