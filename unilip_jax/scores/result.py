"""The result of a benchmark: the score, its interval, and everything that it depends on.

`results.json` holds all of it, `results.md` a row of a table. Published numbers stand next to the score
with their source.
"""

from collections.abc import Mapping
import math
from typing import Any

from unilip_jax.common import atomic_io, json_file, paths
from unilip_jax.scores import base, judge, make_record, provenance

FILE, ROW = "results.json", "results.md"
_LEVEL, _SAMPLES, _SEED = 0.95, 1000, 0  # of the bootstrap
_NONE = type(None)
# {entry: type} of what this package reads of a result, and of an output of `evals fid --json`.
_KINDS = {
    "benchmark": str, "revision": str, "rules": str, "published_variant": str, "n": int, "missing": int,
    "malformed": int, "score": (int, float, _NONE), "categories": dict, "interval": (dict, _NONE),
    "judge": (dict, _NONE), "make": (dict, _NONE), "items": dict, "published": list}
_DISTANCE = {"fid": (int, float), "protocol": str, "method": str, "weights": str, "n": int,
             "reference_images": str}


def build(
    benchmark: base.Benchmark, score: base.Score, source: str, *, items: str | None = None,
    images: str | None = None, judged_by: str | None = None) -> dict[str, Any]:
  """Describes a score.

  Args:
    benchmark: that was scored.
    score: of `Benchmark.aggregate`.
    source: the official scorer's files; the judge's record is looked up there.
    items: the benchmark's own files.
    images: folder of `make`; None takes what the judge's record has.
    judged_by: of others' files: the judge's model id, as the user states it.

  Returns:
    A JSON-ready dict, see docs/evals.md.
  """
  place = paths.path(source)
  folder = place if place.is_dir() else place.parent
  about = folder / judge.FOLDER / judge.ABOUT
  judged = (json_file.read(about, remedy="run `judge` again; it asks nothing twice",
                           kinds={"benchmark": str, "revision": str}) if about.exists() else None)
  if judged is not None and (judged["benchmark"], judged["revision"]) != (
      benchmark.name, benchmark.revision):
    raise ValueError(f"{folder} was judged for {judged['benchmark']} ({judged['revision']}), not "
                     f"{benchmark.name} ({benchmark.revision})")
  if judged is None and judged_by:
    judged = {"model": judged_by, "stated_by": "user"}
  make = make_record.read(images) if images else (
      (judged or {}).get("make") or make_record.read(folder) or make_record.read(folder.parent))
  read = benchmark.read_items(items) if items else None
  return {
      "format": 1, **score.as_json(), "interval": _interval(benchmark, score),
      "benchmark": benchmark.name, "revision": benchmark.revision,
      "source": {"path": str(source), "files": provenance.file_hashes(source)},
      "items": {
          "sha256": provenance.items_digest(read) if read else (judged or make or {}).get("items_sha256"),
          "files": provenance.file_hashes(items) if items else (make or {}).get("items", {})},
      "judge": {k: v for k, v in judged.items() if k != "make"} if judged else None,
      "make": make,
      "published": [{"system": p.system, "score": p.score, "source": p.source, "note": p.note}
                    for p in benchmark.published],
      "date": provenance.now(), "versions": provenance.versions()}


def write(out: str, result: Mapping[str, Any]) -> None:
  """Writes results.json and results.md into a folder."""
  folder = paths.path(out)
  folder.mkdir(parents=True, exist_ok=True)
  json_file.write(folder / FILE, result)
  atomic_io.write(folder / ROW, markdown(result).encode())


def read(path: str) -> dict[str, Any]:
  """Reads a results.json, that of a folder, or what `evals fid --json` prints.

  Raises:
    FileNotFoundError: if it is absent.
    ValueError: for a file of another form.
  """
  place = paths.path(path)
  place = place / FILE if place.is_dir() else place
  remedy = "write it by `aggregate --out=FOLDER`"
  value = json_file.read(place, remedy=remedy)
  if {"fid", "protocol"} <= value.keys():
    return _of_distance(json_file.read(place, remedy="it is no output of `fid --json`", kinds=_DISTANCE))
  if value.get("format") != 1:
    raise ValueError(f"{place} is not a results.json of `aggregate --out`")
  return json_file.read(place, remedy=remedy, kinds=_KINDS)


def _of_distance(value: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a Fréchet distance in the form of a result; it depends on all of `metric`."""
  return {
      "format": 1, "benchmark": "fid", "revision": "Inception-v3 of 2015-12-05", "rules": "none",
      "published_variant": "fid", "score": value["fid"], "interval": None, "categories": {},
      "n": value["n"], "missing": 0, "malformed": 0, "judge": None, "make": None, "published": [],
      "items": {"sha256": value["reference_images"]},
      "metric": {name: value[name] for name in ("protocol", "method", "weights", "n")}}


def markdown(result: Mapping[str, Any]) -> str:
  """Formats a result as a Markdown table of one row, and its categories as another."""
  interval, judged, make = result["interval"], result["judge"] or {}, result["make"] or {}
  published = "; ".join(f"{p['system']} {p['score']:g}{f' ({note})' if (note := p['note']) else ''}, "
                        f"{p['source']}" for p in result["published"] if "UniLIP" in p["system"])
  row = {
      "benchmark": f"{result['benchmark']}, {result['revision']}",
      "score": f"{_number(result['score'])} ({result['published_variant']}, {result['rules']} rules)",
      "95 % interval": f"{_number(interval['low'])} to {_number(interval['high'])}" if interval else "",
      "n": result["n"], "missing": result["missing"], "malformed": result["malformed"],
      "judge": f"{judged['model']} {judged.get('last_answer') or ''}".strip() if judged else "",
      "images": ", ".join(f"{name} {make[name]}" for name in (
          "protocol", "solver", "steps", "guidance", "seed", "noise", "size", "precision",
          "weights_fingerprint", "max_tiles", "tiling") if make.get(name) is not None) or "made by others",
      "published": published or "none"}
  parts = [_table([row])]
  if result["categories"]:
    parts.append(_table([{name: _number(v) for name, v in result["categories"].items()}]))
  return "\n".join(parts)


def _table(rows: list[Mapping[str, Any]]) -> str:
  lines = [list(rows[0]), ["---"] * len(rows[0]), *([row[name] for name in row] for row in rows)]
  return "".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |\n" for line in lines)


def _number(value: float | None) -> str:
  return "none" if value is None else f"{value:.4g}"


def _interval(benchmark: base.Benchmark, score: base.Score) -> dict[str, Any] | None:
  """Bootstrap interval of the published variant over items; None where there is no score."""
  if score.score is None or not score.values:
    return None
  low, high = base.interval(benchmark, score.values, samples=_SAMPLES, level=_LEVEL, seed=_SEED)
  if not math.isfinite(low + high):
    return None
  return {"low": low, "high": high, "level": _LEVEL, "samples": _SAMPLES, "seed": _SEED,
          "resampled": "items within each category"}
