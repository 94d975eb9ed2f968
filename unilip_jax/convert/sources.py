"""Foreign files and folders as sets of tensors, and how one set is to be read (kinds.py)."""

from collections.abc import Mapping, Sequence
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
class Options:
  """What files do not tell.

  Attributes:
    vit_heads: the ViT's attention heads, where neither a config nor a preset tells them.
    dit_positions: whether the DiT adds positions; None decides by the kind of source (kinds.py).
  """

  vit_heads: int | None = None
  dit_positions: bool | None = None


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
    generate: what sampling needs to know of a whole UniLIP, for model.json.
  """

  parts: list[Part]
  skip: Sequence[tuple[str, str]] = ()
  notes: Sequence[str] = ()
  generate: Mapping[str, Any] | None = None


# Folders of components, in the order in which they are read.
COMPONENTS = ("mllm", "mllm_hf", "dit", "vae", "unilip")
_TRANSFORMER = "transformer"  # within a diffusers pipeline


def find(location: str) -> list[Source]:
  """Opens what the user named.

  Args:
    location: a file, a folder with one model, a diffusers pipeline (its transformer is taken), a folder
      of component folders, a folder of loose weight files, or hf://org/name.

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
        f"{hub.PREFIX}org/name, and without a network its files are copied here (docs/weights.md)")
  if (path / "model.json").exists():
    raise read.ReadError(f"{path} is already imported (or a run's workdir)")
  config = read.read_config(path)
  if config is None and not read.is_model_folder(path):
    if (path / _TRANSFORMER / "config.json").is_file():
      return find(str(path / _TRANSFORMER))
    components = [path / name for name in COMPONENTS if (path / name).is_dir()]
    if components:
      return [source for component in components for source in find(str(component))]
    loose = sorted(p for p in path.iterdir() if p.suffix in (read.SAFETENSORS, *read.PICKLES))
    if loose:
      return [Source(p, {}, read.open_file(p)) for p in loose]
  return [Source(path, config or {}, read.open_folder(path))]
