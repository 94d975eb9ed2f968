"""Writes published datasets and your own files as shards that training reads (docs/data.md).

  python -m unilip_jax.data.prepare blip3o --source='data/BLIP3o-60k/*.tar' --out=data/BLIP3o-60k
  python -m unilip_jax.data.prepare gpt_image_edit --source=DOWNLOAD --out=data/GPT-Image-Edit-1.5M
  python -m unilip_jax.data.prepare sharegpt4o --source=DOWNLOAD --out=data/ShareGPT-4o-Image
  python -m unilip_jax.data.prepare imagenet --source='DOWNLOAD/*.tar' --out=data/imagenet-val
  python -m unilip_jax.data.prepare json_lines --source=mine.jsonl --kind=t2i --out=data/mine
  python -m unilip_jax.data.prepare merge --out=DIR      after the last --shard=i/n
  python -m unilip_jax.data.prepare check --out=DIR      compares the shards with the manifest

`unilip data look FOLDER` is a first look at your own images, which need no preparation.
The same command continues where it was stopped or killed.
Exit status: 0 finished, 1 failed, 2 wrong options.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
import itertools
import os
import sys
from typing import Any

# No accelerator is needed, and a training run on the same machine must keep its own.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from unilip_jax.common import command_options, errors, paths
from unilip_jax.data import omissions, sources
from unilip_jax.data.prepare import beam, manifest, readers, record, run, shard, writers
from unilip_jax.data.prepare import items as items_lib

# Reasons by which nothing is lost that a user would miss.
_WARN_FRACTION = 0.01
_BY_RULE = ("no pair", "repeated", omissions.HIDDEN)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs one command.

  Raises:
    ValueError, FileNotFoundError: for user errors, broken data and files that cannot be read or written.
  """
  args = _parser().parse_args(argv)
  if args.command in ("merge", "check"):
    paths.existing_folder(args.out, "--out")
  else:
    _check_paths(args)
  try:
    args.do(args)
  except FileNotFoundError:
    raise
  except OSError as error:
    raise run.RunError(errors.message(error)) from error


def _check_paths(args: argparse.Namespace) -> None:
  """Checks the paths of a preparation, before anything is written."""
  paths.output_folder(args.out, "--out")
  if args.index_dir:
    paths.output_folder(args.index_dir, "--index_dir")
  if not args.source.startswith("tfds:"):
    paths.expand(args.source, "--source")  # readers look for it before anything is written


def _blip3o(args: argparse.Namespace) -> None:
  if args.layout == "index":
    _index(args, args.kind)
  else:
    _prepare(args, args.kind, functools.partial(
        readers.tars, args.source, args.kind, _index_dir(args)))


def _gpt_image_edit(args: argparse.Namespace) -> None:
  _prepare(args, "edit", functools.partial(readers.gpt_image_edit, args.source), repeats=True)


def _sharegpt4o(args: argparse.Namespace) -> None:
  for kind in ("t2i", "edit") if args.kind == "both" else (args.kind,):
    _prepare(args, kind, functools.partial(readers.sharegpt4o, args.source, kind), repeats=True,
             out=f"{args.out.rstrip('/')}/{kind}")


def _imagenet(args: argparse.Namespace) -> None:
  if args.source.startswith("tfds:"):
    name, split, data_dir, *_ = [*args.source.split(":", 3)[1:], "", ""]
    if not name or not split:
      raise ValueError(f"--source={args.source}: expected tfds:name:split or tfds:name:split:data_dir")
    _prepare(args, "reconstruct", functools.partial(readers.tfds, name, split, data_dir or None))
  elif args.layout == "index":
    _index(args, "reconstruct")
  else:
    _prepare(args, "reconstruct", functools.partial(
        readers.tars, args.source, "reconstruct", _index_dir(args)))


def _json_lines(args: argparse.Namespace) -> None:
  _prepare(args, args.kind, functools.partial(
      readers.json_lines, args.source, args.kind, args.root), repeats=True, keys=True)


def _index_dir(args: argparse.Namespace) -> str:
  return args.index_dir or f"{args.out.rstrip('/')}/index"


