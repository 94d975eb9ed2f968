"""Foreign files and folders as sets of tensors, and how one set is to be read (kinds.py)."""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

from unilip_jax.convert import hub, read
from unilip_jax.convert import rules as engine


@dataclasses.dataclass(frozen=True)
class Source:
  """One set of foreign tensors with what is said about it.

  Attributes:
    path: of the folder or file.
    config: its config.json; {} where there is none.
    tensors: read when asked for.
  """

  path: pathlib.Path
  config: dict[str, Any]
  tensors: read.Tensors


@dataclasses.dataclass(frozen=True)
class Part:
  """One module (or a share of it) within a source; `dims` is JSON-ready."""

  module: str
  dims: dict[str, Any]
  rules: list[engine.Rule]


@dataclasses.dataclass(frozen=True)
class Reading:
  """How a source is to be read.

  Attributes:
    parts: modules to take.
    skip: (regular expression, reason) of tensors that are left.
    notes: assumptions that the user should know of.
  """

  parts: list[Part]
  skip: Sequence[tuple[str, str]] = ()
  notes: Sequence[str] = ()


def find(location: str) -> list[Source]:
  """Opens what the user named.

  Args:
    location: a file, a folder with one model, a folder of loose weight files, or hf://org/name.

  Raises:
    read.ReadError: if there is nothing to read.
    hub.HubError: if a download fails.
  """
  if location.startswith(hub.PREFIX):
    path = hub.download(location)
  elif "://" in location:
    raise read.ReadError(f"{location}: give a local path (copy it first) or {hub.PREFIX}org/name")
  else:
    path = pathlib.Path(location).expanduser()
  if path.is_file():
    return [Source(path, {}, read.open_file(path))]
  if not path.is_dir():
    raise read.ReadError(
        f"{location}: no such file or folder; a Hugging Face repository is written "
        f"{hub.PREFIX}org/name")
  if (path / "model.json").exists():
    raise read.ReadError(f"{path} is already imported (or a run's workdir)")
  config = read.read_config(path)
  loose = sorted(p for p in path.iterdir() if p.suffix in (read.SAFETENSORS, *read.PICKLES))
  if config is None and loose and not read.is_model_folder(path):
    return [Source(p, {}, read.open_file(p)) for p in loose]
  return [Source(path, config or {}, read.open_folder(path))]
