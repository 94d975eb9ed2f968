"""Command line that tells whether two scores may be compared, and which field forbids it.

  python -m unilip_jax.evals compare runs/a/judged runs/b/judged/results.json

The scores must be of one benchmark and revision, the same items, rules and judge. How the images were made
may differ: that is what is compared. Exit status 1 if a field forbids the comparison. Fréchet distances
(what `fid --json` prints) must be of one protocol, method, reference and number of images.
"""

import argparse
from collections.abc import Mapping, Sequence
import json
import sys
from typing import Any

from unilip_jax.common import command_options
from unilip_jax.scores import base
from unilip_jax.scores import result as result_lib

_SAME = ("benchmark", "revision", "rules", "published_variant", "items.sha256")
_JUDGE = ("judge.model", "judge.prompts", "judge.tries")
_METRIC = ("metric.protocol", "metric.method", "metric.weights", "metric.n")  # of a Fréchet distance
_MAKE = ("protocol", "solver", "steps", "guidance", "seed", "noise", "size", "images_per_item", "precision",
         "int8", "keep_size", "max_new_tokens", "max_tiles", "prompt", "weights_fingerprint")


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command."""
  out = argparse.ArgumentParser(prog="unilip evals compare", description=__doc__,
                                formatter_class=command_options.Help)
  out.add_argument("results", nargs=2, metavar="RESULT",
                   help="results.json or its folder, or what `fid --json` prints")
  out.add_argument("--json", action="store_true", help="print one JSON object")
  return out


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command."""
  args = parser().parse_args(argv)
  verdict = compare(*map(result_lib.read, args.results))
  print(json.dumps(verdict, ensure_ascii=False) if args.json else as_text(verdict))
  if not verdict["comparable"]:
    sys.exit(1)


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
  """Compares what two scores depend on.

  Args:
    a, b: from result.read.

  Returns:
    comparable: whether no field forbids it.
    forbids: [[field, value of a, value of b, reason]].
    differs: [[field, value of a, value of b]] of how images were made.
    unknown: fields that a result does not state.
    scores, difference, intervals_overlap: of a and b; None where a score is.
  """
  forbids, unknown = [], []
  fields = [*_SAME, *(_JUDGE if a.get("judge") or b.get("judge") or _is_judged(a) else ()),
            *(_METRIC if "metric" in a and "metric" in b else ())]
  for field in fields:
    values = _get(a, field), _get(b, field)
    if None in values:
      unknown.append(field)
      if field == "judge.model":
        forbids.append([field, *values, "a judge is not stated (aggregate --judged_by)"])
    elif values[0] != values[1]:
      forbids.append([field, *values, "differs"])
  for name in ("n", "missing", "malformed"):
    if a["rules"] == b["rules"] == "official" and a[name] != b[name]:
      forbids.append([name, a[name], b[name], "official rules leave out what is missing or malformed: "
                      "compare with --rules=strict"])
      break
  differs = []
  for field in (f"make.{name}" for name in _MAKE):
    values = _get(a, field), _get(b, field)
    if values[0] != values[1]:
      (unknown if None in values else differs).append(field if None in values else [field, *values])
  known = a["score"] is not None and b["score"] is not None
  return {
      "comparable": not forbids, "forbids": forbids, "differs": differs, "unknown": unknown,
      "scores": [a["score"], b["score"]], "difference": b["score"] - a["score"] if known else None,
      "intervals_overlap": _overlap(a["interval"], b["interval"])}


def as_text(verdict: Mapping[str, Any]) -> str:
  """Formats the verdict of `compare`."""
  lines = ["comparable" if verdict["comparable"] else "not comparable"]
  lines += [f"  {field}: {first!r} / {second!r}: {reason}"
            for field, first, second, reason in verdict["forbids"]]
  first, second = verdict["scores"]
  lines.append(f"scores {first} / {second}, difference {verdict['difference']}" + (
      "" if verdict["intervals_overlap"] is None else
      f"; 95 % intervals {'overlap' if verdict['intervals_overlap'] else 'do not overlap'}"))
  if verdict["differs"]:
    lines.append("made differently, which is allowed:")
    lines += [f"  {field}: {first!r} / {second!r}" for field, first, second in verdict["differs"]]
  if verdict["unknown"]:
    lines.append(f"not stated by both: {', '.join(verdict['unknown'])}")
  return "\n".join(lines)


def _is_judged(result: Mapping[str, Any]) -> bool:
  return result["benchmark"] in base.names() and base.find(result["benchmark"]).judge is not None


def _get(result: Mapping[str, Any], field: str) -> Any:
  value: Any = result
  for part in field.split("."):
    value = (value or {}).get(part)
  # Of files, their content decides and not their names.
  return sorted(value.values()) if field == "judge.prompts" and value is not None else value


def _overlap(a: Mapping[str, float] | None, b: Mapping[str, float] | None) -> bool | None:
  if not a or not b:
    return None
  return a["low"] <= b["high"] and b["low"] <= a["high"]
