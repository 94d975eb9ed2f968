"""The conversion engine: rules (PyTorch name, JAX path, transform), applied in both directions.

Each network's file returns its rules from its dimensions, a prefix of the PyTorch names (`torch`, e.g.
"model.dit.") and a prefix of the JAX paths (`path`, e.g. "dit/"). Nothing is guessed: tensors without a
rule, rules without a tensor, repeated names, wrong shapes and NaN all raise. Transforms only move elements:
a round trip is bit-equal.
"""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import itertools
import re
from typing import Any

import ml_dtypes
import numpy as np

from unilip_jax.common import errors, tree

_LOSSLESS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
Array = np.ndarray


class ConversionError(ValueError):
  """Tensors and rules do not fit; the message lists every problem."""


@dataclasses.dataclass(frozen=True)
class Transform:
  """A move of elements between PyTorch's layout and JAX's, with its inverse; values never change.

  Attributes:
    to_jax: PyTorch tensor of one layer -> JAX array of one layer.
    to_torch: the inverse.
    axes: one letter per axis of the tensor, "1" for an axis of length 1; None for any shape.
    rank: of the JAX array; None for any.
    length: of the tensor's first axis; None for any.
  """

  to_jax: Callable[[Array], Array] = lambda x: x
  to_torch: Callable[[Array], Array] = lambda x: x
  axes: str | None = None
  rank: int | None = None
  length: int | None = None

  def fits(self, shape: tuple[int, ...]) -> bool:
    """Returns whether a PyTorch tensor of `shape` can make the move."""
    if self.axes is not None and (
        len(shape) != len(self.axes) or any(n != 1 for n, a in zip(shape, self.axes) if a == "1")):
      return False
    square = self.axes != "go11" or (shape[1] and shape[0] % shape[1] == 0)
    return bool(square and self.length in (None, *shape[:1]))


TRANSFORMS = {
    "copy": Transform(),
    # (out, in) <-> (in, out)
    "linear": Transform(lambda x: x.T, lambda x: x.T, "oi", 2),
    # (out, in, h, w) <-> (h, w, in, out); of a depthwise convolution `in` is 1
    "conv": Transform(
        lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1), "oihw", 4),
    # (out, in, 1, 1) <-> (in, out): a 1×1 convolution that is a Dense in JAX
    "conv1x1_linear": Transform(
        lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None], "oi11", 2),
    # (groups·size, size, 1, 1) <-> (groups, in, out): a grouped 1×1 convolution of square groups
    "grouped1x1": Transform(
        lambda x: x[:, :, 0, 0].reshape(-1, x.shape[1], x.shape[1]).transpose(0, 2, 1),
        lambda x: x.transpose(0, 2, 1).reshape(-1, x.shape[1])[:, :, None, None], "go11", 3),
    # (channels, 1, 1) or (1, channels, 1, 1) <-> (channels,)
    "channels": Transform(lambda x: x[:, 0, 0], lambda x: x[:, None, None], "c11", 1),
    "channels_4d": Transform(lambda x: x[0, :, 0, 0], lambda x: x[None, :, None, None], "1c11", 1),
    # (1, n, width) <-> (n, width)
    "unbatched": Transform(lambda x: x[0], lambda x: x[None], "1nw", 2),
}


def padded_vocabulary(used: int, rows: int, *, head: bool = False) -> Transform:
  """Returns the transform of a table of `used` rows in PyTorch, padded with zeros to `rows` in JAX.

  In PyTorch it is (used, width). In JAX it is [width, rows] for an output head, otherwise [rows, width].
  """
  pad = lambda x: np.concatenate([x, np.zeros((rows - used, x.shape[1]), x.dtype)])
  if head:
    return Transform(lambda x: pad(x).T, lambda x: x.T[:used], "oi", 2, used)
  return Transform(pad, lambda x: x[:used], "oi", 2, used)


