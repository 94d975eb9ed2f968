"""Registry of names that plug-ins add: source kinds, evaluators, tasks, tokenizers, weights, metrics.

A row maps (group, name) to "module:attribute", which is imported at its first use: registering is cheap.
The plug-in of this package is listed here. Another package adds its own by an entry point in the group
`unilip_jax.plugins`, a function without arguments that calls `register`.
"""

import functools
import importlib
from importlib import metadata
from typing import Any

_PLUGINS = ("unilip_jax.shapes.plugin:register",)
_ENTRY_POINTS = "unilip_jax.plugins"
_rows: dict[str, dict[str, str]] = {}
_old_names: dict[str, dict[str, str]] = {}


def register(group: str, name: str, target: str) -> None:
  """Adds a row.

  Args:
    group: "task", "source", "evaluator", "tokenizer", "vocabulary", "weights", "metric", "vision_tower",
      "size", "benchmark" or "reward".
    name: the name in configs and on command lines.
    target: "module:attribute".

  Raises:
    ValueError: if the name is registered with another target.
  """
  rows = _rows.setdefault(group, {})
  if rows.get(name, target) != target:
    raise ValueError(f"{group} {name!r} is registered twice: {rows[name]} and {target}")
  rows[name] = target


def register_old_name(group: str, name: str, message: str) -> None:
  """Refuses a name that was in use once.

  Args:
    group: as of `register`.
    name: the old name.
    message: of the error, with the new name.
  """
  _old_names.setdefault(group, {})[name] = message


def has(group: str, name: str) -> bool:
  """Whether `find` gives an answer: the target of a name, or for an old name what it is called now."""
  return name in names(group) or name in _old_names.get(group, {})


def names(group: str) -> list[str]:
  """Lists the registered names of a group, including those of plug-ins."""
  _load_plugins()
  return sorted(_rows.get(group, {}))


def packages() -> set[str]:
  """Returns the packages that targets are in, by their top-level names: this one, and those of plug-ins."""
  _load_plugins()
  return {target.partition(".")[0].partition(":")[0] for rows in _rows.values() for target in rows.values()}


def find(group: str, name: str) -> Any:
  """Imports the target of a name.

  Raises:
    ValueError: for an unknown name, listing the known names; for an old name, with the new one.
  """
  _load_plugins()
  if name in _old_names.get(group, {}):
    raise ValueError(_old_names[group][name])
  target = _rows.get(group, {}).get(name)
  if target is None:
    raise ValueError(f"unknown {group} {name!r}; known: {', '.join(names(group))}")
  return resolve(target)


def resolve(target: str) -> Any:
  """Imports "module:attribute"."""
  module, _, attribute = target.partition(":")
  return getattr(importlib.import_module(module), attribute)


@functools.cache
def _load_plugins() -> None:
  for target in _PLUGINS:
    resolve(target)()
  for entry in metadata.entry_points(group=_ENTRY_POINTS):
    entry.load()()
