"""Lists every input that a config reads, present or missing, and copies local ones below config.root.

  unilip check --config=configs/stage2.py:1b [--config.root=gs://bucket/unilip] [--stage_from=FOLDER]

Run it before a slice is rented: it needs no accelerator and reads no weights. With --stage_from, what
lies in that folder is copied below the root; a file that is there in the same size is left.
Exit status 0: all inputs are there, 1: some are missing.
"""

from collections.abc import Iterator
import dataclasses
import os
import sys
from typing import Any

from absl import app, flags, logging
from etils import epath

from unilip_jax.common import errors, paths
from unilip_jax.configs import checks, flag, roots
from unilip_jax.data.own import apply as own_data
from unilip_jax.weights import download_hints

_FROM = flags.DEFINE_string(
    "stage_from", "", "Folder, local or gs://, that missing inputs are copied from, to below config.root.")
flags.mark_flags_as_required(["config"])
flags.adopt_module_key_flags(flag)
_BLOCK = 2**24  # bytes copied at once


@dataclasses.dataclass(frozen=True)
class Input:
  """One input of a config.

  Attributes:
    field: of the config.
    path: file, folder or pattern.
    files: number of files there; 0 if it is missing.
    size: bytes of them.
  """

  field: str
  path: str
  files: int
  size: int


def find(config: Any) -> list[Input]:
  """Looks up all inputs of a config whose root is applied."""
  result = []
  for field, path in roots.inputs(config):
    sizes = [p.stat().length for p in _files(path)]
    result.append(Input(field, path, len(sizes), sum(sizes)))
  return result


def lines(inputs: list[Input]) -> Iterator[str]:
  """Yields one line for each input, and for a missing one where it comes from."""
  for i in inputs:
    state = f"{i.files} files, {i.size / 1e9:.2f} GB" if i.files else "MISSING"
    yield f"{state:>24}  {i.path}  ({i.field})"
    if not i.files:
      yield f"{'':>24}  {_remedy(i)}"
  missing = sum(not i.files for i in inputs)
  yield (f"{len(inputs)} inputs, {sum(i.size for i in inputs) / 1e9:.2f} GB"
         + (f", {missing} missing" if missing else ", all there"))


def stage(config: Any, inputs: list[Input], source: str) -> int:
  """Copies what is missing, or has another size, from the same relative place below `source`.

  Returns:
    The number of files copied.

  Raises:
    ValueError: without a root to copy to.
  """
  root = config.root.rstrip("/")
  if not root:
    raise ValueError("--stage_from copies to below --config.root: set it, e.g. "
                     "--config.root=gs://bucket/unilip")
  count = 0
  for i in inputs:
    if not i.path.startswith(f"{root}/"):
      continue
    relative = i.path.removeprefix(f"{root}/")
    base = paths.path(source, "--stage_from")
    for file in _files(os.fspath(base / relative)):
      count += _copy(file, epath.Path(root) / os.fspath(file.relative_to(base)))
  return count


def _files(path: str) -> list[epath.Path]:
  """Returns the files that a pattern matches, or all of a folder."""
  files: list[epath.Path] = []
  for place in map(epath.Path, paths.matches(path)):
    files += _files_below(place) if place.is_dir() else [place]
  return sorted(files)


def _files_below(folder: epath.Path) -> list[epath.Path]:
  """Lists a folder and those below it; buckets have no recursive pattern."""
  return [file for child in folder.iterdir()
          for file in (_files_below(child) if child.is_dir() else [child])]


def _copy(source: epath.Path, target: epath.Path) -> int:
  """Copies a file unless it is there in the same size; a local one appears when it is complete."""
  size = source.stat().length
  if target.exists() and target.stat().length == size:
    return 0
  logging.info("copying %s to %s (%.2f GB)", source, target, size / 1e9)
  target.parent.mkdir(parents=True, exist_ok=True)
  local = "://" not in os.fspath(target)  # an object of a bucket appears when it is closed
  written = target.with_name(f"{target.name}.part") if local else target
  with source.open("rb") as reading, written.open("wb") as writing:
    while block := reading.read(_BLOCK):
      writing.write(block)
  if local:
    written.replace(target)
  return 1


def _remedy(i: Input) -> str:
  path = i.path.rstrip("/").removesuffix("/tokenizer.json")
  name = path.rpartition("/")[2]
  if i.field.startswith(("data.", "eval.sets", "sample_set")):
    return "docs/data.md states where it comes from and how to prepare it"
  if "/runs/" in f"/{i.path}":
    return f"the run of an earlier stage: unilip train --config=configs/{name}.py --workdir={i.path}"
  usual = f"weights/{name}"
  lines_of = download_hints.missing_weights_message(usual).splitlines()
  command = next((x.strip() for x in lines_of if "convert import" in x), lines_of[0])
  return command.replace(f"--out={usual}", f"--out={path}")


def _main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise ValueError(f"unexpected arguments: {argv[1:]}")
  checks.check(flag.CONFIG.value)
  config = roots.apply(flag.CONFIG.value)
  if config.data.own and epath.Path(config.data.own).exists():
    own_data.apply(config)
  inputs = find(config)
  if _FROM.value:
    logging.info("copied %d files", stage(config, inputs, _FROM.value))
    inputs = find(config)
  print("\n".join(lines(inputs)))
  if not all(i.files for i in inputs):
    sys.exit(1)


def run() -> None:
  """Runs the command line."""
  errors.run_command(lambda: app.run(_main, flags_parser=flag.parse))


if __name__ == "__main__":
  run()
