"""Finds a batch that divides over many chips: the recipe's, or the nearest larger one."""

import copy
from typing import Any

from unilip_jax.configs import base
from unilip_jax.data import batch as batch_lib
from unilip_jax.plan import topology
from unilip_jax.sharding import mesh as mesh_lib

_CHOSEN = ("batch_size", "data.part_multiple", "mesh.fsdp")
_SHARE_ERROR = 0.06  # of the share of edits in a batch, against the recipe's


def chosen(config: Any, where: topology.Topology) -> tuple[Any, dict[str, Any]]:
  """Copies `config` with a batch and a mesh for the devices; what divides already stays.

  Returns:
    (the copy, {field: value} of the fields that it changed, in the words of the command line).

  Raises:
    ValueError: for a mesh that does not fit the devices.
  """
  result = fitted(config, where.size * config.grad_accum_steps)
  result.mesh.fsdp = mesh_lib.chosen_fsdp(config.mesh.data, config.mesh.fsdp, where.size, where.inside)
  fields = {name: base.field(result, name) for name in _CHOSEN}
  return result, {name: value for name, value in fields.items() if value != base.field(config, name)}


def fitted(config: Any, chips: int, batch_size: int = 0) -> Any:
  """Copies `config` with a batch that divides over the chips, and so do its sub-batches.

  Args:
    config: of a run.
    chips: devices × micro-batches.
    batch_size: requested; 0 takes the config's. It grows to the next multiple that divides, and, where
      edits are mixed in, until their share is within 0.06 of data.edit_share.

  Returns:
    The copy, with batch_size and data.part_multiple set.
  """
  config = copy.deepcopy(config).unlock()
  config.batch_size = -(-(batch_size or config.batch_size) // chips) * chips
  if not config.data.edit_share:
    return config
  if config.data.part_multiple % chips:
    config.data.part_multiple = chips
  while True:
    try:
      parts = batch_lib.part_sizes(config)
    except ValueError:  # a sub-batch would be empty
      parts = {"edit": 0}
    if parts["edit"] and abs(parts["edit"] / config.batch_size - config.data.edit_share) <= _SHARE_ERROR:
      return config
    config.batch_size += chips