def _rules(args: argparse.Namespace, kind: str) -> record.Rules:
  return record.Rules(kind, verify=args.verify, shorter_edge=args.resize, quality=args.quality,
                      max_pixels=args.max_pixels, max_file_bytes=args.max_file_bytes)


def _prepare(
    args: argparse.Namespace, kind: str, read: Callable[..., Iterator[items_lib.Item]], *,
    repeats: bool = False, keys: bool = False, out: str = "") -> None:
  """Writes shards of the items that `read(rows=…)` yields.

  Args:
    args: of the command line.
    kind: of the records.
    read: a reader (readers.py) with all arguments but `rows`.
    repeats: skip repeated items.
    keys: the list has keys.
    out: overrides --out.
  """
  rules = _rules(args, kind)
  rows: list[dict[str, Any]] = []
  items = read(rows=rows)
  if repeats:
    items = items_lib.without_repeats(items, keys_are_given=keys)
  if args.limit:
    items = (item for _, item in zip(range(args.limit), items))
  if args.dry_run:
    _report_dry_run(run.dry_run(items, rules))
    return
  layout = "tar" if args.layout == "index" else args.layout
  job = shard.Job(out or args.out, layout, rules, args.max_shard_bytes)
  settings = {
      "command": args.command, "source": args.source, "kind": kind, "layout": layout, "limit": args.limit,
      "records_per_shard": args.records_per_shard, "max_shard_bytes": args.max_shard_bytes,
      "verify": args.verify, "resize": args.resize, "quality": args.quality,
      "max_pixels": args.max_pixels, "max_file_bytes": args.max_file_bytes}
  _run(args, run.make_chunks(items, args.records_per_shard), job, rows, settings)


def _index(args: argparse.Namespace, kind: str) -> None:
  """Indexes tars in place."""
  chunks = shard.chunks_of_tars(args.source)[:args.limit or None]
  if args.dry_run:
    print(f"{len(chunks)} tars would be indexed in {_index_dir(args)}")
    return
  job = shard.Job(args.out, "index", _rules(args, kind), index_dir=_index_dir(args),
                  checksums=args.checksums)
  settings = {"command": args.command, "source": args.source, "kind": kind, "layout": "index",
              "limit": args.limit, "verify": args.verify, "max_pixels": args.max_pixels,
              "max_file_bytes": args.max_file_bytes, "checksums": args.checksums}
  _run(args, chunks, job, [], settings)


def _first_read(chunks: Iterable[shard.Chunk]) -> Iterator[shard.Chunk]:
  """Reads the first chunk now: a source that cannot be read is refused before anything is written."""
  chunks = iter(chunks)
  first = list(itertools.islice(chunks, 1))
  return itertools.chain(first, chunks)


def _run(
    args: argparse.Namespace, chunks: Any, job: shard.Job, rows: list[dict[str, Any]],
    settings: dict[str, Any]) -> None:
  """Makes the chunks with Beam or in local processes, and reports."""
  if args.shard[1] > 1 and (args.overwrite or args.beam is not None):
    raise ValueError("--shard cannot be combined with --overwrite (jobs would remove each other's results; "
                     "remove the folder first) or --beam")
  chunks = _first_read(chunks)
  if args.beam is not None:
    summary = beam.run(chunks, job, rows, settings, options=args.beam, overwrite=args.overwrite)
  else:
    summary = run.run(chunks, job, rows, settings, workers=args.workers, part=args.shard,
                      overwrite=args.overwrite, progress=not args.quiet)
  if summary is None:
    print(f"part {args.shard[0]} of {args.shard[1]} of {job.out} is done; when all are: "
          f"python -m unilip_jax.data.prepare merge --out={job.out}")
  else:
    _report(job.out, summary, args.max_bad_fraction, job.index_dir)