@dataclasses.dataclass(frozen=True)
class Rule:
  """One JAX array and its PyTorch tensors.

  Attributes:
    torch: name of the PyTorch tensor; may contain `{i}`. A tuple names tensors that are one array in JAX
      (q, k, v -> qkv), concatenated on the last axis after `transform`.
    path: JAX path, keys joined by "/".
    transform: a transform or its key in TRANSFORMS; of one tensor, one layer.
    count: number of values of `{i}`, whose tensors are stacked on a new first axis (scanned layers);
      0 for a rule without `{i}`.
    sizes: last-axis sizes of the concatenated parts; () means equal parts.
  """

  torch: str | tuple[str, ...]
  path: str
  transform: str | Transform = "copy"
  count: int = 0
  sizes: tuple[int, ...] = ()

  def __post_init__(self):
    if isinstance(self.transform, str) and self.transform not in TRANSFORMS:
      raise ValueError(f"{self.torch}: unknown transform {self.transform!r}; known: {list(TRANSFORMS)}")
    if {"{i}" in part for part in self.parts} != {bool(self.count)} or "{i}" in self.path:
      raise ValueError(f"{self}: every PyTorch name contains `{{i}}` exactly when count > 0, no path does")
    if self.sizes and len(self.sizes) != len(self.parts):
      raise ValueError(f"{self}: one size per PyTorch name")

  @property
  def parts(self) -> tuple[str, ...]:
    return (self.torch,) if isinstance(self.torch, str) else self.torch

  @property
  def layers(self) -> list[tuple[str, ...]]:
    """Names of the parts, layer by layer; one layer without `{i}`."""
    return [tuple(part.replace("{i}", str(i)) for part in self.parts) for i in range(self.count or 1)]

  @property
  def names(self) -> list[str]:
    """Every PyTorch name."""
    return [name for layer in self.layers for name in layer]

  @property
  def move(self) -> Transform:
    return TRANSFORMS[self.transform] if isinstance(self.transform, str) else self.transform

  @property
  def label(self) -> str:
    return repr(self.transform) if isinstance(self.transform, str) else "of a vocabulary"

  def __str__(self) -> str:
    first, last = (" + ".join(self.layers[i]) for i in (0, -1))
    return f"{first} … {last}" if self.count > 1 else first


def linear(torch: str, path: str, count: int = 0) -> list[Rule]:
  """Returns the rules of a linear layer's weight and bias."""
  return [Rule(f"{torch}.weight", f"{path}/kernel", "linear", count),
          Rule(f"{torch}.bias", f"{path}/bias", count=count)]


def norm(torch: str, path: str, count: int = 0) -> list[Rule]:
  """Returns the rules of a norm's weight and bias."""
  return [Rule(f"{torch}.weight", f"{path}/scale", count=count),
          Rule(f"{torch}.bias", f"{path}/bias", count=count)]


def conv(torch: str, path: str, count: int = 0, *, bias: bool = True) -> list[Rule]:
  """Returns the rules of a convolution's weight and bias, depthwise ones included."""
  rules = [Rule(f"{torch}.weight", f"{path}/kernel", "conv", count)]
  return [*rules, Rule(f"{torch}.bias", f"{path}/bias", count=count)] if bias else rules


def torch_names(rules: Iterable[Rule]) -> list[str]:
  """Returns every PyTorch name that the rules read, in their order."""
  return list(itertools.chain(*(rule.names for rule in rules)))


def from_torch(
    tensors: Mapping[str, Array], rules: Sequence[Rule], expected: Mapping[str, Any] | None = None, *,
    skip: Sequence[tuple[str, str]] = ()
) -> dict[str, Any]:
  """Returns the JAX arrays of a complete source: `check`, then `read` in float32."""
  check(tensors, rules, expected, skip=skip)
  return read(tensors, rules, expected)


