"""One table sets for each parameter whether it trains, its rate, its weight decay and its dtype.

A table is rows of (regex over the parameter's path, {column: value}). For each column the first row that
matches the path and names the column wins. Columns:

  train  bool   False: no gradient, no optimizer state, no EMA; saved once per run     (default True)
  lr     float  multiplier of the learning rate                                        (default 1.0)
  decay  bool   weight decay; by default on for rank >= 2 (without the scan axis) unless the path contains
                one of the no-decay names, as in the official code
  dtype  str    of a frozen weight on the device                                  (default "float32")
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any

from unilip_jax.common import tree

Table = Sequence[tuple[str, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Columns:
  """Holds the resolved columns of one parameter."""

  train: bool
  lr: float
  decay: bool
  dtype: str


_NAMES = tuple(f.name for f in dataclasses.fields(Columns))


def resolve(params: tree.Tree, table: Table, no_decay: Sequence[str]) -> dict[str, Columns]:
  """Resolves `table` for every leaf of `params`.

  Args:
    params: nested dict of arrays or ShapeDtypeStructs.
    table: rows as in the module's docstring.
    no_decay: substrings of a path that turn weight decay off.

  Returns:
    {path: Columns} in tree order.

  Raises:
    ValueError: for an unknown column, or a row whose regex matches no parameter: a misspelt path would
      train parameters that should be frozen.
  """
  flat = tree.flatten(params)
  for pattern, columns in table:
    unknown = set(columns) - set(_NAMES)
    if unknown:
      raise ValueError(
          f"param_rules: unknown column {sorted(unknown)} in row {pattern!r}; known: {_NAMES}")
    if not any(re.search(pattern, path) for path in flat):
      raise ValueError(
          f"param_rules: row {pattern!r} matches no parameter; paths look like {next(iter(flat))!r}")

  def columns_of(path: str, leaf: Any) -> Columns:
    decays = tree.unstacked_rank(path, leaf) > 1 and not any(n in path for n in no_decay)
    values = {"train": True, "lr": 1.0, "decay": decays, "dtype": "float32"}
    for pattern, columns in reversed(list(table)):  # the first match wins, so it is applied last
      if re.search(pattern, path):
        values.update(columns)
    return Columns(**values)

  return {path: columns_of(path, leaf) for path, leaf in flat.items()}
