"""Adapters of a loaded model: several at once, each with a weight, merged or taken off again."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unilip_jax.common import arguments, paths, tree
from unilip_jax.models import lora, presets
from unilip_jax.weights import adapters as adapters_lib

_OWN = "checkpoint"
Settings = str | Iterable[str] | Mapping[str, float]


def parse(settings: Settings) -> dict[str, float]:
  """Returns {path: weight} of "PATH[:WEIGHT]", several of those, or {path: weight}.

  Raises:
    FileNotFoundError: for a path that does not exist.
    ValueError: for a weight that is not finite, a path given twice, or another form.
  """
  if isinstance(settings, Mapping):
    pairs = [(adapters_lib.checked_text(path), _weight(path, weight)) for path, weight in settings.items()]
  elif isinstance(settings, Iterable):
    pairs = [adapters_lib.parse(text) for text in ([settings] if isinstance(settings, str) else settings)]
  else:
    raise ValueError(f"adapters={settings!r}: give PATH, PATH:WEIGHT, several of them, or {{path: weight}}")
  for path, _ in pairs:
    adapters_lib.check_exists(path)
  if len({paths.absolute(path) for path, _ in pairs}) < len(pairs):
    raise ValueError(f"adapters: {', '.join(path for path, _ in pairs)}: one is given twice")
  return dict(pairs)


def _weight(name: str, value: float) -> float:
  return arguments.number(f"weight of the adapter {name}", value, float("-inf"))


class Adapters:
  """Holds the base weights of a model and the adapters on it.

  Attributes:
    base: parameters without adapters.
    weights: {name: weight} of the adapters; 0 turns one off.
  """

  def __init__(self, params: Mapping[str, Any]):
    """Takes the adapters that `params` hold, those of a run that trained them, as "checkpoint"."""
    own, self.base = lora.split(params)
    self._leaves = {_OWN: own} if own else {}
    self.weights = dict.fromkeys(self._leaves, 1.0)

  def params(self) -> dict[str, Any]:
    """Returns the base weights with all adapters, one branch for each layer.

    Programs are compiled again when adapters come or go, not when their weights change.
    """
    joined = lora.combine([(leaves, self.weights[name]) for name, leaves in self._leaves.items()])
    return tree.merge(self.base, joined)

  def load(
      self, path: str, weight: float, name: str, tokenizer_dims: presets.TokenizerDims,
      dims: presets.UnilipDims | None) -> None:
    """Reads an adapter; see Adapted.load_adapter."""
    weight = _weight(name, weight)
    if name in self._leaves:
      raise ValueError(f"an adapter {name!r} is loaded already; give another name, or unload it first")
    known = {"vision_tower": tokenizer_dims.vit, "mlp1": None, "projector": None}
    known |= {module: getattr(dims, module, None) for module in ("llm", "connector", "dit")}
    shapes = {p: tuple(leaf.shape) for p, leaf in tree.flatten(self.base).items()}
    leaves = adapters_lib.open_adapter(
        path, {module: d for module, d in known.items() if module in self.base}, shapes)
    self._leaves[name], self.weights[name] = jax.tree.map(jnp.asarray, leaves), weight

  def set(self, weights: Mapping[str, float]) -> None:
    """Sets the weights of adapters; those that are not named are turned off."""
    self._check(weights)
    self.weights = dict.fromkeys(self._leaves, 0.0) | {n: _weight(n, w) for n, w in weights.items()}

  def unload(self, names: Iterable[str] | None) -> None:
    """Removes adapters; None removes all. The base weights are as they were."""
    names = list(self._leaves) if names is None else [names] if isinstance(names, str) else list(names)
    self._check(names)
    for name in names:
      del self._leaves[name], self.weights[name]

  def merge(self) -> None:
    """Adds the weighted adapters to the base weights and removes them."""
    self.base = lora.merge(self.params())
    self._leaves, self.weights = {}, {}

  def _check(self, names: Iterable[str]) -> None:
    if unknown := sorted(set(names) - self._leaves.keys()):
      raise ValueError(f"no adapter {', '.join(unknown)} is loaded; there are "
                       f"{', '.join(self._leaves) or 'none'}")


class Adapted:
  """Adds adapters to a model with parameters.

  Attributes:
    tokenizer_dims: of the tokenizer.
    dims: of the model; None for a tokenizer alone.
  """

  tokenizer_dims: presets.TokenizerDims
  dims: presets.UnilipDims | None
  _adapters: Adapters
  _params: Mapping[str, Any]

  @property
  def adapters(self) -> dict[str, float]:
    """{name: weight} of the loaded adapters; "checkpoint" are those that the checkpoint itself trained."""
    return dict(self._adapters.weights)

  def load_adapter(self, path: str, weight: float = 1.0, *, name: str | None = None) -> None:
    """Adds an adapter next to those that are loaded; the effects of several add up.

    Args:
      path: a run that trained adapters, a folder of PEFT or diffusers, or its .safetensors file.
      weight: factor of its effect.
      name: for the other methods; None takes the path.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: for an adapter of another model or of a kind that is not implemented, or a name in use.
    """
    self._adapters.load(path, weight, name or path, self.tokenizer_dims, self.dims)
    self._params = self._adapters.params()

  def set_adapters(self, weights: Mapping[str, float]) -> None:
    """Sets the weights of adapters by name; those that are not named are turned off."""
    self._adapters.set(weights)
    self._params = self._adapters.params()

  def unload_adapters(self, names: str | Iterable[str] | None = None) -> None:
    """Removes adapters by name, or all; what remains computes as before they were loaded."""
    self._adapters.unload(names)
    self._params = self._adapters.params()

  def merge_adapters(self) -> None:
    """Adds the weighted adapters to the weights, which saves their time; it cannot be undone.

    Raises:
      ValueError: for int8 weights.
    """
    self._adapters.merge()
    self._params = self._adapters.params()
