"""Command line of the judge step: asks a chat model about images or answers, whoever made them.

  python -m unilip_jax.evals judge --benchmark=imgedit --items=Benchmark/singleturn --images=runs/a/images
      --prompts=Benchmark/singleturn/judge_prompt.json --out=runs/a/judged

Writes the official scorer's files into --out, which `aggregate` reads, and what was asked and answered into
--out/judge. The key comes from $UNILIP_JUDGE_KEY or $OPENAI_API_KEY. A rerun asks only what has no answer.
"""

import argparse
import collections
from collections.abc import Sequence
import contextlib
import pathlib
import signal
from typing import Any

from etils import epath

from unilip_jax.common import arguments, command_options, errors, json_file, paths
from unilip_jax.scores import answers as answers_lib
from unilip_jax.scores import base, chat_api, image_files, make_record, prices, provenance
from unilip_jax.scores import judge as judge_lib

_NO_CAP = "none"
_COUNT = command_options.integer(1)


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command."""
  out = argparse.ArgumentParser(prog="unilip evals judge", description=__doc__,
                                formatter_class=command_options.Help)
  add = out.add_argument
  add("--benchmark", required=True, help="name of the benchmark")
  add("--items", required=True, help="the benchmark's own file or folder")
  add("--images", help="folder of images in the benchmark's layout, made by any model; default: none, "
      "for benchmarks of answers")
  add("--answers", help="answers of an understanding benchmark: what `make` wrote, or JSON {id: answer}; "
      "default: none, for benchmarks of images")
  add("--prompts", help="the user's copy of the official judge prompts; default: none, where the benchmark "
      "needs none")
  add("--out", required=True, help="folder of judgements; of this machine")
  add("--base_url", default="https://api.openai.com/v1", help="of an OpenAI-compatible endpoint")
  add("--model", help="id of the judge; default: the one of the published numbers")
  add("--returned_model", help="id, as returned, of the stored answers that count; default: the one that "
      "answered")
  add("--budget", default="25", help="USD that all answers in --out may cost; 'none' is without cap")
  add("--price", help="IN,OUT in USD per million tokens; default: an estimate for the model, which may be "
      "wrong or out of date")
  add("--concurrency", type=_COUNT, default=8, help="requests at once")
  add("--requests_per_minute", type=float, default=0.0, help="0 is without limit")
  add("--timeout", type=float, default=chat_api.Limits.timeout, help="seconds of one try")
  add("--connect_timeout", type=float, default=chat_api.Limits.connect_timeout, help="seconds")
  add("--retries", type=command_options.integer(0), default=chat_api.Limits.retries,
      help="of a request that failed")
  add("--tries", type=_COUNT, help="answers asked for until one parses; default: the official number")
  add("--images_per_item", type=_COUNT, help="default: the official number")
  add("--size", type=_COUNT, help="pixels per side that all images must have; default: that of most images"
      " of generation, any in editing")
  add("--plan", action="store_true", help="show the estimate and ask nothing")
  return out


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command.

  Raises:
    errors.TryAgainError: at the end, if some items got no answer.
  """
  args = parser().parse_args(argv)
  benchmark = base.find(args.benchmark)
  if benchmark.judge is None:
    raise ValueError(f"{benchmark.name} is not judged by a chat model; see docs/evals.md for its judge")
  for name in ("timeout", "connect_timeout"):
    arguments.number(f"--{name}", getattr(args, name), 0.0, open_below=True)
  arguments.number("--requests_per_minute", args.requests_per_minute, 0.0)
  limits = chat_api.Limits(
      connect_timeout=args.connect_timeout, timeout=args.timeout, retries=args.retries,
      requests_per_minute=args.requests_per_minute)
  endpoint = chat_api.Endpoint(args.base_url, limits)
  model = args.model or benchmark.judge.model
  settings = judge_lib.Settings(
      model=model, tries=args.tries or benchmark.judge.tries,
      price=prices.find(model, endpoint.kind, args.price), budget=_budget(args.budget),
      concurrency=args.concurrency, returned_model=args.returned_model)
  items = benchmark.read_items(args.items)
  subject, source = _subject(benchmark, items, args)
  with judge_lib.open_log(args.out) as log, terminable():
    judge = judge_lib.Judge(subject, endpoint, settings, log)
    if args.plan:
      plan = judge.plan()
      print(judge.describe(plan))
      return
    judgements = judge.run()
    about = judge.about(judgements)
  out = pathlib.Path(paths.expand(args.out))
  benchmark.write_judgements(str(out), items, judgements)
  _write_records(out / judge_lib.FOLDER, benchmark, items, judgements, about | {
      "prompts": provenance.file_hashes(args.prompts) if args.prompts else {},
      "items_sha256": provenance.items_digest(items), **source})
  _summarize(benchmark, judgements, about, out, args.items)


