"""Shared by both sides of a comparison of training steps: config, batch, and FLOPs of the model.

Imports neither PyTorch nor the data pipeline: grain may be absent.
"""

import ast
from collections.abc import Mapping, Sequence
import importlib
from typing import Any

import numpy as np

from unilip_jax.data import batch as batch_lib
from unilip_jax.models import presets

# Name on the command line -> (config, whether the discriminator runs); None: as the config says.
STAGES = {
    "stage1": ("stage1", None),
    "stage2": ("stage2", False),  # the official first half
    "stage2_gan": ("stage2", True),
    "stage448": ("stage448", True),
    "gen2": ("gen2", None),
    "gen3": ("gen3", None),
}
_SHORTEST = 0.25  # of a prompt, in lengths; the longest fills its place


def make_config(
    stage: str, size: str, *, dtype: str = "", batch_size: int = 0, cached_latents: bool = False,
    remat: Mapping[str, str] | None = None, fields: Sequence[str] = ()
) -> Any:
  """Makes the config of a stage for one measured update; weights are random and no file is read.

  Args:
    stage: of STAGES.
    size: tiny | 1b | 3b.
    dtype: "" keeps the config's.
    batch_size: 0 keeps the config's.
    cached_latents: the target's latents come with the batch.
    remat: {network: policy} over the config's.
    fields: "a.b=value", over everything else.

  Raises:
    ValueError: for an unknown stage or field.
  """
  if stage not in STAGES:
    raise ValueError(f"unknown stage {stage!r}; choose from {', '.join(STAGES)}")
  name, gan = STAGES[stage]
  config = importlib.import_module(f"unilip_jax.configs.{name}").get_config(size)
  config.text.tokenizer = "shapes"  # of which the id of the image slot is read
  config.dtype = dtype or config.dtype
  config.batch_size = batch_size or config.batch_size
  if gan is not None:
    config.gan.start_step = 0 if gan else config.total_steps
  if cached_latents:
    config.data.latents_dir = "cached"
  for network, policy in (remat or {}).items():
    if network not in config.remat:
      raise ValueError(f"remat of {network!r}; choose from {', '.join(config.remat)}")
    config.remat[network] = policy
  for field in fields:
    _set(config, *field.split("=", 1))
  return config


def _set(config: Any, path: str, value: str) -> None:
  *parents, last = path.split(".")
  node = config
  for name in parents:
    node = node[name]
  if last not in node:
    raise ValueError(f"no field {path}")
  node[last] = value if isinstance(node[last], str) else ast.literal_eval(value)


def make_batch(config: Any, preset: presets.Preset, seed: int = 0) -> dict[str, Any]:
  """Makes random pixels and prompts of different lengths, NumPy arrays of the config's shapes."""
  if config.task == "reconstruct":
    return batch_lib.device_part(batch_lib.synthetic(
        batch_lib.reconstruct_spec(config.batch_size, config.image_size), seed))
  grid = preset.tokenizer.tokens_per_side(config.image_size)
  latents = (grid, grid, preset.dit.channels) if config.data.latents_dir else None
  kinds = {"t2i": (batch_lib.t2i_spec, config.text.t2i_length),
           "edit": (batch_lib.edit_spec, config.text.edit_length)}
  batch = batch_lib.device_part(batch_lib.synthetic(
      {name: kinds[name][0](count, config.image_size, kinds[name][1], latents)
       for name, count in batch_lib.part_sizes(config).items()}, seed))
  for name, part in batch.items():
    slots = preset.tokenizer.image_tokens(config.image_size) if name == "edit" else 0
    _lengthen(part, np.random.default_rng(seed), slots, image_slot(config))
    if latents:
      part["latents"] = np.random.default_rng(seed).standard_normal(
          part["latents"].shape, np.float32) / preset.factor
  return batch


def _lengthen(part: dict[str, Any], rng: np.random.Generator, slots: int, slot: int) -> None:
  """Sets lengths of prompts, and image slots at their front."""
  count, length = part["tokens"].shape
  shortest = slots + max(1, round(_SHORTEST * (length - slots)))
  lengths = rng.integers(shortest, length, count, endpoint=True)
  lengths[0] = length
  part["token_mask"] = np.arange(length)[None] < lengths[:, None]
  part["tokens"][:, :slots] = slot


def image_slot(config: Any) -> int:
  """Returns the id of the token whose embeddings image features replace."""
  from unilip_jax.data import text
  return text.Text(config.text.tokenizer).image_slot


def model_flops(config: Any) -> float:
  """Counts matrix FLOPs of the model's own work in one update, the same on every machine.

  Counts the formulations for TPUs: those of convolutions for CPUs are no matrix multiplications.
  Recomputation by rematerialisation does not count (flops.py).
  """
  from unilip_jax import tasks
  from unilip_jax.ops import backend
  from unilip_jax.training import flops
  config = config.copy_and_resolve_references()
  config.remat = {name: "none" for name in config.remat}
  if config.gan.start_step:  # before its start nothing of the discriminator runs
    config.gan.weight = 0.0
  with backend.planning("tpu"):
    task = tasks.make(config)
    return flops.count(task.train_step, task.state_shapes(), task.batch_spec(config.batch_size))
