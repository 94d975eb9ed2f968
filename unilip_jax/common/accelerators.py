"""Keeps quiet about accelerators that a machine does not have. Imports no JAX."""

import logging
import os
import pathlib
import warnings

_PCI = pathlib.Path("/sys/bus/pci/devices")
_GOOGLE = "0x1ae0"  # vendor of TPUs on the PCI bus; JAX looks for the same
_VARIABLES = ("TPU_NAME", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE", "TPU_SKIP_MDS_QUERY")
_LOGGER = "jax._src.xla_bridge"


def has_tpu() -> bool:
  """Returns whether this machine has a TPU, or its environment says so."""
  if any(os.environ.get(name) for name in _VARIABLES) or "tpu" in os.environ.get("JAX_PLATFORMS", ""):
    return True
  return any(file.read_text().strip() == _GOOGLE for file in _PCI.glob("*/vendor"))


def hide_absent_tpu() -> None:
  """Keeps messages about TPUs that cannot be initialised out of the log of a machine without one."""
  if not has_tpu():
    logging.getLogger(_LOGGER).addFilter(_is_shown)
    warnings.filterwarnings("ignore", message="cloud_tpu_init failed")


def _is_shown(record: logging.LogRecord) -> bool:
  return "Unable to initialize backend 'tpu'" not in record.getMessage()
