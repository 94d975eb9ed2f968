"""Command line of the make step: images or answers of a checkpoint in a benchmark's own layout.

  python -m unilip_jax.evals make --benchmark=geneval --items=evaluation_metadata.jsonl
      --checkpoint=weights/unilip-1b --out=runs/a/geneval

Defaults are UniLIP's official protocol; a checkpoint that was distilled to a few steps takes its own number
of steps and no guidance, which the record names. A rerun makes what is absent; other settings in the same
folder are refused. Several processes share a folder: give each --process_index and --process_count.
"""

import argparse
from collections.abc import Sequence
import functools
import os
from typing import Any

from unilip_jax.common import command_options, paths, progress_bar
from unilip_jax.configs import base as configs_base
from unilip_jax.scores import base, make_record, provenance

_COUNT = command_options.integer(1)


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command."""
  out = argparse.ArgumentParser(prog="unilip evals make", description=__doc__,
                                formatter_class=command_options.Help)
  add = out.add_argument
  add("--benchmark", required=True, help="name of the benchmark")
  add("--items", required=True, help="the benchmark's own file or folder")
  add("--out", required=True, help="folder of images or answers; local or gs://")
  model = out.add_mutually_exclusive_group(required=True)
  model.add_argument("--checkpoint", help="workdir, step folder, imported weights or shapes:NAME; this or "
                     "--workdir is required, without default")
  model.add_argument("--workdir", dest="checkpoint", help="the same, without default")
  add("--protocol", choices=("official", "free"), help="refuse settings that differ from this protocol's; "
      "default: official if none differs")
  add("--steps", type=_COUNT, help="evaluations of the network for an image, 1 to 1000; default: 20, of a "
      "few-step checkpoint 4")
  add("--guidance", type=float, help="strength of the prompt; 1 is without guidance; default: 4.5, of a "
      "few-step checkpoint 1")
  add("--guidance_interval", type=float, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"),
      help="noise levels between which guidance applies")
  add("--guidance_rescale", type=float, default=0.0,
      help="0 to 1, against colours that strong guidance saturates")
  add("--solver", default="dpm", choices=("dpm", "euler"), help="of the flow's ODE")
  add("--seed", type=int, default=42, help="of the noise, an integer of 64 bits")
  add("--noise", default="shared", help="shared: image k starts from the same noise for every prompt, as "
      "UniLIP's; prompt: noise of its own; or a .npy file, float32[k, h, w, C]")
  add("--size", type=_COUNT, help="pixels per side of the written images; default: the model's")
  add("--images_per_item", "--images_per_prompt", type=_COUNT, help="default: the official number")
  add("--keep_size", action="store_true", help="resize edited images to the size of their source")
  add("--max_items", type=_COUNT, help="the first items only; default: all")
  add("--max_new_tokens", type=_COUNT, default=256, help="of an answer")
  add("--max_tiles", type=_COUNT, help="of an image that is asked about; default: as in VLMEvalKit; 1 is "
      "one square of the model's size")
  add("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of computation and weights")
  add("--int8", action="store_true", help="keep large matrices in int8")
  add("--batch_size", type=_COUNT, default=8, help="over the devices of this process")
  add("--process_index", type=int, default=int(os.environ.get("UNILIP_PROCESS_INDEX") or 0),
      help="of this process, which makes every process_count-th item")
  add("--process_count", type=int, default=int(os.environ.get("UNILIP_PROCESS_COUNT") or 1),
      help="processes that share --out")
  add("--compilation_cache", default=configs_base.COMPILATION_CACHE, help="folder of compiled programs")
  return out


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command.

  Raises:
    ValueError: for settings that do not fit the benchmark, the protocol or the folder.
  """
  args = parser().parse_args(argv)
  benchmark = base.find(args.benchmark)
  paths.output_folder(args.out, "--out")  # before weights are read
  if not 0 <= args.process_index < args.process_count:
    raise ValueError(f"--process_index={args.process_index} is none of {args.process_count} processes")
  items = benchmark.read_items(args.items)[:args.max_items]
  if not items:
    raise ValueError(f"{args.items} holds no item")
  # JAX starts here, so that --help and wrong arguments are answered at once.
  from unilip_jax.ops import backend
  from unilip_jax.scores import makers, reconstructing

  backend.enable_compilation_cache(args.compilation_cache)
  if benchmark.kind == "reconstruction":
    _reconstructions(args, benchmark, items, reconstructing.Reconstructor(
        args.checkpoint, args.dtype, args.batch_size, int8=args.int8))
    return
  maker = makers.CheckpointMaker(args.checkpoint, args.dtype, args.batch_size, int8=args.int8)
  run = _answers if benchmark.kind == "understanding" else _images
  run(args, benchmark, items, maker, _common(args, items, maker.fingerprint))


