"""A first look at your own images, without training: counts, sizes, captions, what is left out, and a grid.

  unilip data look photos
  unilip data look edits.jsonl --out=look.png

Shows what --config.data.own=photos would train on (docs/data.md, "Own images"). Uses no accelerator.
"""

import argparse
from collections.abc import Sequence
import tempfile

from unilip_jax.common import atomic_io, command_options, paths
from unilip_jax.configs import base, checks
from unilip_jax.data import rgb, sources
from unilip_jax.data.own import layouts, look, source


def main(argv: Sequence[str]) -> None:
  """Runs the command.

  Raises:
    ValueError, FileNotFoundError: for user errors.
  """
  args = _parser().parse_args(argv)
  out = paths.output_file(args.out, "--out")
  found = layouts.detect(args.folder, args.layout)
  kinds = source.serves(found, args.prompt)
  example = args.example or next(iter(kinds), "reconstruct")
  options = {"prompt": args.prompt, "caption": args.caption, "layout": args.layout}
  spec = sources.SourceSpec("own", found.path, {k: v for k, v in options.items() if v})
  with tempfile.TemporaryDirectory() as folder:
    opened = sources.open_source(spec, example=example, folders=sources.Folders(folder, folder))
    crop = "center" if example == "reconstruct" else "stretch"
    seen = look.look(opened, example, image_size=args.image_size, crop=crop, flip=False,
                     max_pixels=args.max_pixels)
  out.parent.mkdir(parents=True, exist_ok=True)
  atomic_io.write(out, seen.png)
  print(f"{args.folder}: {found.note} ({found.kind}), can train {', '.join(kinds) or 'nothing'}")
  print(*(f"  {line}" for line in seen.lines), f"what the model gets: {out}", sep="\n")
  if excess := sources.excess_left_out(opened, base.get_config().data.max_bad_fraction):
    print(f"training refuses this data: {excess.problem}; {excess.remedy} accepts it")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog="unilip data look", description=__doc__, allow_abbrev=False,
      formatter_class=command_options.Help)
  add = parser.add_argument
  add("folder", type=command_options.path, help="folder, list, Parquet file or tar; local or gs://")
  add("--out", default="look.png", type=command_options.path, help="PNG file to write")
  add("--example", default="", choices=["", *sources.PARTS],
      help="what to train: reconstruct, t2i, edit or understand; default: what the data is made for")
  add("--prompt", default="", help="of images without a caption (data.own_prompt)")
  add("--caption", default="", help="column of captions or instructions (data.own_caption)")
  add("--layout", default="", choices=["", *checks.OWN_LAYOUTS],
      help="where the data can be read in several ways (data.own_layout)")
  add("--image_size", default=448, type=command_options.integer(1), help="pixels per side of the model")
  add("--max_pixels", default=rgb.MAX_PIXELS, type=command_options.integer(1),
      help="larger images are refused")
  return parser
