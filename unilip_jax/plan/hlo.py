"""Parses the text of a compiled program (XLA's HLO, optimised and scheduled).

The compiler's own cost analysis counts a loop's body once; `Program.walk` yields every instruction with the
number of times that a step runs it.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import functools
import math
import re

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # others end in their width: bf16, s32, f8e4m3fn
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")  # dtype, dimensions, layout
_OPERAND = re.compile(r"%([\w.\-]+(?:#\d+)?)")  # %tuple#1: an element, since libtpu 0.0.50


@dataclasses.dataclass(frozen=True)
class Array:
  """An array type, e.g. bf16[16,128]{1,0:T(8,128)(2,1)S(1)}; `on_chip`: outside of HBM, S(1) and beyond."""

  dtype: str
  dims: tuple[int, ...]
  on_chip: bool

  @property
  def bytes(self) -> int:
    """Bytes without the padding that a layout adds."""
    width = re.match(r"[a-z]+(\d+)", self.dtype)
    bits = _BITS[self.dtype] if self.dtype in _BITS else int(width[1]) if width else 0
    return math.prod(self.dims) * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation: name = type op(operands), attributes.

  Attributes:
    arrays: its type: one array, or those of a tuple.
    argument: text between the parentheses.
    root: whether it is the result of its computation.
  """

  name: str
  op: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  argument: str
  attributes: str
  root: bool

  def called(self, key: str) -> list[str]:
    """Returns computations that an attribute names: calls, body, condition, to_apply and so on."""
    match = re.search(rf"\b{key}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", self.attributes)
    if not match:
      return []
    return _OPERAND.findall(match[1]) if match[1] else [match[2]]

  @functools.cached_property
  def cycles(self) -> int | None:
    """The compiler's estimate for one execution; None without code generation."""
    match = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
    return int(match[1]) if match else None


class Program:
  """A parsed program.

  Attributes:
    computations: {name: its instructions in order}.
    entry: name of the first one.
    devices: that run it together, 1 where the text has no number.
  """

  def __init__(self, text: str):
    """Parses `compiled.as_text()`.

    Raises:
      ValueError: if there is no entry computation.
    """
    self.computations: dict[str, list[Instruction]] = {}
    self.entry = ""
    head = text.partition("\n")[0]
    self.devices = math.prod(int(n) for n in re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", head))
    current: list[Instruction] | None = None
    known: dict[str, Instruction] = {}  # of the current computation
    for line in text.splitlines():
      if current is None or not line.startswith(" "):
        header = _HEADER.match(line)
        if header:
          current, known = self.computations.setdefault(header[2], []), {}
          self.entry = header[2] if header[1] else self.entry
        elif line.startswith("}"):
          current = None
        continue
      if instruction := _parse(line):
        for each in (*_elements(instruction.operands, known), instruction):
          current.append(each)
          known[each.name] = each
    if self.entry not in self.computations:
      raise ValueError("plan: the compiled program's text has no ENTRY computation")

  def trips(self, loop: Instruction) -> int:
    """Returns the trip count of a while loop: the compiler's, or derived from `i < bound`.

    Raises:
      ValueError: if neither is there.
    """
    match = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if match:
      return int(match[1])
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

  def arrays(self, name: str) -> tuple[Array, ...]:
    """Returns the type of an instruction; names are unique in a program."""
    return self._types.get(name, ())

  @functools.cached_property
  def _types(self) -> dict[str, tuple[Array, ...]]:
    return {i.name: i.arrays for body in self.computations.values() for i in body}


def total_bytes(arrays: Iterable[Array]) -> int:
  """Returns the bytes of all arrays."""
  return sum(a.bytes for a in arrays)


def hbm_bytes(arrays: Iterable[Array]) -> int:
  """Returns the bytes of arrays that are not in on-chip memory."""
  return sum(a.bytes for a in arrays if not a.on_chip)


def _parse(line: str) -> Instruction | None:
  match = _NAME.match(line)
  if not match:
    return None
  rest = line[match.end():]
  type_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  op = re.match(r"\s*([\w\-]+)\(", rest[type_end:])
  if not op:
    return None
  begin = type_end + op.end() - 1
  end = _closing(rest, begin)
  argument = rest[begin + 1:end]
  return Instruction(
      name=match[2], op=op[1], arrays=_parse_type(rest[:type_end]),
      operands=tuple(_OPERAND.findall(argument)), argument=argument, attributes=rest[end + 1:],
      root=bool(match[1]))


def _elements(operands: Iterable[str], known: dict[str, Instruction]) -> Iterator[Instruction]:
  """Yields a get-tuple-element for each operand `tuple#index` that is not known yet."""
  for name in dict.fromkeys(operands):
    source, _, index = name.partition("#")
    if index and name not in known:
      yield Instruction(
          name=name, op="get-tuple-element", arrays=(known[source].arrays[int(index)],), operands=(source,),
          argument=f"%{source}", attributes=f", index={index}", root=False)


def _parse_type(text: str) -> tuple[Array, ...]:
  return tuple(Array(dtype, tuple(int(d) for d in dims.split(",") if d),
                     bool(re.search(r"S\([1-9]\d*\)", layout)))
               for dtype, dims, layout in _ARRAY.findall(text))


def _behind_copies(body: dict[str, Instruction], name: str) -> Instruction | None:
  """Returns the instruction of a name, behind copies and bitcasts; None from outside of `body`."""
  i = body.get(name)
  while i is not None and i.op in ("copy", "bitcast"):
    i = body.get(i.operands[0])
  return i


def _closing(text: str, begin: int) -> int:
  """Returns the index of the parenthesis that closes the one at `begin`."""
  depth = 0
  for match in re.finditer(r"[()]", text[begin:]):
    depth += 1 if match[0] == "(" else -1
    if depth == 0:
      return begin + match.start()
  raise ValueError(f"plan: unbalanced parentheses in the compiled program: {text[:120]}")
