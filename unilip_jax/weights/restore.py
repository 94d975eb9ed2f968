"""Reads modules from several sources onto the mesh; each host reads only its own shards."""

from collections.abc import Collection, Mapping, Sequence
import functools
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp

from unilip_jax.common import errors, tree
from unilip_jax.common import paths as path_lib
from unilip_jax.models import lora, vocabulary
from unilip_jax.sharding import param_rules
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import sources
from unilip_jax.weights import stored as stored_lib


def sources_of(setting: str) -> list[str]:
  """Splits a comma-separated setting into paths."""
  return path_lib.split(setting)


def find_modules(paths: Sequence[str], names: Collection[str]) -> dict[str, stored_lib.Stored]:
  """Finds the source of each module; if several sources hold a module, the last one.

  Args:
    paths: as for sources.open_weights.
    names: of the modules; others are ignored.

  Returns:
    {module: its source}, of those modules that a source holds.

  Raises:
    FileNotFoundError: if a source is absent; the message explains what to download or run.
  """
  origins: dict[str, stored_lib.Stored] = {}
  for path in paths:
    stored = sources.open_weights(path)
    for name in sorted(stored.modules & set(names)):
      if name in origins:
        logging.info("%s: %s has it too; the later source is used", name, origins[name].origin)
      origins[name] = stored
  return origins


def check_shapes(
    origins: Mapping[str, stored_lib.Stored], abstract: Mapping[str, Any], message: str) -> None:
  """Compares saved modules with the model; reads no array.

  Args:
    origins: from `find_modules`.
    abstract: {module: shapes}; modules without an origin are ignored.
    message: first line of the error, e.g. "init_from=… does not fit size '1b'".

  Raises:
    ValueError: listing each missing, unknown or wrong-shaped path with both shapes.
    checksums.DamagedError: if that is due to damaged files.
  """
  adapted = [stored.origin for stored in dict.fromkeys(origins.values())
             if any(map(lora.is_adapter, stored.shapes))]
  if adapted and not any(map(lora.is_adapter, tree.flatten(abstract))):
    raise ValueError(
        f"{message}: {adapted[0]} holds adapters (docs/lora.md). Start from the weights that it adapts, or "
        "merge the adapters first: convert export --format=unilip, then convert import")
  try:
    errors.check_shapes(
        {p: s.shape for name, stored in origins.items() for p, s in stored.shapes.items()
         if p.split("/")[0] == name},
        {p: tuple(s.shape) for p, s in tree.flatten(abstract).items() if p.split("/")[0] in origins},
        message)
  except ValueError:
    for stored in dict.fromkeys(origins.values()):
      stored.verify()
    raise


def read_modules(
    origins: Mapping[str, stored_lib.Stored], abstract: Mapping[str, Any], mesh: jax.sharding.Mesh,
    min_shard_size: int, *, vocab: int | None = None) -> dict[str, Any]:
  """Reads modules onto the mesh; each host reads only its own shards.

  Args:
    origins: from `find_modules`, checked by `check_shapes`.
    abstract: {module: shapes} of at least these modules.
    mesh: the devices.
    min_shard_size: see param_rules.tree_shardings.
    vocab: rows of the language model; if fewer were saved, new rows start as the mean of the others.

  Returns:
    {module: nested dict of float32 arrays}.
  """
  shardings = param_rules.tree_shardings(dict(abstract), mesh, min_shard_size)
  flat, flat_shardings = tree.flatten(abstract), tree.flatten(shardings)
  arrays: dict[str, jax.Array] = {}
  for stored in dict.fromkeys(origins.values()):
    names = {name for name, origin in origins.items() if origin is stored}
    arrays |= stored.restore({
        path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=flat_shardings[path])
        for path, leaf in flat.items() if path.split("/")[0] in names})
  loaded = tree.unflatten(arrays)
  if "llm" in loaded and vocab is not None:
    saved = dims_lib.module_dims(origins["llm"].model).get("llm", {}).get("vocab")
    if saved is not None and saved < vocab:
      logging.info("the language model has %d rows of %d; new rows start as the mean of the others",
                   saved, vocab)
      loaded["llm"] = jax.jit(
          functools.partial(vocabulary.extend, used=saved, vocab=vocab),
          out_shardings=shardings["llm"], donate_argnums=0)(loaded["llm"])
  return loaded