def check(
    tensors: Mapping[str, Any], rules: Sequence[Rule], expected: Mapping[str, Any] | None, *,
    skip: Sequence[tuple[str, str]] = ()
) -> None:
  """Compares all names, PyTorch's and JAX's, before anything is read.

  Args:
    tensors: of a complete source, by name; may be lazy.
    rules: of every tensor.
    expected: JAX paths (nested or joined by "/") -> anything with `.shape`; None checks no paths.
    skip: (regular expression from the start of the name, reason) of tensors that may stay unused.

  Raises:
    ConversionError: listing unknown, missing and repeated names.
  """
  known = {*torch_names(rules), *itertools.chain(*unused(tensors, rules, skip).values())}
  problems = _repeated(rules)
  problems += [("missing in the source", f"{name} (needed for {rule.path})")
               for rule in rules for name in rule.names if name not in tensors]
  problems += [("unknown: no rule reads them", f"{name} {np.shape(tensors[name])}")
               for name in tensors if name not in known]
  if expected is not None:
    model, paths = _shapes(expected), {rule.path for rule in rules}
    problems += [("in the model, but no rule gives them", f"{path} {shape}")
                 for path, shape in model.items() if path not in paths]
    problems += [("given by a rule, but not in the model", f"{rule.path} (from {rule})")
                 for rule in rules if rule.path not in model]
  _raise_if(problems)


def unused(
    names: Iterable[str], rules: Sequence[Rule], skip: Sequence[tuple[str, str]]
) -> dict[str, list[str]]:
  """Returns {reason: names that no rule reads and `skip` allows}."""
  known, groups = set(torch_names(rules)), {}
  for name in names:
    reason = next((why for pattern, why in skip if re.match(pattern, name)), None)
    if name not in known and reason is not None:
      groups.setdefault(reason, []).append(name)
  return groups


def read(
    tensors: Mapping[str, Array], rules: Sequence[Rule], expected: Mapping[str, Any] | None,
    dtype: str | np.dtype = "float32"
) -> dict[str, Any]:
  """Reads what `check` accepted, or one module of it, each tensor once.

  Returns nested dicts of arrays of `dtype`.

  Raises:
    ConversionError: listing tensors of wrong shapes or dtypes, or with NaN or infinite values.
  """
  model = None if expected is None else _shapes(expected)
  arrays, problems = {}, []
  for rule in rules:
    try:
      arrays[rule.path] = _read(
          tensors, rule, None if model is None else model[rule.path], numpy_dtype(dtype))
    except ConversionError as error:
      problems.append(("wrong shape, dtype or values", str(error)))
  _raise_if(problems)
  return tree.unflatten(arrays)


def to_torch(
    params: Mapping[str, Any], rules: Sequence[Rule], dtype: str | np.dtype | None = None
) -> dict[str, Array]:
  """Applies rules backwards to nested dicts (or paths joined by "/") of arrays.

  Returns:
    {PyTorch name: contiguous NumPy array} in the order of the rules; None keeps each array's dtype.

  Raises:
    ConversionError: listing arrays without a rule, rules without an array, repeated names and wrong ranks.
  """
  arrays = tree.flatten(params)
  problems, paths = _repeated(rules), {rule.path for rule in rules}
  problems += [("unknown: no rule reads them", f"{path} {tuple(leaf.shape)}")
               for path, leaf in arrays.items() if path not in paths]
  problems += [("missing in the parameters", f"{rule.path} (needed for {rule})")
               for rule in rules if rule.path not in arrays]
  _raise_if(problems)
  tensors: dict[str, Array] = {}
  for rule in rules:
    try:
      tensors |= _write(rule, np.asarray(arrays[rule.path]), dtype)
    except ConversionError as error:
      problems.append(("wrong shape", str(error)))
  _raise_if(problems)
  return tensors


def numpy_dtype(dtype: str | np.dtype) -> np.dtype:
  """Returns NumPy's dtype of a name; "bfloat16" is ml_dtypes' own."""
  return np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)


