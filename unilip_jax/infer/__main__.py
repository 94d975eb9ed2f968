"""Command line of inference: reconstructs, generates and edits images, and answers questions.

  python -m unilip_jax.infer reconstruct --checkpoint=DIR --images a.png b.jpg --out=DIR
  python -m unilip_jax.infer generate    --checkpoint=DIR --prompts "a red circle" --out=DIR
  python -m unilip_jax.infer edit        --checkpoint=DIR --images a.png --prompts "make it blue" --out=DIR
  python -m unilip_jax.infer chat        --checkpoint=DIR --images a.png --prompts "what is this?"

Images are written to --out as 0000.png, … and grid.png.
"""

import argparse
import pathlib
from typing import Any

import numpy as np
from PIL import Image
import tqdm

from unilip_jax.common import arguments, errors, image_grid
from unilip_jax.data import text
from unilip_jax.infer import loading, user_images
from unilip_jax.infer.model import UniLIP
from unilip_jax.ops import backend
from unilip_jax.sampling import sampler
from unilip_jax.sampling import text as text_sampling


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog="python -m unilip_jax.infer", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(dest="command", required=True)
  for name, description in (
      ("reconstruct", "encode and decode images"), ("generate", "generate images from prompts"),
      ("edit", "edit images by instructions"), ("chat", "answer questions about images")):
    command = commands.add_parser(name, help=description)
    command.add_argument("--checkpoint", required=True,
                         help="workdir, step folder, imported weights or shapes:NAME")
    command.add_argument("--dtype", default="bfloat16", choices=loading.DTYPES)
    command.add_argument("--int8", action="store_true", help="keep large matrices in int8")
    command.add_argument("--batch_size", type=int, default=8)
    command.add_argument("--compilation_cache", default="~/.cache/unilip_jax/xla",
                         help='folder of compiled programs; "" disables it')
    if name == "generate":
      command.set_defaults(images=[])
    else:
      command.add_argument("--images", nargs="+", required=name != "chat", default=[])
    if name != "reconstruct":
      command.add_argument("--prompts", nargs="+", required=True,
                           help="one per image, or one for all images")
      command.add_argument("--seed", type=int, default=0)
    if name != "chat":
      command.add_argument("--out", required=True, help="folder for PNG files")
    if name in ("generate", "edit"):
      command.add_argument("--steps", type=int, default=20)
      command.add_argument("--guidance", type=float, default=4.5)
      command.add_argument("--solver", default="dpm")
    if name == "edit":
      command.add_argument("--keep_size", action="store_true", help="resize results to the inputs' sizes")
    if name == "chat":
      command.add_argument("--max_new_tokens", type=int, default=256)
      command.add_argument("--temperature", type=float, default=0.0)
      command.add_argument("--top_p", type=float, default=1.0)
      command.add_argument("--max_tiles", type=int, default=12)
  return parser


def _options(args: argparse.Namespace) -> dict[str, Any]:
  """Returns the options of the command's method of UniLIP, checked before anything is read.

  Replaces a single prompt by one per image.
  """
  loading.check_options(args.dtype, batch_size=args.batch_size, int8=args.int8)
  if args.command == "reconstruct":
    return {}
  text.check_prompts(args.prompts)
  if args.images:
    args.prompts = _one_per_image(args.prompts, len(args.images))
  seed = {"seed": arguments.seed("seed", args.seed)}
  if args.command == "chat":
    options = text_sampling.Options(args.max_new_tokens, args.temperature, args.top_p)
    return vars(options) | seed | {"max_tiles": arguments.integer("max_tiles", args.max_tiles, 1)}
  return vars(sampler.Options(args.steps, args.guidance, args.solver)) | seed


def _one_per_image(prompts: list[str], count: int) -> list[str]:
  """Repeats a single prompt for `count` images."""
  if len(prompts) not in (1, count):
    raise ValueError(f"{count} images, but {len(prompts)} prompts; pass one, or one per image")
  return prompts * count if len(prompts) == 1 else prompts


def _write(folder: str, rows: dict[str, list[np.ndarray]]) -> None:
  """Writes the images of the last row, and a grid of all rows if all images have the same size."""
  out = pathlib.Path(folder).expanduser()
  out.mkdir(parents=True, exist_ok=True)
  results = list(rows.values())[-1]
  for i, image in enumerate(results):
    Image.fromarray(image).save(out / f"{i:04d}.png")
  if len({image.shape for images in rows.values() for image in images}) == 1:
    (out / "grid.png").write_bytes(
        image_grid.paired_rows({name: np.stack(images) for name, images in rows.items()}))
  print(f"wrote {len(results)} images to {out}")


def main(argv: list[str] | None = None) -> None:
  """Runs one command."""
  args = _parser().parse_args(argv)
  options = _options(args)
  images = user_images.as_arrays(args.images)
  backend.enable_compilation_cache(args.compilation_cache)
  model = UniLIP.load(args.checkpoint, args.dtype, batch_size=args.batch_size, int8=args.int8)
  if args.command == "reconstruct":
    starts = range(0, len(images), args.batch_size)
    results = [image for i in tqdm.tqdm(starts, disable=len(starts) == 1)
            for image in model.reconstruct(images[i:i + args.batch_size])]
    _write(args.out, {"input": images, "reconstruction": results})
  elif args.command == "chat":
    answers = model.chat(images or None, args.prompts, **options)
    for prompt, answer in zip(args.prompts, answers):
      print(f"{prompt}\n  {answer}")
  elif args.command == "generate":
    _write(args.out, {"sample": model.generate(args.prompts, **options)})
  else:
    results = model.edit(images, args.prompts, keep_size=args.keep_size, **options)
    before = [user_images.stretched(x, model.image_size) for x in images]
    _write(args.out, {"input": before, "edited": results})


if __name__ == "__main__":
  errors.run_command(main)