def _report(out: str, summary: dict[str, Any], max_bad_fraction: float, index_dir: str = "") -> None:
  """Prints counts, reasons and the row of a config.

  Raises:
    ValueError: if no record was written, or too many could not be used.
  """
  counts, reasons = summary["counts"], summary["reasons"]
  print(f"{out}: {counts['written']} of {counts['items']} records in {counts['shards']} shards, "
        f"{counts['bytes'] / 1e6:.1f} MB; {counts['skipped']} skipped (manifest.json names each)")
  for reason, count in reasons.items():
    print(f"  {count} × {reason}")
  settings = summary["settings"]
  if counts["long_prompts"]:
    note = "training skips them" if settings["kind"] == "t2i" else "training cuts their end"
    print(f"  {counts['long_prompts']} texts have more than {record.LONG_PROMPT} characters: {note}")
  if not counts["written"]:
    raise ValueError(f"{out}: no record could be used; {out}/manifest.json has the reason for each. "
                     "Usually a path is wrong")
  if settings["layout"] == "index":
    print(f'row of a config: ("tar", "{settings["source"]}", 1.0), with '
          f"--config.data.index_dir={index_dir or 'INDEX_DIR'}")
  else:
    suffix = writers.LAYOUTS[settings["layout"]]
    print(f'row of a config: ("{settings["layout"]}", "{out}/*.{suffix}", 1.0)')
  bad = sum(count for reason, count in reasons.items() if reason not in _BY_RULE)
  if bad > max_bad_fraction * counts["items"]:
    raise ValueError(
        f"{out}: {bad} of {counts['items']} records could not be used, more than --max_bad_fraction="
        f"{max_bad_fraction:g} (manifest.json names each). The others are written. Correct the source and "
        "run the command again, or accept the loss with a larger --max_bad_fraction")
  if bad > _WARN_FRACTION * counts["items"]:
    print(f"warning: {bad} of {counts['items']} records could not be used: training has less data than the "
          f"source; {out}/manifest.json names each", file=sys.stderr)


def _report_dry_run(counts: dict[str, Any]) -> None:
  print(f"{counts['usable']} of {counts['items']} records, {counts['bytes'] / 1e6:.1f} MB; "
        f"{counts['skipped']} would be skipped; no image was opened, nothing written")
  for reason, count in sorted(counts["reasons"].items()):
    print(f"  {count} × {reason}")
  for example in counts["examples"]:
    print(f"  e.g. {example}")


def _merge(args: argparse.Namespace) -> None:
  _report(args.out, manifest.merge(args.out), args.max_bad_fraction)


def _check(args: argparse.Namespace) -> None:
  count = 0
  for line in manifest.check(args.out):
    print(line)
    count += 1
  if count:
    raise ValueError(f"{args.out}: {count} shards differ from the manifest; run the preparation again "
                     "(with --overwrite if their lengths are right)")
  print(f"{args.out}: every shard equals its entry in the manifest")


def _part(text: str) -> tuple[int, int]:
  index, _, count = text.partition("/")
  if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
    raise argparse.ArgumentTypeError(f"{text!r}: expected i/n with 0 ≤ i < n, e.g. 0/8 … 7/8")
  return int(index), int(count)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog="unilip data", description=__doc__, allow_abbrev=False,
      formatter_class=command_options.Help)
  commands = parser.add_subparsers(dest="command", required=True)

  blip3o = _command(commands, "blip3o", _blip3o, "tars of jpg and txt: indexes them in place", "index")
  blip3o.add_argument("--kind", default="t2i", choices=list(sources.PARTS),
                      help="kind of the tars' samples")
  _command(commands, "gpt_image_edit", _gpt_image_edit, "GPT-Image-Edit-1.5M: gptedit.txt and its lists")
  share = _command(commands, "sharegpt4o", _sharegpt4o, "ShareGPT-4o-Image; writes OUT/t2i and OUT/edit")
  share.add_argument("--kind", default="both", choices=["both", "t2i", "edit"],
                     help="text→image, edits, or both")
  _command(commands, "imagenet", _imagenet,
           "ImageNet val: indexes tars, or converts tfds:name:split[:data_dir]", "index")
  mine = _command(commands, "json_lines", _json_lines, "your own data, one JSON object a line")
  mine.add_argument("--kind", required=True, choices=readers.KINDS, help="of the examples")
  mine.add_argument("--root", default="", type=command_options.optional_path,
                    help="folder of the images, which paths may not leave; default: the folder of the list")
  for name, do, text in (("merge", _merge, "summarises the jobs of an array in manifest.json"),
                         ("check", _check, "compares shards with manifest.json, checksums included")):
    command = commands.add_parser(
        name, help=text, description=text, allow_abbrev=False, formatter_class=command_options.Help)
    command.add_argument("--out", required=True, type=command_options.path,
                         help="folder of the preparation, local or gs://")
    if do is _merge:
      _add_max_bad_fraction(command)
    command.set_defaults(do=do)
  return parser


