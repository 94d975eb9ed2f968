"""ConfigDict for machines without ml_collections: what the stages' configs and their tasks use of it.

`benchmarks/__init__.py` installs it under that name where the package is absent. Values keep the types that
configs give them; references and locking are left out. The command line of training needs the package.
"""

from collections.abc import Iterator, Mapping
import types
from typing import Any


class ConfigDict:
  """Fields by name, as attributes and as items, sorted by name."""

  def __init__(self, initial: "Mapping[str, Any] | ConfigDict" = types.MappingProxyType({})):
    object.__setattr__(self, "_fields", {})
    for name, value in initial.items():
      self[name] = value

  def __getitem__(self, name: str) -> Any:
    return self._fields[name]

  def __setitem__(self, name: str, value: Any) -> None:
    self._fields[name] = ConfigDict(value) if isinstance(value, dict) else value

  def __getattr__(self, name: str) -> Any:
    try:
      return self._fields[name]
    except KeyError:
      raise AttributeError(f"no field {name!r}") from None

  __setattr__ = __setitem__

  def __contains__(self, name: str) -> bool:
    return name in self._fields

  def __iter__(self) -> Iterator[str]:
    return iter(self.keys())

  def __len__(self) -> int:
    return len(self._fields)

  def __eq__(self, other: Any) -> bool:
    return isinstance(other, ConfigDict) and self._fields == other._fields

  __hash__ = None

  def keys(self) -> list[str]:
    """Returns the names of the fields."""
    return sorted(self._fields)

  def values(self) -> list[Any]:
    """Returns the fields' values."""
    return [self._fields[name] for name in self]

  def items(self) -> list[tuple[str, Any]]:
    """Returns pairs of name and value."""
    return [(name, self._fields[name]) for name in self]

  def copy_and_resolve_references(self) -> "ConfigDict":
    """Returns a copy whose nested configs are copies, too."""
    return ConfigDict({name: value.copy_and_resolve_references() if isinstance(value, ConfigDict) else value
                       for name, value in self.items()})

  def to_dict(self) -> dict[str, Any]:
    """Returns nested dicts."""
    return {name: value.to_dict() if isinstance(value, ConfigDict) else value
            for name, value in self.items()}
