"""Named things that plug-ins add: source kinds, evaluators, tasks, tokenizers, prefixes of weights.

A row is (group, name) -> "module:attribute", imported when it is first used, so that registering costs
nothing. The plug-in of this package is listed here; another package adds its own by an entry point in the
group `unilip_jax.plugins` that names a function without arguments, which calls `register`.
"""

import functools
import importlib
from importlib import metadata
from typing import Any

_PLUGINS = ("unilip_jax.shapes.plugin:register",)
_ENTRY_POINTS = "unilip_jax.plugins"
_rows: dict[str, dict[str, str]] = {}


def register(group: str, name: str, target: str) -> None:
  """Adds a row.

  Args:
    group: "task", "source", "evaluator", "tokenizer", "weights", "vision_tower" or "size".
    name: what configs and command lines call it.
    target: "module:attribute".

  Raises:
    ValueError: if the name stands for something else already.
  """
  rows = _rows.setdefault(group, {})
  if rows.get(name, target) != target:
    raise ValueError(f"{group} {name!r} is registered twice: {rows[name]} and {target}")
  rows[name] = target


def names(group: str) -> list[str]:
  """Registered names of a group, those of plug-ins included."""
  _load_plugins()
  return sorted(_rows.get(group, {}))


def find(group: str, name: str) -> Any:
  """Imports what a name stands for.

  Raises:
    ValueError: for an unknown name, listing those that there are.
  """
  _load_plugins()
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
