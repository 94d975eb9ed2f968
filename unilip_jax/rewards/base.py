"""Rewards: functions from images and what was asked to numbers (docs/extend.md shows how to add one).

A row (name, weight[, options]) of `reward.terms` selects one. The name is registered in the group "reward",
for a function (**options) -> Score, or it is "module:function", a Score of the user. Scores run in
processes of their own (pool.py) and import no JAX unless they use it themselves.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import importlib.util
import inspect
from typing import Any

import numpy as np

from unilip_jax.common import registry

registry.register("reward", "judge", "unilip_jax.scores.reward_judge:make")
registry.register("reward", "geneval", "unilip_jax.scores.reward_geneval:make")


@dataclasses.dataclass(frozen=True)
class Record:
  """Holds what was asked of an image.

  Attributes:
    kind: "t2i" | "edit".
    prompt: the prompt, or the instruction of an edit.
    data: the JSON object of the prompt's record, for rewards that need to know more.
    source: uint8[R, R, 3], the image to edit; None for text→image.
  """

  kind: str
  prompt: str
  data: Mapping[str, Any]
  source: np.ndarray | None = None


# (uint8[B, R, R, 3] images, B records) -> float[B]; an exception or NaN is a failure.
Score = Callable[[np.ndarray, Sequence[Record]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Term:
  """Describes one summand of the reward.

  Attributes:
    name: a registered name, or "module:function".
    weight: of the score in the sum.
    options: of a registered reward.
  """

  name: str
  weight: float
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def label(self) -> str:
    """Name in metrics and messages: a function's own name."""
    return self.name.rpartition(":")[2]

  def open(self) -> Score:
    """Imports the reward and makes its function.

    Raises:
      ValueError: for an unknown name, or a function that is absent or not callable.
    """
    if ":" not in self.name:
      return registry.find("reward", self.name)(**self.options)
    try:
      score = registry.resolve(self.name)
    except (ImportError, AttributeError) as error:
      raise ValueError(
          f"reward {self.name!r}: {error}; give module:function of an installed package") from error
    if not callable(score):
      raise ValueError(f"reward {self.name!r} is a {type(score).__name__}; give module:function")
    return functools.partial(score, **self.options) if self.options else score


def check(terms: Sequence[Term]) -> None:
  """Checks that rewards can be opened, before weights are read; imports the modules of users.

  Raises:
    ValueError: for a module that is not installed, a function that is absent or not callable, or options
      that a registered reward does not take.
  """
  for term in terms:
    if ":" in term.name:
      module, _, function = term.name.partition(":")
      if not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        raise ValueError(f"reward {term.name!r}: give module:function")
      try:
        found = importlib.util.find_spec(module)
      except ModuleNotFoundError:  # of a package above it
        found = None
      if found is None:
        raise ValueError(f"reward {term.name!r}: there is no module {module}; install its package, or add "
                         "its folder to PYTHONPATH")
      term.open()
      continue
    try:
      inspect.signature(registry.find("reward", term.name)).bind(**term.options)
    except TypeError as error:
      raise ValueError(f"reward {term.name!r}: {error}") from error


def read_terms(rows: Sequence[Sequence[Any]]) -> list[Term]:
  """Reads the rows of `reward.terms`.

  Raises:
    ValueError: for none, for unknown names, or for two with one label.
  """
  terms = [Term(row[0], float(row[1]), dict(row[2]) if len(row) > 2 else {}) for row in rows]
  if not terms:
    raise ValueError('reward.terms has no rows; add one, e.g. "((\'judge\',1.0,{…}),)" (docs/training.md)')
  labels = [term.label for term in terms]
  if repeated := sorted({name for name in labels if labels.count(name) > 1}):
    raise ValueError(f"reward.terms: repeated names {repeated}; each is a metric of its own")
  for term in terms:
    if ":" not in term.name and not registry.has("reward", term.name):
      raise ValueError(f"reward.terms: unknown reward {term.name!r}; known: "
                       f"{', '.join(registry.names('reward'))}, or module:function")
  return terms
