"""The flags of multihost runs: how this process finds the others, and how long it waits for them.

Imports no JAX, so that --help answers at once.
"""

import os

from absl import flags

from unilip_jax.multihost import options as options_lib

_MULTIHOST = flags.DEFINE_bool(
    "multihost", None, "Several hosts that JAX detects: TPU pod, SLURM, Open MPI, Kubernetes. Default: "
    "only on a TPU pod of several hosts ($TPU_WORKER_HOSTNAMES).")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", os.environ.get("UNILIP_COORDINATOR", ""),
    "Several hosts that JAX cannot detect: HOST:PORT of process 0, the same on all ($UNILIP_COORDINATOR).")
_PROCESS_COUNT = flags.DEFINE_integer(
    "process_count", os.environ.get("UNILIP_PROCESS_COUNT"),
    "Number of processes, with --coordinator ($UNILIP_PROCESS_COUNT).")
_PROCESS_INDEX = flags.DEFINE_integer(
    "process_index", os.environ.get("UNILIP_PROCESS_INDEX"),
    "Number of this process, from 0, with --coordinator ($UNILIP_PROCESS_INDEX).")
_START_TIMEOUT = flags.DEFINE_float(
    "start_timeout", 300.0, "Seconds until all processes must have started.", lower_bound=1.0)
_SILENCE_TIMEOUT = flags.DEFINE_float(
    "silence_timeout", 100.0,
    "Seconds without a heartbeat after which a process counts as dead and the others end.", lower_bound=2.0)
_WAIT_TIMEOUT = flags.DEFINE_float(
    "wait_timeout", 1800.0,
    "Seconds that a step, an evaluation batch or a save may take.",
    lower_bound=2.0)
_PER_PROCESS = ("--process_index", "--coordinator")  # may differ between processes


def options() -> options_lib.Options:
  """Returns the parsed flags."""
  return options_lib.Options(
      _MULTIHOST.value, _COORDINATOR.value, _PROCESS_COUNT.value, _PROCESS_INDEX.value,
      _START_TIMEOUT.value, _SILENCE_TIMEOUT.value, _WAIT_TIMEOUT.value)


def common_arguments(argv: list[str]) -> list[str]:
  """Returns the arguments that must be the same on every process."""
  return [a for before, a in zip(["", *argv], argv)
          if a.split("=")[0] not in _PER_PROCESS and before not in _PER_PROCESS]
