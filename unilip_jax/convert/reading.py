"""How a source of PyTorch tensors is read: its modules, their dimensions and rules (formats.py)."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re
from typing import Any

from unilip_jax.convert import engine
from unilip_jax.models import presets

MAX_LAYERS = 1000
# module -> function of {module: parsed dimensions} that returns its rules, in the order of export
Layout = Mapping[str, Callable[[Mapping[str, Any]], list[engine.Rule]]]

COUNTER = (r".*\.num_batches_tracked$", "batch norm's step counter: no weight")


class DimsError(ValueError):
  """Dimensions that these networks do not have, or that cannot be derived."""


@dataclasses.dataclass(frozen=True)
class Options:
  """What files do not contain.

  Attributes:
    vit_heads: the ViT's attention heads, for weights without config.json at unpublished widths.
    dit_positions: whether the DiT adds positions; None decides by the format.
  """

  vit_heads: int | None = None
  dit_positions: bool | None = None


DEFAULTS = Options()


@dataclasses.dataclass(frozen=True)
class Part:
  """One module, or a share of it, within a source.

  Attributes:
    module: its name.
    dims: JSON-ready dimensions; {} for a share whose dimensions are in another source.
    rules: of its tensors.
  """

  module: str
  dims: dict[str, Any]
  rules: list[engine.Rule]


@dataclasses.dataclass(frozen=True)
class Reading:
  """How a source is read.

  Attributes:
    parts: modules to read.
    skip: (regular expression, reason) of tensors that are not read.
    notes: assumptions for the user.
    generate: what sampling needs of a complete UniLIP, for model.json.
  """

  parts: list[Part]
  skip: Sequence[tuple[str, str]] = ()
  notes: Sequence[str] = ()
  generate: Mapping[str, Any] | None = None


def parts(layout: Layout, dims: Mapping[str, Any]) -> list[Part]:
  """Returns a part for each module of `dims` {module: parsed dimensions}, in their order."""
  return [Part(module, presets.to_json(d), layout[module](dims)) for module, d in dims.items()]


def count_layers(names: Mapping[str, Any], pattern: str) -> int:
  """Returns one more than the largest number that `pattern` captures at the start of a name; 0 if none.

  Raises:
    DimsError: for a number that no network has.
  """
  matches = (re.match(pattern, name) for name in names)
  number = max((int(m[1]) + 1 for m in matches if m), default=0)
  if number > MAX_LAYERS:
    raise DimsError(f"a tensor's name counts to {number}; at most {MAX_LAYERS} layers are read")
  return number


def refuse_others(config: Mapping[str, Any], only: Mapping[str, Any], where: str) -> None:
  """Raises DimsError if an entry of a config differs from the only value that is implemented."""
  wrong = [f"{k}={config[k]!r} (only {v!r})" for k, v in only.items() if k in config and config[k] != v]
  if wrong:
    raise DimsError(f"{where}: this network is not implemented: {', '.join(wrong)}")
