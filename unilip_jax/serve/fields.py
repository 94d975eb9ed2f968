"""Reads the fields of a request with their types and ranges, from JSON or from a form's texts."""

from collections.abc import Callable, Mapping, Sequence
import math
import re
from typing import Any

from unilip_jax.common import arguments
from unilip_jax.serve import api_errors

_MESSAGE_CHARS = 300
_NAME = re.compile(r"[\w.\[\]-]{1,40}", re.ASCII)


class Fields:
  """Reads fields one by one; null counts as absent."""

  def __init__(self, values: Mapping[str, Any], *, form: bool = False):
    """Keeps the values.

    Args:
      values: by name. An object `extra_body`, as curl users write it, holds further ones.
      form: whether all values are texts, in which numbers and booleans are written.
    """
    extra = values.get("extra_body")
    more = extra if isinstance(extra, dict) else {}
    self._values = {**more, **{k: v for k, v in values.items() if k != "extra_body"}}
    self._form, self._read = form, {"extra_body"}

  def raw(self, name: str) -> Any:
    """Returns a value as it was sent; None if it is absent."""
    self._read.add(name)
    return self._values.get(name)

  def text(self, name: str, most_chars: int, default: str | None = None) -> str | None:
    """Returns a text."""
    value = self.raw(name)
    if value is None:
      return default
    if not isinstance(value, str):
      raise _invalid(name, f"{name} must be a text")
    if len(value) > most_chars:
      raise _invalid(name, f"{name} has {len(value)} characters, at most {most_chars} are taken")
    return value

  def integer(self, name: str, least: int, most: int, default: int | None = None) -> int | None:
    """Returns an integer within [least, most]."""
    return self._checked(name, default, int, lambda v: arguments.integer(name, v, least, most))

  def number(self, name: str, least: float, most: float, default: float, *, above: bool = False) -> float:
    """Returns a number within [least, most], or (least, most]."""
    return self._checked(
        name, default, float, lambda v: arguments.number(name, v, least, most, open_below=above))

  def seed(self, name: str) -> int | None:
    """Returns a seed: any integer of 64 bits."""
    return self._checked(name, None, int, lambda v: arguments.seed(name, v))

  def flag(self, name: str) -> bool:
    """Returns a boolean; False if it is absent."""
    parse = lambda text: {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    return self._checked(name, False, parse, lambda v: arguments.flag(name, v))

  def choice(self, name: str, choices: Sequence[str], default: str) -> str:
    """Returns one of several texts."""
    return self._checked(name, default, str, lambda v: arguments.choice(name, v, choices))

  def refuse(self, name: str, why: str, *neutral: Any) -> None:
    """Refuses a feature that this server lacks, unless the field is absent, empty or `neutral`."""
    value = self.raw(name)
    if value in (None, "", [], {}) or (isinstance(value, bool) and value is False) or value in neutral:
      return
    raise api_errors.unsupported(name, why)

  def ignore(self, *names: str) -> None:
    """Marks fields that are accepted and have no effect."""
    self._read.update(names)

  def unknown(self) -> list[str]:
    """Returns the names of fields that were never read, at most ten, for a header of the answer."""
    names = sorted(str(name) for name in self._values if name not in self._read)
    return [name for name in names if _NAME.fullmatch(name)][:10]

  def _checked(
      self, name: str, default: Any, parse: Callable[[str], Any], check: Callable[[Any], Any]) -> Any:
    value = self.raw(name)
    if value is None or (self._form and value == ""):
      return default
    if self._form:
      try:
        value = parse(value)
      except (ValueError, AttributeError):  # not a number; or a file
        raise _invalid(name, f"{name} is not of the right kind") from None
    elif isinstance(value, float) and parse is int and math.isfinite(value) and value == int(value):
      value = int(value)  # some clients have only one kind of number
    try:
      return check(value)
    except ValueError as error:  # of common/arguments
      raise _invalid(name, str(error)) from None


def _invalid(name: str, message: str) -> api_errors.ApiError:
  return api_errors.ApiError(400, f"invalid_{name}", message[:_MESSAGE_CHARS], name)
