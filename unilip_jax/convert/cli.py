"""Converts weights from and to PyTorch's formats (docs/weights.md).

  python -m unilip_jax.convert import --source=PATH_OR_HUB_ID [--source=…] --out=DIR
  python -m unilip_jax.convert import --mllm=… --dit=… --vae=… --unilip=… --out=DIR
  python -m unilip_jax.convert export --checkpoint=DIR --format=unilip|pth|components --out=PATH
  python -m unilip_jax.convert inspect PATH
  python -m unilip_jax.convert check DIR
"""

import argparse
from collections.abc import Iterator, Sequence
import importlib
import importlib.util
import os
import sys
from typing import Any

from unilip_jax.common import errors
from unilip_jax.convert import engine, exporter, importer, inspector, modules, reading

_REFERENCES = "benchmarks.torch_modules"  # PyTorch networks, which are not installed with the package
_PACKAGES = ("torch", "transformers", "diffusers")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Returns:
    Exit status: 0, or 1 after an error that was printed as one message (2: argparse's own).
  """
  args = _parser().parse_args(argv)
  try:
    for line in _COMMANDS[args.command](args):
      print(line)
  except (*errors.USER_ERRORS, OSError) as error:
    if os.environ.get("UNILIP_TRACEBACK"):
      raise
    print(f"error: {error}\n(UNILIP_TRACEBACK=1 shows the stack trace)", file=sys.stderr)
    return 1
  return 0


def _import(args: argparse.Namespace) -> Iterator[str]:
  references = _references() if args.check else None
  locations = [importer.Location(place) for place in args.source]
  locations += [importer.Location(place, role) for role in importer.ROLES
                if (place := getattr(args, role)) is not None]
  if not locations:
    raise ValueError("nothing to import: give --source, or --mllm, --dit, --vae, --unilip")
  plan = importer.import_weights(
      locations, args.out, options=_options(args), dtype=args.dtype, overwrite=args.overwrite)
  yield from plan.log
  total = 0
  for module, dims in plan.dims.items():
    shapes = {path: leaf.shape for path, leaf in plan.shapes(module).items()}
    count = modules.count(module, dims, shapes)
    dtype = plan.dtypes[module] if args.dtype == "source" else args.dtype
    total += count * engine.numpy_dtype(dtype).itemsize
    yield f"  {module}: {count:,} parameters, {plan.dtypes[module]} in the source, {dtype} here"
  yield f"wrote {args.out} ({total / 1e6:.1f} MB before compression)"
  if references is not None:
    yield from references.check(args.out)


def _check(args: argparse.Namespace) -> Iterator[str]:
  return _references().check(args.path)


def _references() -> Any:
  """Imports the PyTorch references, whose `check(path)` compares every module with them.

  Raises:
    ValueError: if the references or their packages are not installed.
  """
  if absent := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
    raise ValueError(f"--check compares with PyTorch, and {', '.join(absent)} "
                     f"{'is' if len(absent) == 1 else 'are'} not installed: pip install "
                     f"{' '.join(absent)} (requirements-dev.txt has the tested versions)")
  try:
    return importlib.import_module(_REFERENCES)
  except ModuleNotFoundError as error:
    if error.name not in (_REFERENCES, _REFERENCES.partition(".")[0]):
      raise
    raise ValueError(
        f"--check compares with the PyTorch networks of {_REFERENCES}, which are in the repository, not "
        "in the installed package: clone the repository and run the same command in its folder") from error


def _export(args: argparse.Namespace) -> list[str]:
  return exporter.export_weights(
      args.checkpoint, args.format, args.out, args.dtype, overwrite=args.overwrite)


def _inspect(args: argparse.Namespace) -> list[str]:
  return inspector.describe(args.path, _options(args))


def _options(args: argparse.Namespace) -> reading.Options:
  positions = {"auto": None, "on": True, "off": False}[args.dit_positions]
  return reading.Options(vit_heads=args.vit_heads, dit_positions=positions)


_COMMANDS = {"import": _import, "export": _export, "inspect": _inspect, "check": _check}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog="python -m unilip_jax.convert", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(dest="command", required=True)
  command = commands.add_parser("import", help="PyTorch weights into a folder of unilip_jax")
  command.add_argument(
      "--source", action="append", default=[],
      help="file, folder or hf://org/name[@revision]; may be given several times, later ones win")
  for role, what in (("mllm", "InternVL3: CLIP tower, mlp1, language model"), ("dit", "SANA"),
                     ("vae", "DC-AE"), ("unilip", "UniLIP's folder or .pth; wins over all others")):
    command.add_argument(f"--{role}", help=f"like --source after all of them: {what}")
  command.add_argument("--out", required=True, help="folder to write, local or gs://")
  command.add_argument("--dtype", default="source", choices=importer.DTYPES,
                       help="of the folder; source keeps that of each module")
  _add_options(command)
  command.add_argument("--check", action="store_true",
                       help="then compare every module with its PyTorch reference")
  command.add_argument("--overwrite", action="store_true", help="replace a folder of weights at --out")
  command = commands.add_parser("export", help="weights of unilip_jax into PyTorch's formats")
  command.add_argument("--checkpoint", required=True,
                       help="a run's workdir, one of its checkpoints, or imported weights")
  command.add_argument(
      "--format", required=True, choices=exporter.FORMATS,
      help="unilip: the published folder; pth: UniLIP's tokenizer checkpoint (needs PyTorch); components: "
           "folders for transformers and diffusers")
  command.add_argument("--out", required=True, help="folder to write, or file (pth)")
  command.add_argument("--dtype", default="float32", choices=exporter.DTYPES,
                       help="source: that of each module before it was imported")
  command.add_argument("--overwrite", action="store_true", help="replace an earlier export at --out")
  command = commands.add_parser("inspect", help="describe a file or folder of weights")
  command.add_argument("path")
  _add_options(command)
  command = commands.add_parser("check", help="compare every module with its PyTorch reference")
  command.add_argument("path", help="imported weights, or a run")
  return parser


def _add_options(command: argparse.ArgumentParser) -> None:
  command.add_argument(
      "--vit_heads", type=int,
      help="the ViT's attention heads, for weights without config.json at unpublished widths")
  command.add_argument(
      "--dit_positions", default="auto", choices=["auto", "on", "off"],
      help="whether the DiT adds positions; auto: yes for UniLIP, for SANA by its diffusers release")
