"""Command line that writes one static HTML page: images, verdicts, and filters by category and verdict.

  python -m unilip_jax.evals show --benchmark=wise --items=data --images=runs/a/images
      --judged=runs/a/judged --out=runs/a/page.html

Images are linked relative to the page; --embed puts small copies into it, so that it can be sent alone.
"""

import argparse
import base64
import collections
from collections.abc import Mapping, Sequence
import dataclasses
import io
import os
import pathlib
from typing import Any
import urllib.parse

from etils import epath
import jinja2
from PIL import Image

from unilip_jax.common import atomic_io, command_options, paths
from unilip_jax.scores import answers as answers_lib
from unilip_jax.scores import append_log, base, judge
from unilip_jax.scores import result as result_lib

_THUMBNAIL = 256  # pixels of the longer side of an embedded copy


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Holds what a judge or detector found about an image.

  Attributes:
    status: "right", "wrong", "scored", or why there is no score.
    text: scores or reason, in one line.
    answers: raw answers by request.
  """

  status: str
  text: str = ""
  answers: Mapping[str, str] = dataclasses.field(default_factory=dict)


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command."""
  out = argparse.ArgumentParser(prog="unilip evals show", description=__doc__,
                                formatter_class=command_options.Help)
  add = out.add_argument
  add("--benchmark", required=True, help="name of the benchmark")
  add("--items", required=True, help="the benchmark's own file or folder")
  add("--images", help="folder of images in the benchmark's layout; default: none")
  add("--answers", help="answers of an understanding benchmark, see `judge`; default: none")
  add("--judged", help="folder of `judge`, or a detector's results.jsonl; Shapes needs none; default: no "
      "verdicts")
  add("--result", help="results.json, or its folder, to show above the images; default: none")
  add("--out", required=True, help="the page")
  add("--max_items", type=command_options.integer(1), help="show the first items only; default: all")
  add("--embed", action="store_true", help="put small copies of the images into the page")
  return out


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command."""
  args = parser().parse_args(argv)
  benchmark = base.reading_once(base.find(args.benchmark))
  out = pathlib.Path(paths.expand(args.out))
  if args.images:
    paths.existing_folder(args.images, "--images")
  verdicts = read_verdicts(args.judged) if args.judged else {}
  if benchmark.scores_images and args.images:
    verdicts = {(v.id, 0): Verdict("right" if v.value else "wrong")
                for v in benchmark.aggregate(args.images, items=args.items).values}
  cards = make_cards(
      benchmark, benchmark.read_items(args.items)[:args.max_items], out.parent,
      images=args.images, verdicts=verdicts,
      answers=answers_lib.read(args.answers) if args.answers else {}, embed=args.embed)
  out.parent.mkdir(parents=True, exist_ok=True)
  atomic_io.write(out, render(
      benchmark, cards, result_lib.read(args.result) if args.result else None).encode())
  print(f"wrote {len(cards)} images or answers to {out}")


def read_verdicts(path: str) -> dict[tuple[str, int], Verdict]:
  """Reads {(item id, k): verdict}.

  Args:
    path: a folder of `judge`, or GenEval's results.jsonl or its folder.

  Raises:
    FileNotFoundError: if there are none.
  """
  place = pathlib.Path(paths.expand(path))
  file = place / judge.FOLDER / judge.VERDICTS
  if file.is_file():
    try:
      return {(r["id"], r["k"]): _judged(r) for r in append_log.read(file)}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
      raise ValueError(f"{file} is no record of verdicts ({error!r}); run `judge` again, it asks nothing "
                       "twice") from error
  file = place / "results.jsonl" if place.is_dir() else place
  if not file.is_file():
    raise FileNotFoundError(f"{place} holds neither {judge.FOLDER}/{judge.VERDICTS} nor results.jsonl")
  verdicts = {}
  for record in append_log.read(file):
    parts = pathlib.PurePosixPath(str(record.get("filename")).replace("\\", "/")).parts
    if len(parts) < 3 or not pathlib.PurePath(parts[-1]).stem.isdecimal():
      raise ValueError(f"{file}: {record.get('filename')!r} is not <item>/samples/<k>.png")
    verdicts[parts[-3], int(pathlib.PurePath(parts[-1]).stem)] = Verdict(
        "right" if record.get("correct") else "wrong", str(record.get("reason", "")))
  return verdicts


def _judged(record: Mapping[str, Any]) -> Verdict:
  scores = record["scores"]
  if scores is None:
    return Verdict(record["problem"].split(":")[0], record["problem"], record["answers"])
  binary = {0.0: "wrong", 1.0: "right"} if set(scores) == {"score"} else {}
  return Verdict(binary.get(scores.get("score"), "scored"),
                 ", ".join(f"{name} {value:g}" for name, value in scores.items()), record["answers"])


def make_cards(
    benchmark: base.Benchmark, items: Sequence[base.Item], page: pathlib.Path, *, images: str | None,
    verdicts: Mapping[tuple[str, int], Verdict], answers: Mapping[str, str], embed: bool
) -> list[dict[str, Any]]:
  """Makes the page's entries: one an image or answer, JSON-ready.

  Args:
    benchmark, items: what is shown.
    page: folder of the page, to which links are relative.
    images: folder of images; None for answers.
    verdicts: from `read_verdicts`.
    answers: {item id: answer}.
    embed: see the module's docstring.
  """
  root = paths.path(images) if images else None
  cards = []
  for item in items:
    sources = [link for image in item.images if (link := _link(image, page, embed))]
    for k in range(benchmark.images_per_item):
      path = root / benchmark.output_path(item, k) if root is not None else None
      there = path is not None and path.is_file()
      link = _link(str(path), page, embed) if there else None
      none = Verdict("no verdict" if path is None or link else "unreadable" if there else "missing")
      verdict = verdicts.get((item.id, k), none)
      cards.append({
          "id": item.id, "k": k, "prompt": item.prompt, "category": item.category, "sources": sources,
          "image": link, "answer": answers.get(item.id),
          "status": verdict.status, "text": verdict.text,
          "answers": {name: text for name, text in verdict.answers.items() if text is not None}})
  return cards


def render(
    benchmark: base.Benchmark, cards: Sequence[Mapping[str, Any]], result: Mapping[str, Any] | None
) -> str:
  """Renders the page; every text is escaped."""
  environment = jinja2.Environment(
      loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent), autoescape=True,
      undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
  count = lambda field: sorted(collections.Counter(card[field] for card in cards).items())
  return environment.get_template("page.html.jinja").render(
      benchmark=benchmark, cards=cards, categories=count("category"), statuses=count("status"),
      result=result)


def _link(image: str | bytes, page: pathlib.Path, embed: bool) -> str | None:
  """Returns the address of an image: relative to the page, or the data of a small copy.

  None for bytes that are no image, and for an absent one that would be copied.
  """
  if isinstance(image, bytes) or embed or "://" in image:
    try:
      return _thumbnail(image if isinstance(image, bytes) else epath.Path(image).read_bytes())
    except (OSError, SyntaxError, Image.DecompressionBombError):
      return None
  relative = os.path.relpath(os.path.abspath(image), os.path.abspath(page))
  return urllib.parse.quote(pathlib.PurePath(relative).as_posix())


def _thumbnail(data: bytes) -> str:
  with Image.open(io.BytesIO(data)) as image:
    small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
  return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
