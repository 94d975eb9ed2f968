"""Named things that plug-ins add: source kinds, evaluators, tasks, tokenizers, weights, metrics.

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
_old_names: dict[str, dict[str, str]] = {}


def register(group: str, name: str, target: str) -> None:
  """Adds a row.

  Args:
    group: "task", "source", "evaluator", "tokenizer", "weights" or "metric".
    name: what configs and command lines call it.
    target: "module:attribute".

  Raises:
    ValueError: if the name stands for something else already.
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
  """Registered names of a group, those of plug-ins included."""
  _load_plugins()
  return sorted(_rows.get(group, {}))


def find(group: str, name: str) -> Any:
  """Imports what a name stands for.

  Raises:
    ValueError: for an unknown name, listing those that there are; for an old one, with the new one.
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
