"""Command line of inference: reconstructs, generates and edits images, and answers questions.

  python -m unilip_jax.infer reconstruct --checkpoint=DIR --images a.png b.jpg --out=DIR
  python -m unilip_jax.infer generate    --checkpoint=DIR --prompts "a red circle" --out=DIR
  python -m unilip_jax.infer edit        --checkpoint=DIR --images a.png --prompts "make it blue" --out=DIR
  python -m unilip_jax.infer chat        --checkpoint=DIR --images a.png --prompts "what is this?"

Images are written to --out as 0000.png, … and grid.png. JAX is imported after the options and paths are
checked.
"""

import argparse
import sys
from typing import Any

from unilip_jax.common import command_options, errors, paths

_MAX_PIXELS = 178_956_970
_CACHE = "~/.cache/unilip_jax/xla"


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog="python -m unilip_jax.infer", description=__doc__, formatter_class=command_options.Help)
  commands = parser.add_subparsers(dest="command", required=True)
  for name, description in (
      ("reconstruct", "encode and decode images"), ("generate", "generate images from prompts"),
      ("edit", "edit images by instructions"), ("chat", "answer questions about images")):
    command = commands.add_parser(name, help=description, description=description,
                                  formatter_class=command_options.Help)
    command.add_argument("--checkpoint", required=True, type=command_options.path,
                         help="workdir, step folder, imported weights or shapes:NAME; local or gs://")
    command.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"),
                         help="of the computation and of the weights in memory")
    command.add_argument("--int8", action="store_true", help="keep large matrices in int8")
    command.add_argument("--batch_size", type=command_options.integer(1), default=8,
                         help="examples that run at once")
    command.add_argument("--compilation_cache", default=_CACHE, type=command_options.optional_path,
                         help='folder of compiled programs; "" keeps none')
    if name == "generate":
      command.set_defaults(images=[])
    else:
      command.add_argument("--images", nargs="+", required=name != "chat", default=[],
                           type=command_options.path, help="image files" + (
                               "; without any, the question is about text" if name == "chat" else ""))
    if name != "reconstruct":
      command.add_argument("--prompts", nargs="+", required=True, help=(
          "one or several" if name == "generate" else "one per image, or one for all images"))
      command.add_argument("--seed", type=command_options.seed, default=0,
                           help="result i depends on (seed, i) alone")
    if name != "chat":
      command.add_argument("--out", required=True, type=command_options.path,
                           help="folder for PNG files; made if it does not exist")
    if name in ("generate", "edit"):
      command.add_argument("--steps", type=command_options.integer(1, 1000), default=20,
                           help="evaluations of the network for an image")
      command.add_argument("--guidance", type=command_options.number(0.0), default=4.5,
                           help="strength of the prompt; 1 is without guidance")
      command.add_argument("--solver", default="dpm", choices=("dpm", "euler"), help="of the flow's ODE")
    if name == "edit":
      command.add_argument("--keep_size", action="store_true", help="resize results to the inputs' sizes")
    if name == "chat":
      command.add_argument("--max_new_tokens", type=command_options.integer(1), default=256,
                           help="tokens of an answer, at most")
      command.add_argument("--temperature", type=command_options.number(0.0), default=0.0,
                           help="of sampling; 0 takes the most likely token")
      command.add_argument("--top_p", type=command_options.number(0.0, 1.0), default=1.0,
                           help="share of the probability that tokens are sampled from")
      command.add_argument("--max_tiles", type=command_options.integer(1), default=12,
                           help="tiles that an image is cut into, at most")
  return parser


def _read(path: str) -> Any:
  """Reads an image; raises FileNotFoundError or ValueError that names the file."""
  from unilip_jax.data import decode

  try:
    return decode.decode(paths.existing_file(path, "--images").read_bytes(), _MAX_PIXELS)
  except decode.BadImageError as error:
    raise ValueError(f"{path}: {error}") from error


def _one_per_image(prompts: list[str], count: int) -> list[str]:
  """Repeats a single prompt for `count` images."""
  if len(prompts) not in (1, count):
    raise ValueError(f"{count} images, but {len(prompts)} prompts; pass one, or one per image")
  return prompts * count if len(prompts) == 1 else prompts


def _write(folder: str, rows: dict[str, list[Any]]) -> None:
  """Writes the images of the last row, and a grid of all rows if all images have the same size."""
  import numpy as np
  from PIL import Image

  from unilip_jax.common import image_grid

  out = paths.output_folder(folder, "--out")
  out.mkdir(parents=True, exist_ok=True)
  results = list(rows.values())[-1]
  for i, image in enumerate(results):
    with (out / f"{i:04d}.png").open("wb") as file:
      Image.fromarray(image).save(file, "PNG")
  if len({image.shape for images in rows.values() for image in images}) == 1:
    (out / "grid.png").write_bytes(
        image_grid.paired_rows({name: np.stack(images) for name, images in rows.items()}))
  print(f"wrote {len(results)} images to {out}")


def main(argv: list[str] | None = None) -> None:
  """Runs one command."""
  args = _parser().parse_args(argv)
  if args.command != "chat":
    paths.output_folder(args.out, "--out")
  prompts = [] if args.command == "reconstruct" else args.prompts
  if args.images and prompts:
    prompts = _one_per_image(prompts, len(args.images))
  images = [_read(p) for p in args.images]
  _run(args, images, prompts)


def _run(args: argparse.Namespace, images: list[Any], prompts: list[str]) -> None:
  """Loads the model and runs a command on images and prompts that were checked."""
  import numpy as np

  from unilip_jax.common import progress_bar
  from unilip_jax.data import decode
  from unilip_jax.infer import model as model_lib
  from unilip_jax.ops import backend

  backend.enable_compilation_cache(args.compilation_cache)
  kept = f"kept in {args.compilation_cache}" if args.compilation_cache else "not kept"
  print(f"reading {args.checkpoint} and compiling: half a minute for the included weights on a CPU, "
        f"minutes at 1b; compiled programs are {kept}", file=sys.stderr)
  model = model_lib.UniLIP.load(args.checkpoint, args.dtype, batch_size=args.batch_size, int8=args.int8)
  if args.command == "reconstruct":
    starts = range(0, len(images), args.batch_size)
    results = [image for i in progress_bar.bar(starts, disable=len(starts) == 1)
               for image in model.reconstruct(images[i:i + args.batch_size])]
    _write(args.out, {"input": [np.asarray(p) for p in images], "reconstruction": results})
  elif args.command == "chat":
    answers = model.chat(
        images or None, prompts, max_new_tokens=args.max_new_tokens,
        temperature=args.temperature, top_p=args.top_p, seed=args.seed, max_tiles=args.max_tiles)
    for prompt, answer in zip(prompts, answers):
      print(f"{prompt}\n  {answer}")
  else:
    options = dict(steps=args.steps, guidance=args.guidance, solver=args.solver, seed=args.seed)
    if args.command == "generate":
      _write(args.out, {"sample": model.generate(prompts, **options)})
    else:
      results = model.edit(images, prompts, keep_size=args.keep_size, **options)
      before = [np.asarray(decode.fit(p, model.image_size, "stretch", None)) for p in images]
      _write(args.out, {"input": before, "edited": results})


if __name__ == "__main__":
  errors.run_command(main)
