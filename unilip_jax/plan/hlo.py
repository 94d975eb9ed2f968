"""Parses the text of a compiled program (XLA's HLO, optimised and scheduled).

The compiler's own cost analysis counts a loop's body once; `Program.walk` yields every instruction with the
number of times that a step runs it.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
import re

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # others end in their width: bf16, s32, f8e4m3fn
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\]")
_TYPE = re.compile(r"\b[a-z][a-z0-9]*\[[\d,]*\](?:\{[^}]*\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation: name = type op(operands), attributes.

  Attributes:
    argument: text between the parentheses.
    root: whether it is the result of its computation.
  """

  name: str
  op: str
  type: str
  operands: tuple[str, ...]
  argument: str
  attributes: str
  root: bool

  def called(self, key: str) -> list[str]:
    """Returns computations that an attribute names: calls, body, condition, to_apply and so on."""
    found = re.search(rf"\b{key}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", self.attributes)
    if not found:
      return []
    return _OPERAND.findall(found[1]) if found[1] else [found[2]]

  @functools.cached_property
  def cycles(self) -> int | None:
    """The compiler's estimate for one execution; None without code generation."""
    found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
    return int(found[1]) if found else None


class Program:
  """A parsed program.

  Attributes:
    computations: {name: its instructions in order}.
    entry: name of the first one.
  """

  def __init__(self, text: str):
    """Parses `compiled.as_text()`.

    Raises:
      ValueError: if there is no entry computation.
    """
    self.computations: dict[str, list[Instruction]] = {}
    self.entry = ""
    current: list[Instruction] | None = None
    for line in text.splitlines():
      if current is None or not line.startswith(" "):
        header = _HEADER.match(line)
        if header:
          current = self.computations.setdefault(header[2], [])
          self.entry = header[2] if header[1] else self.entry
        elif line.startswith("}"):
          current = None
        continue
      instruction = _parse(line)
      if instruction:
        current.append(instruction)
    if self.entry not in self.computations:
      raise ValueError("plan: the compiled program's text has no ENTRY computation")

  def trips(self, loop: Instruction) -> int:
    """Returns the trip count of a while loop: the compiler's, or derived from `i < bound`.

    Raises:
      ValueError: if neither is there.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
      return int(known[1])
    condition = {i.name: i for i in self.computations[loop.called("condition")[0]]}
    root = next(i for i in condition.values() if i.root)
    sides = [_behind_copies(condition, o) for o in root.operands]
    if "direction=LT" in root.attributes and len(sides) == 2 and None not in sides:
      counter, bound = sides
      if counter.op == "get-tuple-element" and bound.op == "constant":
        start, stride = self._induction(loop, int(re.search(r"index=(\d+)", counter.attributes)[1]))
        if stride:
          return -(-(int(bound.argument) - start) // stride)
    raise ValueError(f"plan: trip count of loop {loop.name} is unknown (condition: {root.attributes})")

  def _induction(self, loop: Instruction, index: int) -> tuple[int, int]:
    """Returns (first value, increment) of a loop's counter; loops that XLA unrolls add more than 1."""
    body = {i.name: i for i in self.computations[loop.called("body")[0]]}
    root = next(i for i in body.values() if i.root)
    step = _behind_copies(body, root.operands[index]) if root.op == "tuple" else None
    stride = 0
    while step is not None and step.op == "add":
      sides = [_behind_copies(body, o) for o in step.operands]
      stride += sum(int(x.argument) for x in sides if x is not None and x.op == "constant")
      step = next((x for x in sides if x is not None and x.op != "constant"), None)
    around = {i.name: i for i in self.around[loop.name]}
    entered = around.get(loop.operands[0])
    first = (_behind_copies(around, entered.operands[index])
             if entered is not None and entered.op == "tuple" else None)
    # A start from further out is a zero that XLA moved there: traced loops count from 0.
    return int(first.argument) if first is not None and first.op == "constant" else 0, stride

  @functools.cached_property
  def around(self) -> dict[str, list[Instruction]]:
    """{instruction: its computation}."""
    return {i.name: body for body in self.computations.values() for i in body}

  def walk(self, name: str = "", times: float = 1.0) -> Iterator[tuple[Instruction, float]]:
    """Yields every scheduled instruction with its executions per step; fusions are not entered.

    Of a conditional the longest branch counts: the one with the discriminator.
    """
    for i in self.computations[name or self.entry]:
      if i.op == "while":
        for n in i.called("body"):
          yield from self.walk(n, times * self.trips(i))
      elif i.op == "conditional":
        branches = i.called("branch_computations") or [
            *i.called("true_computation"), *i.called("false_computation")]
        yield from self.walk(max(branches, key=self._length), times)
      elif i.op == "call":
        for n in i.called("to_apply"):
          yield from self.walk(n, times)
      else:
        yield i, times

  def _length(self, name: str) -> int:
    return sum(1 for _ in self.walk(name))

  @functools.cached_property
  def types(self) -> dict[str, str]:
    """{instruction: type}; names are unique in a program."""
    return {i.name: i.type for body in self.computations.values() for i in body}