def _common(args, items, fingerprint) -> dict[str, Any]:
  return {"items": provenance.file_hashes(args.items), "items_sha256": provenance.items_digest(items),
          "items_made": len(items), "checkpoint": args.checkpoint, "weights_fingerprint": fingerprint}


def _reconstructions(args, benchmark, items, reconstructor) -> None:
  from unilip_jax.scores import reconstructing

  folder = make_record.open_folder(args.out, _common(args, items, reconstructor.fingerprint) | {
      "benchmark": benchmark.name, "revision": benchmark.revision, "precision": args.dtype,
      "int8": args.int8, "model_size": reconstructor.image_size, "batch_size": args.batch_size,
      "protocol": "padded"})  # each image at its own size, padded to complete tokens
  share = items[args.process_index::args.process_count]
  written = reconstructing.make_reconstructions(
      benchmark, share, folder, reconstructor, progress=_progress("batch"))
  print(f"{written} of {len(share)} reconstructions made in {args.out}, {len(share) - written} were there")


def _images(args, benchmark, items, maker, common) -> None:
  from unilip_jax.sampling import sampler
  from unilip_jax.scores import make

  settings = make.Settings(
      sampler.Options.of(
          maker.few_step, steps=args.steps, guidance=args.guidance, solver=args.solver,
          guidance_interval=tuple(args.guidance_interval), guidance_rescale=args.guidance_rescale),
      args.seed, args.noise, args.size or maker.image_size, args.images_per_item, args.keep_size)
  record = make.record(benchmark, settings, maker, args.dtype, args.int8)
  changed = record["differs_from_official"]
  few_step = (f"; this checkpoint was distilled to a few steps ({maker.few_step}): it takes "
              f"{settings.options.steps} and no guidance" if maker.few_step else "")
  if args.protocol and args.protocol != record["protocol"]:
    raise ValueError(f"--protocol={args.protocol}, but the settings are {record['protocol']}: they differ "
                     f"from UniLIP's in {', '.join(changed) or 'nothing'}{few_step}")
  folder = make_record.open_folder(args.out, record | common)
  share = make.Share(args.process_index, args.process_count)
  count = len(items[share.index::share.count]) * record["images_per_item"]
  written = make.make_images(
      benchmark, items, folder, maker, settings, share=share, progress=_progress("batch"))
  print(f"{written} of {count} images made in {args.out}, {count - written} were there; protocol "
        f"{record['protocol']}" + (f": {', '.join(changed)} differ from UniLIP's" if changed else "")
        + few_step)


def _answers(args, benchmark, items, maker, common) -> None:
  from unilip_jax.scores import make

  tiles = args.max_tiles or benchmark.max_tiles
  folder = make_record.open_folder(args.out, common | make.answers_record(
      benchmark, items, maker, args.dtype, args.int8, max_new_tokens=args.max_new_tokens, max_tiles=tiles))
  written = make.make_answers(
      benchmark, items, folder, maker, max_new_tokens=args.max_new_tokens, max_tiles=tiles,
      share=make.Share(args.process_index, args.process_count), progress=_progress("batch"))
  print(f"{written} answers made in {args.out}, each image in at most {tiles} tiles of "
        f"{maker.image_size} pixels")


def _progress(unit: str):
  return functools.partial(progress_bar.bar, unit=unit)
