"""Weights in and out of PyTorch's formats (docs/weights.md).

  python -m unilip_jax.convert import --source=PATH_OR_HUB_ID [--source=…] --out=DIR
  python -m unilip_jax.convert import --mllm=… --dit=… --vae=… --unilip=… --out=DIR
  python -m unilip_jax.convert export --checkpoint=DIR --format=unilip|pth|components --out=PATH
  python -m unilip_jax.convert inspect PATH
  python -m unilip_jax.convert check DIR
"""

import argparse
from collections.abc import Iterator, Sequence
import os
import sys

# Conversion is work of the CPU: it must not take an accelerator from a run beside it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Returns:
    Exit status: 0, or 1 after an error that was printed as one message (2: argparse's own).
  """
  args = _parser().parse_args(argv)
  try:
    for line in _COMMANDS[args.command](args):
      print(line)
  except (ValueError, OSError) as error:
    if os.environ.get("UNILIP_TRACEBACK"):
      raise
    print(f"error: {error}\n(UNILIP_TRACEBACK=1 shows the stack trace)", file=sys.stderr)
    return 1
  return 0


def _import(args: argparse.Namespace) -> Iterator[str]:
  from unilip_jax.convert import importer, modules, rules

  locations = [importer.Location(place) for place in args.source]
  locations += [importer.Location(place, role) for role in importer.ROLES
                if (place := getattr(args, role)) is not None]
  if not locations:
    raise ValueError("nothing to import: give --source, or --mllm, --dit, --vae, --unilip")
  made = importer.import_weights(
      locations, args.out, options=_options(args), dtype=args.dtype, overwrite=args.overwrite)
  yield from made.log
  total = 0
  for module in made.dims:
    shapes = {path: leaf.shape for path, leaf in made.shapes(module).items()}
    count = modules.count(module, made.dims[module], shapes)
    kept = made.dtypes[module] if args.dtype == "source" else args.dtype
    total += count * rules.numpy_dtype(kept).itemsize
    yield f"  {module}: {count:,} parameters, {made.dtypes[module]} in the source, {kept} here"
  yield f"wrote {args.out} ({total / 1e6:.1f} MB before compression)"
  if args.check:
    from unilip_jax.convert import check

    yield from check.check(args.out)


def _check(args: argparse.Namespace) -> Iterator[str]:
  from unilip_jax.convert import check

  return check.check(args.path)


def _export(args: argparse.Namespace) -> list[str]:
  from unilip_jax.convert import exporter

  return exporter.export_weights(
      args.checkpoint, args.format, args.out, args.dtype, overwrite=args.overwrite)


def _inspect(args: argparse.Namespace) -> list[str]:
  from unilip_jax.convert import inspector

  return inspector.describe(args.path, _options(args))


def _options(args: argparse.Namespace):
  from unilip_jax.convert import sources

  positions = {"auto": None, "on": True, "off": False}[args.dit_positions]
  return sources.Options(vit_heads=args.vit_heads, dit_positions=positions)


_COMMANDS = {"import": _import, "export": _export, "inspect": _inspect, "check": _check}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog="python -m unilip_jax.convert", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(dest="command", required=True)
  command = commands.add_parser("import", help="foreign weights into a folder of ours")
  command.add_argument(
      "--source", action="append", default=[],
      help="file, folder or hf://org/name[@revision]; may be given several times, later ones win")
  for role, what in (("mllm", "InternVL3: CLIP tower, mlp1, language model"), ("dit", "SANA"),
                     ("vae", "DC-AE"), ("unilip", "UniLIP's folder or .pth; wins over all others")):
    command.add_argument(f"--{role}", help=f"like --source behind all of them: {what}")
  command.add_argument("--out", required=True, help="folder to write, local or gs://")
  command.add_argument("--dtype", default="source", choices=["source", "float32", "bfloat16"],
                       help="of the folder; source keeps what each module has")
  _add_options(command)
  command.add_argument("--check", action="store_true",
                       help="then compare every module with its PyTorch twin")
  command.add_argument(
      "--overwrite", action="store_true", help="replace a folder of weights that stands at --out")
  command = commands.add_parser("export", help="our weights into PyTorch's formats")
  command.add_argument(
      "--checkpoint", required=True, help="a run's workdir, one of its checkpoints, or imported")
  command.add_argument(
      "--format", required=True, choices=["unilip", "pth", "components"],
      help="unilip: the published folder; pth: UniLIP's tokenizer checkpoint; components: folders "
           "for transformers and diffusers")
  command.add_argument("--out", required=True, help="folder to write, or file (pth)")
  command.add_argument(
      "--dtype", default="float32", choices=["float32", "bfloat16", "source"],
      help="source: what each module had before it was imported")
  command.add_argument(
      "--overwrite", action="store_true", help="replace what an earlier export left at --out")
  command = commands.add_parser("inspect", help="what a file or folder of weights holds")
  command.add_argument("path")
  _add_options(command)
  command = commands.add_parser("check", help="compare every module with its PyTorch twin")
  command.add_argument("path", help="imported weights, or a run")
  return parser


def _add_options(command: argparse.ArgumentParser) -> None:
  command.add_argument(
      "--vit_heads", type=int,
      help="the ViT's attention heads, for weights without config.json at unpublished widths")
  command.add_argument(
      "--dit_positions", default="auto", choices=["auto", "on", "off"],
      help="whether the DiT adds positions; auto: yes for UniLIP, for SANA by its diffusers release")


if __name__ == "__main__":
  sys.exit(main())
