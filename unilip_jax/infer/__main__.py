"""Command line of inference: reconstructs, generates and edits images, and answers questions.

  python -m unilip_jax.infer reconstruct --checkpoint=DIR --images a.png b.jpg --out=DIR
  python -m unilip_jax.infer generate    --checkpoint=DIR --prompts "a red circle" --out=DIR
  python -m unilip_jax.infer edit        --checkpoint=DIR --images a.png --prompts "make it blue" --out=DIR
  python -m unilip_jax.infer chat        --checkpoint=DIR --images a.png --prompts "what is this?"

Images are written to --out as 0000.png, … and, if all have the same size, grid.png. JAX is imported after
the options and paths are checked.
"""

import argparse
import sys
from typing import Any

from unilip_jax.common import arguments, command_options, errors, paths, rectangles
from unilip_jax.configs import base
from unilip_jax.data import text
from unilip_jax.infer import user_images


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog="unilip infer", description=__doc__, formatter_class=command_options.Help)
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
    command.add_argument("--lora", nargs="+", default=[], metavar="PATH[:WEIGHT]",
                         help="adapters on top: runs that trained them, or folders of PEFT or diffusers")
    command.add_argument("--batch_size", type=int, default=8,
                         help="examples that run at once")
    command.add_argument("--compilation_cache", default=base.COMPILATION_CACHE,
                         type=command_options.optional_path,
                         help='folder of compiled programs; "" keeps none')
    if name == "generate":
      command.set_defaults(images=[])
    else:
      command.add_argument("--images", nargs="+", required=name != "chat", default=[],
                           help="image files" + (
                               "; without any, the question is about text" if name == "chat" else ""))
    if name != "reconstruct":
      command.add_argument("--prompts", nargs="+", required=True, help=(
          "one or several" if name == "generate" else "one per image, or one for all images"))
      command.add_argument("--seed", type=int, default=0,
                           help="an integer of 64 bits; result i depends on (seed, i) alone")
    if name != "chat":
      command.add_argument("--out", required=True, type=command_options.path,
                           help="folder for PNG files; made if it does not exist")
    if name in ("generate", "edit"):
      command.add_argument("--steps", type=int,
                           help="evaluations of the network for an image, 1 to 1000; default: 20, or 4 of "
                           "a checkpoint that was distilled to a few steps")
      command.add_argument("--guidance", type=float,
                           help="strength of the prompt; 1 is without guidance; default: 4.5, or 1 of such "
                           "a checkpoint, which has its guidance inside")
      command.add_argument("--guidance_interval", type=float, nargs=2, metavar=("LOW", "HIGH"),
                           help="noise levels, 0 to 1, between which guidance applies; default: all")
      command.add_argument("--guidance_rescale", type=float, default=0.0,
                           help="0 to 1, against colours that strong guidance saturates")
      command.add_argument("--solver", default="dpm", help="of the flow's ODE: dpm or euler")
      command.add_argument("--size", metavar="HEIGHTxWIDTH",
                           help="of the images in pixels, e.g. 336x588; default: the model's square")
    if name == "edit":
      command.add_argument("--keep_shape", action="store_true",
                           help="make results of the aspect-ratio bucket nearest to the input's shape")
      command.add_argument("--keep_size", action="store_true", help="resize results to the inputs' sizes")
    if name == "chat":
      command.add_argument("--max_new_tokens", type=int, default=256,
                           help="tokens of an answer, at most")
      command.add_argument("--temperature", type=float, default=0.0,
                           help="of sampling; 0 takes the most likely token")
      command.add_argument("--top_p", type=float, default=1.0,
                           help="share of the probability that tokens are sampled from")
      command.add_argument("--max_tiles", type=int, default=12,
                           help="tiles that an image is cut into, at most")
  return parser


def _checked(args: argparse.Namespace) -> dict[str, Any]:
  """Returns the options of the command's method of UniLIP, checked without JAX.

  Replaces a single prompt by one per image.
  """
  arguments.integer("batch_size", args.batch_size, 1)
  if args.command != "chat":
    paths.output_folder(args.out, "--out")
  if args.command == "reconstruct":
    return {}
  text.check_prompts(args.prompts)
  if args.images:
    args.prompts = _one_per_image(args.prompts, len(args.images))
  options = {"seed": arguments.seed("seed", args.seed)}
  if args.command == "chat":
    return options | {
        "max_new_tokens": arguments.integer("max_new_tokens", args.max_new_tokens, 1),
        "temperature": arguments.number("temperature", args.temperature, 0.0),
        "top_p": arguments.number("top_p", args.top_p, 0.0, 1.0, open_below=True),
        "max_tiles": arguments.integer("max_tiles", args.max_tiles, 1)}
  if args.steps is not None:
    options["steps"] = arguments.integer("steps", args.steps, 1, 1000)
  if args.guidance is not None:
    options["guidance"] = arguments.number("guidance", args.guidance, 0.0)
  if args.guidance_interval is not None:
    options["guidance_interval"] = arguments.interval(
        "guidance_interval", args.guidance_interval, 0.0, 1.0)
  if args.guidance_rescale:
    options["guidance_rescale"] = arguments.number("guidance_rescale", args.guidance_rescale, 0.0, 1.0)
  if args.size is not None:
    options["size"] = rectangles.parse("--size", args.size)
    arguments.exclusive(size=True, keep_shape=args.command == "edit" and args.keep_shape)
  return options | {"solver": arguments.choice("solver", args.solver, ("dpm", "euler"))}


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
  else:
    (out / "grid.png").unlink(missing_ok=True)  # of an earlier command
    print("no grid.png: the images have different sizes")
  print(f"wrote {len(results)} images to {out}")


def main(argv: list[str] | None = None) -> None:
  """Runs one command."""
  args = _parser().parse_args(argv)
  options = _checked(args)
  _run(args, user_images.as_arrays(args.images), options)


def _run(args: argparse.Namespace, images: list[Any], options: dict[str, Any]) -> None:
  """Loads the model and runs a command on images and options that were checked."""
  from unilip_jax.common import progress_bar
  from unilip_jax.infer import model as model_lib
  from unilip_jax.ops import backend

  backend.enable_compilation_cache(args.compilation_cache)
  kept = f"kept in {args.compilation_cache}" if args.compilation_cache else "not kept"
  print(f"reading {args.checkpoint}; compiled programs are {kept}", file=sys.stderr)
  model = model_lib.UniLIP.load(
      args.checkpoint, args.dtype, batch_size=args.batch_size, int8=args.int8, adapters=args.lora)
  if args.command == "reconstruct":
    starts = range(0, len(images), args.batch_size)
    results = [image for i in progress_bar.bar(starts, disable=len(starts) == 1)
               for image in model.reconstruct(images[i:i + args.batch_size], output="array")]
    _write(args.out, {"input": images, "reconstruction": results})
  elif args.command == "chat":
    answers = model.chat(images or None, args.prompts, **options)
    for prompt, answer in zip(args.prompts, answers):
      print(f"{prompt}\n  {answer or '(no answer)'}")
  elif args.command == "generate":
    _write(args.out, {"sample": model.generate(args.prompts, output="array", **options)})
  else:
    results = model.edit(images, args.prompts, keep_shape=args.keep_shape, keep_size=args.keep_size,
                         output="array", **options)
    before = [user_images.stretched(x, result.shape[:2]) for x, result in zip(images, results)]
    _write(args.out, {"input": before, "edited": results})


if __name__ == "__main__":
  errors.run_command(main)
