"""Makes tables of the time of traced steps: by module, and of the longest operations.

  python -m unilip_jax.main --config=configs/gen2.py:tiny --workdir=DIR --config.profile_steps="(20, 22)"
  python -m benchmarks.profile_table --trace=DIR [--depth=2] [--top=15] [--out=FILE.json]

Reads what config.profile_steps writes: the trace through JAX's own ProfileData, and the compiled step's
text, in which named scopes of Flax give the module of each operation. An operation's time is its own:
without those that run inside it. On a CPU with several cores, times of threads are added up.
"""

import argparse
import collections
from collections.abc import Iterable, Mapping
import dataclasses
import math
import pathlib
import re
import sys

import jax

from benchmarks import harness
from unilip_jax.training import profiling

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?metadata=\{[^}]*?op_name=\"([^\"]*)\"", re.M)
_WRAPPED = re.compile(r"^(\w+)\((.*)\)$")
_NOT_MODULES = {"jit", "pjit", "main", "while", "body", "cond", "closed_call", "checkpoint", "remat",
                "rematted_computation", "scan", "branch_0_fun", "branch_1_fun", "custom_jvp_call",
                "custom_vjp_call", "shard_map", "vmap", "layers", "train_step"}
OTHER = "(no module)"


@dataclasses.dataclass(frozen=True)
class Interval:
  """One operation that ran.

  Attributes:
    op: name of the instruction.
    start: nanoseconds.
    end: nanoseconds.
  """

  op: str
  start: float
  end: float


def module_of(op_name: str, depth: int) -> tuple[str, bool]:
  """Returns the module in the op_name of an instruction.

  Args:
    op_name: e.g. "jit(train_step)/transpose(jvp(Sana))/layers/while/body/attn/qkv/dot_general".
    depth: modules from the outermost one.

  Returns:
    (names joined by "/", whether it is of a backward pass).
  """
  names, backward = [], False
  *scopes, _ = op_name.split("/")  # the last is the operation itself
  for scope in scopes:
    while match := _WRAPPED.match(scope):
      backward |= match[1] == "transpose"
      scope = match[2] if match[1] not in ("jit", "pjit") else ""
    # "Tokenizer.decode" is a method; the modules that it calls have names of their own.
    if scope and scope not in _NOT_MODULES and "." not in scope and not scope.startswith("<"):
      names.append(scope)
  return "/".join(names[:depth]) or OTHER, backward


def own_times(intervals: Iterable[Interval]) -> collections.Counter[str]:
  """Computes nanoseconds by operation on one thread, without what runs inside an operation."""
  own: collections.Counter[str] = collections.Counter()
  open_ops: list[Interval] = []
  for interval in sorted(intervals, key=lambda i: (i.start, -i.end)):
    while open_ops and open_ops[-1].end <= interval.start:
      open_ops.pop()
    length = interval.end - interval.start
    own[interval.op] += length
    if open_ops:
      own[open_ops[-1].op] -= min(length, open_ops[-1].end - interval.start)
    open_ops.append(interval)
  return own


def read(folder: pathlib.Path) -> tuple[collections.Counter[str], int, float, str]:
  """Reads the trace in `folder`.

  Returns:
    (own nanoseconds by instruction, steps, seconds from one step's start to the next one's, the compiled
    step's text). The host starts a step while the one before it runs, so the end of a step's own
    span is meaningless.

  Raises:
    FileNotFoundError: if `folder` holds no trace, or no text of the step.
  """
  files = sorted(folder.glob("*.xplane.pb"))
  text = folder / profiling.TEXT
  if not files or not text.exists():
    raise FileNotFoundError(f"{folder} holds no *.xplane.pb with {profiling.TEXT}; a run writes them "
                            "with --config.profile_steps='(first, last)'")
  own: collections.Counter[str] = collections.Counter()
  starts = []
  for plane in jax.profiler.ProfileData.from_file(str(files[0])).planes:
    for line in plane.lines:
      intervals = []
      for event in line.events:
        if event.name == "train":
          starts.append(event.start_ns)
          continue
        op = dict(event.stats).get("hlo_op")
        if op is None and line.name == "XLA Ops":  # a TPU's
          op = event.name.lstrip("%").split(" ")[0]
        if op is not None and not event.name.startswith("end: "):
          intervals.append(Interval(str(op), event.start_ns, event.end_ns))
      own += own_times(intervals)
  seconds = (max(starts) - min(starts)) / 1e9 / (len(starts) - 1) if len(starts) > 1 else math.nan
  return own, len(starts), seconds, text.read_text()


def table(
    own: Mapping[str, float], text: str, depth: int, top: int
) -> tuple[list[dict], list[dict]]:
  """Makes rows by module and by operation.

  Args:
    own: nanoseconds by instruction.
    text: the compiled step.
    depth: see `module_of`.
    top: operations to list.

  Returns:
    ([{"module", "pass", "share"}], [{"operation", "of", "share"}]), largest first; shares add up to 1
    over the modules. Instructions that the text does not name are those of other programs.
  """
  names = dict(_INSTRUCTION.findall(text))
  here = {op: time for op, time in own.items() if f"%{op} = " in text or op in names}
  total = sum(here.values())
  modules: collections.Counter[tuple[str, bool]] = collections.Counter()
  for op, time in here.items():
    modules[module_of(names.get(op, ""), depth)] += time
  by_module = [{"module": name, "pass": "backward" if backward else "forward", "share": time / total}
               for (name, backward), time in modules.most_common()]
  by_op = [{"operation": op, "of": names.get(op, ""), "share": time / total}
           for op, time in collections.Counter(here).most_common(top)]
  return by_module, by_op


def _find(path: pathlib.Path) -> pathlib.Path:
  """Returns the newest trace of a workdir, or the folder itself."""
  found = sorted(path.glob("tensorboard/plugins/profile/*/"), key=lambda p: p.stat().st_mtime)
  return found[-1] if found else path


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--trace", required=True, help="workdir, or folder of one trace")
  parser.add_argument("--depth", type=int, default=2, help="modules, from the outermost one")
  parser.add_argument("--top", type=int, default=12, help="operations to list")
  parser.add_argument("--out", default="", help="also write both here, as JSON of the benchmarks' schema")
  args = parser.parse_args(argv)
  try:
    own, steps, seconds, text = read(_find(pathlib.Path(args.trace).expanduser()))
  except FileNotFoundError as error:
    sys.exit(f"error: {error}")
  by_module, by_op = table(own, text, args.depth, args.top)
  print(f"{steps} steps, {seconds:.3f} s each\n")
  print("| module | pass | share of the time |\n|---|---|---|")
  for row in by_module:
    if row["share"] >= 0.01:
      print(f"| {row['module']} | {row['pass']} | {row['share']:.1%} |")
  print("\n| operation | of | share of the time |\n|---|---|---|")
  for row in by_op:
    print(f"| {row['operation']} | {row['of']} | {row['share']:.1%} |")
  if args.out:
    rows = [harness.row("step", [seconds], "s")]
    rows += [harness.row(f"{row['module']}, {row['pass']}", [row["share"]], "of the time")
             for row in by_module]
    rows += [harness.row(f"{row['operation']}, {row['of']}", [row["share"]], "of the time")
             for row in by_op]
    harness.write(args.out, "profile_table", {"steps": steps, "depth": args.depth}, rows)


if __name__ == "__main__":
  main()
