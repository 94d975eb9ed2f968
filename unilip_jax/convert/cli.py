"""Converts weights from and to PyTorch's formats (docs/weights.md).

  python -m unilip_jax.convert import --source=PATH_OR_HUB_ID [--source=…] --out=DIR
  python -m unilip_jax.convert import --mllm=… --dit=… --vae=… --unilip=… --out=DIR
  python -m unilip_jax.convert export --checkpoint=DIR --format=unilip|pth|components|diffusers --out=PATH
  python -m unilip_jax.convert export --lora --checkpoint=RUN --out=DIR
  python -m unilip_jax.convert inspect PATH
  python -m unilip_jax.convert check DIR
"""

import argparse
from collections.abc import Iterator, Sequence
import importlib
import importlib.util
from typing import Any

from unilip_jax.common import command_options, errors, paths
from unilip_jax.convert import choices

_REFERENCES = "benchmarks.torch_modules"  # PyTorch networks, which are not installed with the package
_PACKAGES = ("torch", "transformers", "diffusers")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Returns:
    Exit status: 0, or 1 after an error that was printed as one message (2: argparse's own).
  """
  args = _parser().parse_args(argv)

  def run() -> None:
    for line in _COMMANDS[args.command](args):
      print(line)

  return errors.status(run)


def _import(args: argparse.Namespace) -> Iterator[str]:
  paths.output_folder(args.out, "--out")
  references = _references() if args.check else None
  from unilip_jax.convert import engine, importer, modules

  locations = [importer.Location(place) for place in args.source]
  locations += [importer.Location(place, role) for role in choices.ROLES
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
  if args.lora == (args.format is not None):
    raise ValueError("give --format for complete weights, or --lora for adapters alone")
  (paths.output_file if args.format == "pth" else paths.output_folder)(args.out, "--out")
  if args.lora:
    from unilip_jax.convert import lora_export

    return lora_export.export_run(args.checkpoint, args.out, overwrite=args.overwrite)
  from unilip_jax.convert import exporter

  return exporter.export_weights(
      args.checkpoint, args.format, args.out, args.dtype, overwrite=args.overwrite)


def _inspect(args: argparse.Namespace) -> list[str]:
  from unilip_jax.convert import inspector

  return inspector.describe(args.path, _options(args))


def _options(args: argparse.Namespace) -> Any:
  """Returns reading.Options of the command line."""
  from unilip_jax.convert import reading

  positions = {"auto": None, "on": True, "off": False}[args.dit_positions]
  return reading.Options(vit_heads=args.vit_heads, dit_positions=positions)


_COMMANDS = {"import": _import, "export": _export, "inspect": _inspect, "check": _check}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog="unilip convert", description=__doc__,
      formatter_class=command_options.Help)
  commands = parser.add_subparsers(dest="command", required=True)

  def add(name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text, formatter_class=command_options.Help)

  command = add("import", "PyTorch weights into a folder of unilip_jax")
  command.add_argument(
      "--source", action="append", default=[],
      help="file, folder or hf://org/name[@revision]; may be given several times, later ones win")
  for role, what in (("mllm", "InternVL3: CLIP tower, mlp1, language model"), ("dit", "SANA"),
                     ("vae", "DC-AE"), ("unilip", "UniLIP's folder or .pth; wins over all others")):
    command.add_argument(f"--{role}", help=f"like --source after all of them: {what}")
  command.add_argument("--out", required=True, type=command_options.path,
                       help="folder to write, local or gs://")
  command.add_argument("--dtype", default="source", choices=choices.IMPORT_DTYPES,
                       help="of the folder; source keeps that of each module")
  _add_options(command)
  command.add_argument("--check", action="store_true",
                       help="then compare every module with its PyTorch reference")
  command.add_argument("--overwrite", action="store_true", help="replace a folder of weights at --out")
  command = add("export", "weights of unilip_jax into PyTorch's formats")
  command.add_argument("--checkpoint", required=True, type=command_options.path,
                       help="a run's workdir, one of its checkpoints, or imported weights")
  command.add_argument(
      "--format", choices=choices.FORMATS,
      help="unilip: the published folder; pth: UniLIP's tokenizer checkpoint (needs PyTorch); components: "
           "folders for transformers and diffusers; diffusers: a pipeline that runs in PyTorch, with nodes "
           "for ComfyUI (docs/diffusers.md)")
  command.add_argument("--lora", action="store_true",
                       help="instead of --format: the adapters of a run, for PEFT and diffusers")
  command.add_argument("--out", required=True, help="folder to write, or file (pth); local or gs://")
  command.add_argument("--dtype", default="float32", choices=choices.EXPORT_DTYPES,
                       help="source: that of each module before it was imported")
  command.add_argument("--overwrite", action="store_true", help="replace an earlier export at --out")
  command = add("inspect", "describe a file or folder of weights")
  command.add_argument("path", help="file or folder of weights, a run, hf://org/name or shapes:NAME")
  _add_options(command)
  command = add("check", "compare every module with its PyTorch reference")
  command.add_argument("path", help="imported weights, or a run")
  return parser


def _add_options(command: argparse.ArgumentParser) -> None:
  command.add_argument(
      "--vit_heads", type=command_options.integer(1),
      help="the ViT's attention heads, for weights without config.json at unpublished widths")
  command.add_argument(
      "--dit_positions", default="auto", choices=["auto", "on", "off"],
      help="whether the DiT adds positions; auto: yes for UniLIP, for SANA by its diffusers release")
