"""Lists the fields of a config with their values and the comments of configs/base.py, for --help_config."""

from collections.abc import Iterator, Mapping
import inspect
import re
import textwrap
from typing import Any

from unilip_jax.configs import base

_FIELD = re.compile(r"  c\.([\w.]+) = (.*)")
_WIDTH = 100


def text(config: Any, name: str) -> str:
  """Returns one paragraph for each field.

  Args:
    config: whose values are shown.
    name: of the stage and size, for the heading.
  """
  comments, values = dict(comments_of_base()), dict(flatten(config))
  lines = [f"Fields of {name}; change one with --config.FIELD=VALUE.", ""]
  for field in [f for f in comments if f in values] + [f for f in values if f not in comments]:
    lines.append(f"--config.{field}={_shown(values[field])}")
    if comments.get(field):
      lines += textwrap.wrap(comments[field], _WIDTH, initial_indent="    ", subsequent_indent="    ")
  return "\n".join(lines)


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields (dotted name, value) of every field that is no section."""
  for key, value in config.items():
    if hasattr(value, "items") and not isinstance(value, dict):
      yield from flatten(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


def flags(fields: Mapping[str, Any]) -> str:
  """Returns {dotted name: value} in the words of the command line."""
  return " ".join(f"--config.{name}={value}" for name, value in fields.items())


def _shown(value: Any) -> str:
  if isinstance(value, str):
    return value or '""'
  return f'"{value}"' if isinstance(value, (tuple, Mapping)) else str(value)


def comments_of_base() -> Iterator[tuple[str, str]]:
  """Yields (field, comment) of base.py: the comment lines above an assignment, and the one behind it."""
  above: list[str] = []
  for line in inspect.getsource(base.get_config).splitlines():
    if match := _FIELD.match(line):
      behind = match[2].rpartition("  # ")[2] if "  # " in match[2] else ""
      yield match[1], " ".join([*above, behind]).strip()
      above = []
    elif line.startswith("  # ") and not line.startswith("  # ----"):
      above.append(line.removeprefix("  # ").strip())
    else:
      above = []
