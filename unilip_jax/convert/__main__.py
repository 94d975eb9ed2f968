"""Weights in and out of PyTorch's formats (docs/weights.md).

  python -m unilip_jax.convert import --source=PATH_OR_HUB_ID [--source=…] --out=DIR
  python -m unilip_jax.convert export --checkpoint=DIR --format=pth --out=FILE [--dtype=bfloat16]
  python -m unilip_jax.convert inspect PATH
"""

import argparse
from collections.abc import Sequence
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


def _import(args: argparse.Namespace) -> list[str]:
  from unilip_jax import tree
  from unilip_jax.convert import importer

  result = importer.import_weights(
      args.source, args.out, vit_heads=args.vit_heads, overwrite=args.overwrite)
  counts = {name: tree.count(module) for name, module in result.modules.items()}
  lines = [*result.log, *(f"  {name}: {count:,} parameters, {result.dtypes[name]} in the source"
                          for name, count in counts.items())]
  return [*lines, f"wrote {args.out} ({sum(counts.values()) * 4 / 1e6:.1f} MB, float32)"]


def _export(args: argparse.Namespace) -> list[str]:
  from unilip_jax.convert import exporter

  return exporter.export_weights(
      args.checkpoint, args.format, args.out, args.dtype, overwrite=args.overwrite)


def _inspect(args: argparse.Namespace) -> list[str]:
  from unilip_jax.convert import inspector

  return inspector.describe(args.path, vit_heads=args.vit_heads)


_COMMANDS = {"import": _import, "export": _export, "inspect": _inspect}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog="python -m unilip_jax.convert", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(dest="command", required=True)
  command = commands.add_parser("import", help="foreign weights into a folder of ours")
  command.add_argument(
      "--source", action="append", required=True,
      help="file, folder or hf://org/name[@revision]; may be given several times")
  command.add_argument("--out", required=True, help="folder to write, local or gs://")
  _add_heads(command)
  command.add_argument(
      "--overwrite", action="store_true", help="replace a folder of weights that stands at --out")
  command = commands.add_parser("export", help="our weights into a PyTorch file")
  command.add_argument(
      "--checkpoint", required=True, help="a run's workdir, one of its checkpoints, or imported")
  command.add_argument(
      "--format", required=True, choices=["pth"], help="pth: UniLIP's tokenizer checkpoint")
  command.add_argument("--out", required=True, help="file to write")
  command.add_argument(
      "--dtype", default="float32", choices=["float32", "bfloat16", "source"],
      help="source: what each module had before it was imported")
  command.add_argument(
      "--overwrite", action="store_true", help="replace a file that stands at --out")
  command = commands.add_parser("inspect", help="what a file or folder of weights holds")
  command.add_argument("path")
  _add_heads(command)
  return parser


def _add_heads(command: argparse.ArgumentParser) -> None:
  command.add_argument(
      "--vit_heads", type=int,
      help="the ViT's attention heads, for weights without config.json at unpublished widths")


if __name__ == "__main__":
  sys.exit(main())
