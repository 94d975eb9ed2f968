"""The conversion engine: rows of (torch name, our path, transform), run in both directions.

A network's names stand in one table (convert/tables_*.py); this file applies any table. Nothing is
guessed: a tensor that no row names, a row without its tensor, a doubled name and a wrong shape all
raise, with both names and both shapes. Every transform only moves elements, so that a round trip is
bit-equal.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import re
from typing import Any

import ml_dtypes
import numpy as np

from unilip_jax.common import tree
from unilip_jax.convert import transforms

_LISTED = 20  # problems printed of each kind
_LOSSLESS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


class ConversionError(ValueError):
  """Tensors and table do not fit; the message lists every problem."""


@dataclasses.dataclass(frozen=True)
class Rule:
  """One row.

  Attributes:
    torch: name of the PyTorch tensor; may contain `{i}`. A tuple names tensors that are one array
      here (q, k, v -> qkv), joined on the last axis after `transform`.
    path: ours, keys joined by "/". With `{i}` there is one array per i; without, the tensors of
      all i are stacked on a new first axis (scanned layers).
    transform: key of transforms.TRANSFORMS, or a move itself; of one tensor, one layer.
    count: number of values of `{i}`; 0 for a row without `{i}`.
    start: first value of `{i}`.
    sizes: last-axis sizes of the joined parts; () means equal parts.
  """

  torch: str | tuple[str, ...]
  path: str
  transform: str | transforms.Transform = "copy"
  count: int = 0
  start: int = 0
  sizes: tuple[int, ...] = ()

  @property
  def parts(self) -> tuple[str, ...]:
    return (self.torch,) if isinstance(self.torch, str) else self.torch


def from_torch(
    tensors: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    expected: Mapping[str, Any] | None,
    *,
    skip: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
  """Applies a table to PyTorch tensors.

  Args:
    tensors: by name; may be lazy, each needed tensor is read once.
    rules: the table.
    expected: our paths (nested or joined by "/") -> anything with `.shape`; None checks no shapes.
    skip: (regular expression from the start of the name, reason) of tensors that may stay unused.

  Returns:
    Nested dicts of float32 arrays.

  Raises:
    ConversionError: listing unknown, missing, doubled and wrong-shaped tensors.
  """
  check(tensors, rules, expected, skip=skip)
  return read(tensors, rules, expected)


def check(
    tensors: Mapping[str, Any],
    rules: Sequence[Rule],
    expected: Mapping[str, Any] | None,
    *,
    skip: Sequence[tuple[str, str]] = (),
) -> None:
  """Compares all names, ours and PyTorch's, before anything is read.

  Args:
    tensors: of a whole source.
    rules: the tables of all that is taken from it.
    expected: see `from_torch`.
    skip: see `from_torch`.

  Raises:
    ConversionError: listing unknown, missing and doubled names.
  """
  rows = [row for rule in rules for row in _rows(rule)]
  names = [name for row in rows for group in row.torch for name in group]
  used = set(names)
  problems = _doubled(names, [row.path for row in rows])
  problems += [("missing in the source", f"{name} (wanted for {row.path})")
               for row in rows for group in row.torch for name in group if name not in tensors]
  skippers = [re.compile(pattern) for pattern, _ in skip]
  problems += [("unknown: no rule takes them", f"{name} {_shape(tensors, name)}")
               for name in tensors
               if name not in used and not any(s.match(name) for s in skippers)]
  if expected is not None:
    wanted = _wanted(expected)
    paths = {row.path for row in rows}
    problems += [("the model's, but no rule makes them", f"{path} {shape}")
                 for path, shape in wanted.items() if path not in paths]
    problems += [("made by a rule, but not in the model", f"{row.path} (from {row.name})")
                 for row in rows if row.path not in wanted]
  _raise_if(problems)


def read(
    tensors: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    expected: Mapping[str, Any] | None,
    dtype: str | np.dtype = "float32",
) -> dict[str, Any]:
  """Reads what `check` has passed, or one module of it.

  Args:
    tensors: by name.
    rules: the table of what is wanted.
    expected: see `from_torch`.
    dtype: of the result.

  Raises:
    ConversionError: listing tensors of wrong shapes or dtypes.
  """
  wanted = None if expected is None else _wanted(expected)
  flat, problems = {}, []
  for row in (row for rule in rules for row in _rows(rule)):
    array, wrong = _read_row(
        tensors, row, None if wanted is None else wanted[row.path], numpy_dtype(dtype))
    problems += [("wrong shape or dtype", text) for text in wrong]
    if not wrong:
      flat[row.path] = array
  _raise_if(problems)
  return tree.unflatten(flat)


def _wanted(expected: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  return {path: tuple(leaf.shape) for path, leaf in tree.flatten(expected).items()}


def to_torch(
    params: Mapping[str, Any], rules: Sequence[Rule], dtype: str | np.dtype | None = None
) -> dict[str, np.ndarray]:
  """Applies a table backwards.

  Args:
    params: nested dicts (or paths joined by "/") of arrays.
    rules: the table.
    dtype: of the result, e.g. "bfloat16"; None keeps each array's own.

  Returns:
    PyTorch tensors by name, as contiguous numpy arrays in the table's order.

  Raises:
    ConversionError: listing arrays without a rule, rules without an array, doubled names and
      wrong ranks.
  """
  flat = tree.flatten(params)
  rows = [row for rule in rules for row in _rows(rule)]
  problems = _doubled(
      [name for row in rows for group in row.torch for name in group], [row.path for row in rows])
  paths = {row.path for row in rows}
  problems += [("unknown: no rule takes them", f"{path} {tuple(leaf.shape)}")
               for path, leaf in flat.items() if path not in paths]
  problems += [("missing in the parameters", f"{row.path} (wanted for {row.name})")
               for row in rows if row.path not in flat]
  _raise_if(problems)
  result = {}
  for row in rows:
    problems += [("wrong shape", text) for text in _write_row(result, row, flat[row.path], dtype)]
  _raise_if(problems)
  return result


def unused(
    names: Iterable[str], rules: Sequence[Rule], skip: Sequence[tuple[str, str]]
) -> dict[str, list[str]]:
  """{reason: names that `skip` leaves out}, for the log."""
  taken = set(torch_names(rules))
  groups: dict[str, list[str]] = {}
  for name in names:
    if name not in taken:
      reason = next((reason for pattern, reason in skip if re.match(pattern, name)), None)
      if reason is not None:
        groups.setdefault(reason, []).append(name)
  return groups


def paths(rules: Sequence[Rule]) -> list[str]:
  """Every one of our paths that the table makes."""
  return [row.path for rule in rules for row in _rows(rule)]


def torch_names(rules: Sequence[Rule]) -> list[str]:
  """Every PyTorch name that the table takes, in its order."""
  return [name for rule in rules for row in _rows(rule) for group in row.torch for name in group]


@dataclasses.dataclass(frozen=True)
class _Row:
  """A rule with `{i}` filled in: one of our arrays, from layers of joined tensors."""

  torch: tuple[tuple[str, ...], ...]
  path: str
  transform: str | transforms.Transform
  stacked: bool
  sizes: tuple[int, ...]

  @property
  def name(self) -> str:
    first = " + ".join(self.torch[0])
    return f"{first} … {' + '.join(self.torch[-1])}" if len(self.torch) > 1 else first


def _rows(rule: Rule) -> list[_Row]:
  try:
    transforms.get(rule.transform)
  except ValueError as error:
    raise ValueError(f"{rule.torch}: {error}") from error
  indexed = [("{i}" in part) for part in rule.parts]
  if any(indexed) != all(indexed) or any(indexed) != bool(rule.count) or (
      "{i}" in rule.path and not rule.count):
    raise ValueError(f"{rule}: `{{i}}` must stand in every torch name exactly when count > 0")
  if rule.sizes and len(rule.sizes) != len(rule.parts):
    raise ValueError(f"{rule}: one size per torch name")
  if not rule.count:
    return [_Row((rule.parts,), rule.path, rule.transform, False, rule.sizes)]
  filled = [(str(i), tuple(part.replace("{i}", str(i)) for part in rule.parts))
            for i in range(rule.start, rule.start + rule.count)]
  if "{i}" in rule.path:
    return [_Row((parts,), rule.path.replace("{i}", i), rule.transform, False, rule.sizes)
            for i, parts in filled]
  return [_Row(tuple(parts for _, parts in filled), rule.path, rule.transform, True, rule.sizes)]


def _read_row(tensors, row: _Row, wanted: tuple[int, ...] | None, dtype: np.dtype):
  """(our array, problems) of one row; the stack is allocated once and filled layer by layer."""
  wrong: list[str] = []
  if wanted is not None and row.stacked and (not wanted or wanted[0] != len(row.torch)):
    return None, [f"{row.name}: {len(row.torch)} tensors to stack; {row.path}: model {wanted}"]
  result = None
  for layer, group in enumerate(row.torch):
    parts, shapes = [], []
    for name in group:
      tensor = np.asarray(tensors[name])
      shapes.append(tensor.shape)
      if tensor.dtype not in _LOSSLESS:
        return None, [f"{name}: dtype {tensor.dtype} does not fit into float32 without loss"]
      if not transforms.fits(row.transform, tensor.shape):
        return None, [f"{name}: source {tensor.shape}; {row.path}: model {wanted or 'any'}, "
                      f"transform {_label(row.transform)}"]
      parts.append(transforms.get(row.transform).to_ours(tensor))
    shape, fault = _joined_shape(row, parts)
    per_layer = None if wanted is None else wanted[1:] if row.stacked else wanted
    if per_layer is None and result is not None:
      per_layer = result.shape[1:]
    if fault or (per_layer is not None and shape != per_layer):
      sources = ", ".join(f"{n} {s}" for n, s in zip(group, shapes))
      wrong.append(f"source {sources} -> here {fault or shape}; {row.path}: model {per_layer}"
                   + (" per layer" if row.stacked else ""))
      continue
    if result is None:
      result = np.empty(((len(row.torch),) if row.stacked else ()) + shape, dtype)
    target = result[layer] if row.stacked else result
    start = 0
    for part in parts:
      if len(parts) == 1:
        target[...] = part
      else:
        target[..., start:start + part.shape[-1]] = part
        start += part.shape[-1]
  return result, wrong


def _write_row(result: dict[str, np.ndarray], row: _Row, leaf, dtype) -> list[str]:
  """Fills `result` with the tensors of one row; returns problems."""
  leaf = np.asarray(leaf)
  transform = transforms.get(row.transform)
  rank = None if transform.our_rank is None else transform.our_rank + row.stacked
  if (rank is not None and leaf.ndim != rank) or (
      row.stacked and (not leaf.ndim or leaf.shape[0] != len(row.torch))):
    layers = f", {len(row.torch)} layers" if row.stacked else ""
    return [f"{row.path} {leaf.shape}; {row.name}: transform {_label(row.transform)}{layers}"]
  for layer, group in enumerate(row.torch):
    array = leaf[layer] if row.stacked else leaf
    sizes = row.sizes
    if len(group) > 1 and not sizes:
      sizes = (array.shape[-1] // len(group),) * len(group)
    if len(group) > 1 and sum(sizes) != array.shape[-1]:
      return [f"{row.path} {leaf.shape}: last axis does not split into {sizes} for {group}"]
    start = 0
    for index, name in enumerate(group):
      part = array
      if len(group) > 1:
        part = array[..., start:start + sizes[index]]
        start += sizes[index]
      moved = transform.to_torch(part)
      result[name] = np.array(
          moved, dtype=moved.dtype if dtype is None else numpy_dtype(dtype), order="C")
  return []


def numpy_dtype(dtype: str | np.dtype) -> np.dtype:
  """numpy's dtype of a name; "bfloat16" is ml_dtypes' own."""
  return np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)


def _joined_shape(row: _Row, parts: list[np.ndarray]) -> tuple[tuple[int, ...], str]:
  """(shape after joining on the last axis, fault or "")."""
  if len(parts) == 1:
    return parts[0].shape, ""
  shapes = [p.shape for p in parts]
  lasts = tuple(s[-1] for s in shapes)
  sizes = row.sizes or (lasts[0],) * len(parts)
  if len({s[:-1] for s in shapes}) > 1 or lasts != sizes:
    return (), f"parts {shapes} do not join into sizes {sizes}"
  return (*shapes[0][:-1], sum(lasts)), ""


def _label(transform: str | transforms.Transform) -> str:
  return repr(transform) if isinstance(transform, str) else "of a vocabulary"


def _doubled(names: Sequence[str], paths: Sequence[str]) -> list[tuple[str, str]]:
  return ([("doubled: two rules take them", n) for n in _repeats(names)]
          + [("doubled: two rules make them", p) for p in _repeats(paths)])


def _repeats(items: Sequence[str]) -> list[str]:
  seen: set[str] = set()
  return [x for x in items if x in seen or seen.add(x)]


def _shape(tensors, name: str) -> tuple[int, ...]:
  """Shape without reading the tensor where the mapping knows it."""
  shapes = getattr(tensors, "shapes", None)
  return tuple(shapes[name]) if shapes is not None else tuple(np.shape(tensors[name]))


def _raise_if(problems: list[tuple[str, str]]) -> None:
  if not problems:
    return
  lines = []
  for kind in dict.fromkeys(kind for kind, _ in problems):
    texts = [text for k, text in problems if k == kind]
    lines.append(f"{len(texts)} {kind}:")
    lines += [f"  {text}" for text in texts[:_LISTED]]
    if len(texts) > _LISTED:
      lines.append(f"  and {len(texts) - _LISTED} more")
  raise ConversionError("\n".join(lines))