def _read(tensors, rule: Rule, model: tuple[int, ...] | None, dtype: np.dtype) -> Array:
  """Returns the array of one rule; a stack is allocated once and filled layer by layer."""
  if model is not None and rule.count and (not model or model[0] != rule.count):
    raise ConversionError(f"{rule}: {rule.count} tensors to stack; {rule.path}: model {model}")
  expected = model if model is None or not rule.count else model[1:]
  result = None
  for layer, names in enumerate(rule.layers):
    group = [np.asarray(tensors[name]) for name in names]
    for name, tensor in zip(names, group):
      if tensor.dtype not in _LOSSLESS:
        raise ConversionError(f"{name}: dtype {tensor.dtype} does not fit into float32 without loss")
      if bad := tensor.size - np.count_nonzero(np.isfinite(tensor)):
        raise ConversionError(f"{name}: {bad} of {tensor.size} values are NaN or infinite")
      if not rule.move.fits(tensor.shape):
        raise ConversionError(f"{name}: source {tensor.shape}; {rule.path}: model {model or 'any'}, "
                              f"transform {rule.label}")
    value = _join(rule, [rule.move.to_jax(tensor) for tensor in group])
    if expected is None and result is not None:
      expected = result.shape[1:]
    if value is None or (expected is not None and value.shape != expected):
      sources = ", ".join(f"{name} {tensor.shape}" for name, tensor in zip(names, group))
      shape = value.shape if value is not None else f"not of the sizes {rule.sizes or 'of equal parts'}"
      raise ConversionError(f"source {sources} -> JAX {shape}; {rule.path}: model {expected}"
                            + (" per layer" if rule.count else ""))
    if result is None:
      result = np.empty(((rule.count,) if rule.count else ()) + value.shape, dtype)
    result[layer if rule.count else ...] = value
  return result


def _join(rule: Rule, parts: list[Array]) -> Array | None:
  """Returns the parts concatenated on the last axis; None if their shapes do not fit."""
  if len(parts) == 1:
    return parts[0]
  last = tuple(part.shape[-1] for part in parts)
  if len({part.shape[:-1] for part in parts}) > 1 or last != (rule.sizes or (last[0],) * len(parts)):
    return None
  return np.concatenate(parts, axis=-1)


def _write(rule: Rule, leaf: Array, dtype) -> dict[str, Array]:
  """Returns the PyTorch tensors of one rule."""
  stacked, rank = bool(rule.count), rule.move.rank
  if (rank is not None and leaf.ndim != rank + stacked) or (
      stacked and (not leaf.ndim or leaf.shape[0] != rule.count)):
    layers = f", {rule.count} layers" if stacked else ""
    raise ConversionError(f"{rule.path} {leaf.shape}; {rule}: transform {rule.label}{layers}")
  tensors, number = {}, len(rule.parts)
  sizes = rule.sizes or (leaf.shape[-1] // number,) * number if number > 1 else ()
  if number > 1 and sum(sizes) != leaf.shape[-1]:
    raise ConversionError(f"{rule.path} {leaf.shape}: the last axis does not split into {sizes} for {rule}")
  for layer, names in enumerate(rule.layers):
    array = leaf[layer] if stacked else leaf
    parts = np.split(array, np.cumsum(sizes)[:-1], axis=-1) if number > 1 else [array]
    for name, part in zip(names, parts):
      tensor = rule.move.to_torch(part)
      tensors[name] = np.array(tensor, tensor.dtype if dtype is None else numpy_dtype(dtype), order="C")
  return tensors


def _shapes(expected: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  return {path: tuple(leaf.shape) for path, leaf in tree.flatten(expected).items()}


def _repeated(rules: Sequence[Rule]) -> list[tuple[str, str]]:
  repeats = lambda items: [x for x, n in collections.Counter(items).items() if n > 1]
  return ([("repeated: two rules read them", name) for name in repeats(torch_names(rules))]
          + [("repeated: two rules give them", path) for path in repeats(r.path for r in rules)])


def _raise_if(problems: list[tuple[str, str]]) -> None:
  """Raises ConversionError with the problems, grouped by kind."""
  texts: dict[str, list[str]] = {}
  for kind, text in problems:
    texts.setdefault(kind, []).append(f"  {text}")
  if texts:
    raise ConversionError("\n".join(f"{len(t)} {kind}:\n{errors.listed(t)}" for kind, t in texts.items()))