def _budget(text: str) -> float | None:
  if text == _NO_CAP:
    return None
  try:
    budget = float(text)
  except ValueError:
    budget = -1.0
  if not budget >= 0:
    raise ValueError(f"--budget={text!r} is no amount in USD; {_NO_CAP!r} is without cap")
  return budget


def _subject(
    benchmark: base.Benchmark, items: Sequence[base.Item], args: argparse.Namespace
) -> tuple[judge_lib.Subject, dict[str, Any]]:
  """Returns (what to judge, its description for the record)."""
  if benchmark.judge_files and not args.prompts:
    raise ValueError(f"{benchmark.name}'s judge needs --prompts: {benchmark.judge_files}")
  prompts = benchmark.read_prompts(args.prompts) if args.prompts else None
  if benchmark.kind == "understanding":
    if not args.answers:
      raise ValueError(f"{benchmark.name} judges answers: give --answers")
    answers = answers_lib.read(args.answers)
    missing = [item.id for item in items if item.id not in answers]
    print(errors.listed(f"missing: answer to {i}" for i in missing) or "every item has an answer")
    present = [(item.id, 0) for item in items if item.id in answers]
    source = {"make": make_record.read(args.answers), "answers": {
        "answers": len(present), "missing": len(missing)}}
    return judge_lib.Subject(
        benchmark, items, present, lambda key: answers[key[0]].encode(), prompts), source
  if not args.images:
    raise ValueError(f"{benchmark.name} judges images: give --images")
  folder = image_files.check(
      benchmark, items, args.images, images_per_item=args.images_per_item, size=args.size)
  lines = folder.lines()
  print(f"{len(folder.files)} images in {args.images}, {len(lines)} problems"
        + "".join("\n  " + line for line in errors.listed(lines).splitlines()))
  source = {"make": make_record.read(args.images), "images": folder.summary()}
  return judge_lib.Subject(benchmark, items, list(folder.files), folder.read, prompts), source


def _write_records(
    folder: pathlib.Path, benchmark: base.Benchmark, items: Sequence[base.Item],
    judgements: Sequence[base.Judgement], about: dict[str, Any]) -> None:
  """Writes the judge's record and each verdict."""
  category = {item.id: item.category for item in items}
  provenance.write_lines(folder / judge_lib.VERDICTS, [
      {"id": j.item_id, "k": j.k, "category": category[j.item_id], "scores": j.scores,
       "problem": j.problem, "answers": dict(j.answers)} for j in judgements])
  json_file.write(folder / judge_lib.ABOUT, {
      "format": 1, "benchmark": benchmark.name, "revision": benchmark.revision, **about,
      "versions": provenance.versions()})


def _summarize(
    benchmark: base.Benchmark, judgements: Sequence[base.Judgement], about: dict[str, Any],
    out: epath.PathLike, items: str) -> None:
  """Prints what was judged; raises TryAgainError if an item got no answer."""
  counts = collections.Counter(j.problem.split(":")[0] or "scored" for j in judgements)
  print(f"judged by {about['model']}: {', '.join(f'{n} {name}' for name, n in counts.items())}; "
        f"{about['usd']:.2f} USD so far at {about['price']}")
  unscored = [f"  {j.item_id}, image {j.k}: {j.problem}" for j in judgements if j.problem]
  if unscored:
    print(errors.listed(unscored))
  if counts["failed"]:
    raise errors.TryAgainError(
        f"{counts['failed']} items got no answer; run the same command again to ask for them alone")
  print(f"score it: python -m unilip_jax.evals aggregate --benchmark={benchmark.name} --source={out} "
        f"--items={items}")


@contextlib.contextmanager
def terminable():
  """Turns SIGTERM into an exception, so that answers of sent requests are still stored.

  A run that handles the signal itself keeps its handler.
  """
  def end(number, frame):
    del number, frame
    raise SystemExit(errors.AGAIN)

  if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
    yield
    return
  signal.signal(signal.SIGTERM, end)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
