"""Weights by module from several sources, straight from disk onto the mesh: no host holds them whole."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp

from unilip_jax import checkpoint, sharding, tree, weights
from unilip_jax.models import vocabulary


def sources_of(setting: str) -> list[str]:
  """The places that a comma-separated setting names."""
  return [s.strip() for s in setting.split(",") if s.strip()]


def find(sources: Sequence[str], wanted: Mapping[str, Any]) -> dict[str, weights.Stored]:
  """{module: the source that it is taken from}; of a module that several hold, the last one.

  Args:
    sources: workdirs, checkpoints, imported folders or "blocks:…".
    wanted: modules by name; others are passed over.

  Raises:
    FileNotFoundError: if a source is not there, saying what to download or run.
  """
  found: dict[str, weights.Stored] = {}
  for source in sources:
    stored = checkpoint.open_weights(source)
    for name in sorted(stored.modules & wanted.keys()):
      if name in found:
        logging.info("%s: %s has it too; the later source's is taken", name, found[name].origin)
      found[name] = stored
  return found


def check_shapes(
    found: Mapping[str, weights.Stored], abstract: Mapping[str, Any], what: str) -> None:
  """Compares what was found with the model; reads no array.

  Args:
    found: of `find`.
    abstract: {module: shapes}; modules that were not found are passed over.
    what: beginning of the message, e.g. "init_from=… does not fit size '1b'".

  Raises:
    ValueError: listing each missing, unknown or wrong-shaped path with both shapes.
  """
  want = {p: tuple(s.shape) for p, s in tree.flatten(abstract).items() if p.split("/")[0] in found}
  have = {p: s.shape for name, stored in found.items() for p, s in stored.shapes.items()
          if p.split("/")[0] == name}
  wrong = []
  for path in sorted(want.keys() | have.keys()):
    if path not in have:
      wrong.append(f"  {path}: absent in the weights, model {want[path]}")
    elif path not in want:
      wrong.append(f"  {path}: weights {have[path]}, absent in the model")
    elif have[path] != want[path]:
      wrong.append(f"  {path}: weights {have[path]}, model {want[path]}")
  if wrong:
    more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
    raise ValueError(f"{what}:\n" + "\n".join(wrong[:20]) + more)


def read(
    found: Mapping[str, weights.Stored], abstract: Mapping[str, Any], mesh: jax.sharding.Mesh,
    min_shard_size: int, *, vocab: int | None = None) -> dict[str, Any]:
  """Reads modules onto the mesh, each host only its own shards.

  Args:
    found: of `find`, checked by `check_shapes`.
    abstract: {module: shapes} of these modules at least.
    mesh: the devices.
    min_shard_size: see sharding.tree_shardings.
    vocab: rows of the language model; where fewer were saved, new ones start as the mean of the others.

  Returns:
    {module: nested dict of float32 arrays}.
  """
  shardings = sharding.tree_shardings(dict(abstract), mesh, min_shard_size)
  flat, flat_shardings = tree.flatten(abstract), tree.flatten(shardings)
  arrays: dict[str, jax.Array] = {}
  for stored in dict.fromkeys(found.values()):
    names = {name for name, of in found.items() if of is stored}
    arrays |= stored.restore({
        path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=flat_shardings[path])
        for path, leaf in flat.items() if path.split("/")[0] in names})
  loaded = tree.unflatten(arrays)
  if "llm" in loaded and vocab is not None:
    saved = weights.module_dims(found["llm"].model).get("llm", {}).get("vocab")
    if saved is not None and saved < vocab:
      logging.info("the language model has %d rows of %d; new ones start as the mean of the others",
                   saved, vocab)
      loaded["llm"] = jax.jit(
          functools.partial(vocabulary.extend, used=saved, vocab=vocab),
          out_shardings=shardings["llm"], donate_argnums=0)(loaded["llm"])
  return loaded