def _add_max_bad_fraction(command: argparse.ArgumentParser) -> None:
  command.add_argument("--max_bad_fraction", type=command_options.fraction, default=1.0,
                       help="exit with status 1 if a larger part of the records could not be used, "
                       "repeated and hidden ones not counted; default 1: only a warning, above 0.01")


def _command(
    commands: Any, name: str, do: Callable[[argparse.Namespace], None], text: str, layout: str = "tar"
) -> argparse.ArgumentParser:
  """Adds a command with the options that all preparations share."""
  command = commands.add_parser(
      name, help=text, description=text, allow_abbrev=False, formatter_class=command_options.Help)
  command.set_defaults(do=do)
  command.add_argument("--source", required=True, help="file, folder or pattern, local or gs://")
  command.add_argument("--out", required=True, type=command_options.path,
                       help="folder to write, local or gs://")
  layouts = [*writers.LAYOUTS, "index"] if layout == "index" else list(writers.LAYOUTS)
  command.add_argument("--layout", default=layout, choices=layouts,
                       help="tar, array_record, or index: leave tars in place and index them"
                       if layout == "index" else "of the shards")
  command.add_argument("--records_per_shard", type=command_options.integer(1), default=1000,
                       help="items of the list per chunk, which becomes a shard")
  command.add_argument("--max_shard_bytes", type=command_options.integer(0), default=1 << 30,
                       help="a larger chunk becomes several shards; default 1 GiB, 0: no limit")
  command.add_argument("--verify", choices=record.VERIFY, default="header" if layout == "index" else "full",
                       help="full: decode every image; header: check formats and sizes only (with "
                       "--layout=index: open no image)")
  command.add_argument("--resize", type=command_options.integer(0), default=0, metavar="PIXELS",
                       help="resize larger images to this shorter edge and encode them as JPEG; default 0: "
                       "keep every byte")
  command.add_argument("--quality", type=command_options.integer(1), default=95, help="of these JPEGs")
  command.add_argument("--max_pixels", type=command_options.integer(1), default=178_956_970,
                       help="larger images are skipped")
  command.add_argument("--max_file_bytes", type=command_options.integer(1), default=1 << 28,
                       help="larger files are skipped; default 256 MiB")
  _add_max_bad_fraction(command)
  command.add_argument("--index_dir", default="", type=command_options.optional_path,
                       help="folder of tar indices; default OUT/index")
  command.add_argument("--checksums", action="store_true",
                       help="with --layout=index: hash the complete tars for the manifest")
  command.add_argument("--limit", type=command_options.integer(0), default=0,
                       help="only the first items (or tars); 0: all")
  command.add_argument("--workers", type=command_options.integer(1), default=os.cpu_count() or 1,
                       help="processes; default: the cores")
  command.add_argument("--shard", type=_part, default=(0, 1), metavar="i/n",
                       help="make only the chunks i, i+n, …, as one of n jobs; then `merge`")
  command.add_argument("--beam", metavar="OPTIONS", default=None,
                       help='run as an Apache Beam pipeline, e.g. --beam="--runner=DataflowRunner …"')
  command.add_argument("--overwrite", action="store_true",
                       help="remove an earlier result and start from scratch")
  command.add_argument("--dry_run", action="store_true", help="count; open no image, write nothing")
  command.add_argument("--quiet", action="store_true", help="no progress bar")
  return command


def _main() -> None:
  try:
    main()
  except KeyboardInterrupt as error:
    raise run.RunError("stopped; the same command continues from here") from error


def run_command() -> None:
  """Runs the command line; Ctrl-C and user errors end it with one message and status 1."""
  errors.run_command(_main)


if __name__ == "__main__":
  run_command()