def split_types(text: str) -> list[str]:
  """Returns the array types of a tuple type, in order, with their layouts; of an array type itself."""
  return _TYPE.findall(text)


def arrays(text: str) -> list[int]:
  """Returns the bytes of each array in a type, without padding by layouts."""
  return [_array_bytes(dtype, dims) for dtype, dims in _ARRAY.findall(text)]


def type_bytes(text: str) -> int:
  """Returns the bytes of an array or of all arrays of a tuple."""
  return sum(arrays(text))


def hbm_bytes(text: str) -> int:
  """Returns `type_bytes` without arrays in on-chip memory."""
  return sum(type_bytes(t) for t in split_types(text) if not on_chip(t))


def on_chip(text: str) -> bool:
  """Returns whether an array's layout places it in a TPU's on-chip memory, S(1) and beyond."""
  return bool(re.search(r"S\([1-9]\d*\)", text))


def dims_of(text: str) -> tuple[int, ...]:
  """Returns the dimensions of an array type."""
  return tuple(int(d) for d in _ARRAY.search(text)[2].split(",") if d)


def dtype_of(text: str) -> str:
  """Returns the element type of an array type; "" if there is none."""
  found = _ARRAY.search(text)
  return found[1] if found else ""


def _array_bytes(dtype: str, dims: str) -> int:
  width = re.match(r"[a-z]+(\d+)", dtype)
  bits = _BITS[dtype] if dtype in _BITS else int(width[1]) if width else 0
  return math.prod(int(d) for d in dims.split(",") if d) * bits // 8


def _parse(line: str) -> Instruction | None:
  found = _NAME.match(line)
  if not found:
    return None
  rest = line[found.end():]
  type_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  op = re.match(r"\s*([\w\-]+)\(", rest[type_end:])
  if not op:
    return None
  begin = type_end + op.end() - 1
  end = _closing(rest, begin)
  argument = rest[begin + 1:end]
  return Instruction(
      name=found[2], op=op[1], type=rest[:type_end], operands=tuple(_OPERAND.findall(argument)),
      argument=argument, attributes=rest[end + 1:], root=bool(found[1]))


def _behind_copies(body: dict[str, Instruction], name: str) -> Instruction | None:
  """Returns the instruction of a name, behind copies and bitcasts; None from outside of `body`."""
  found = body.get(name)
  while found is not None and found.op in ("copy", "bitcast"):
    found = body.get(found.operands[0])
  return found


def _closing(text: str, begin: int) -> int:
  """Returns the index of the parenthesis that closes the one at `begin`."""
  depth = 0
  for match in re.finditer(r"[()]", text[begin:]):
    depth += 1 if match[0] == "(" else -1
    if depth == 0:
      return begin + match.start()
  raise ValueError(f"plan: unbalanced parentheses in the compiled program: {text[:120]}")
