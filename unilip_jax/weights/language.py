"""Finds the tokenizer and the system message that belong to weights; binds a run to its tokenizer.

A run keeps its tokenizer.json beside config.json, whose entry `tokenizer_sha256` is its hash. Runs that
were written before name a file that may have been moved: it is looked for in the folders above the run and
in the current folder, and named in the log.
"""

from collections.abc import Mapping
import hashlib
import os
from typing import Any

from absl import logging
from etils import epath

from unilip_jax.common import atomic_io, json_file, paths, registry
from unilip_jax.configs import base, renamed
from unilip_jax.data import text as text_lib
from unilip_jax.weights import folder as folder_lib
from unilip_jax.weights import orbax_io, sources

CONFIG = "config.json"
HASH = "tokenizer_sha256"  # entry of config.json


def language_of(path: str, model: Mapping[str, Any]) -> tuple[str, str] | None:
  """Finds the tokenizer and the system message of weights.

  Args:
    path: of the weights, as for sources.open_weights.
    model: model.json of the weights (Stored.model).

  Returns:
    (tokenizer as for data/text.py, system message), from the folder or from the config of the run that
    trained the weights. None if there is neither.

  Raises:
    FileNotFoundError: if a run names a tokenizer that is not found, with the places that were searched.
    ValueError: if the run's tokenizer is not the one that it was trained with.
  """
  if "origin" in model:
    return _of_config(model["origin"]["config"], "the weights' origin")
  folder = _workdir(path)
  stored = folder / folder_lib.TOKENIZER_FILE
  if not (folder / CONFIG).exists():
    return (str(stored), base.SYSTEM) if stored.exists() else None
  saved = json_file.read(
      folder / CONFIG, remedy="start the run's training command again: it writes the file",
      kinds={"text": dict})
  tokenizer, system = _of_config(saved, str(folder / CONFIG))
  if not stored.exists():
    return _of_earlier_run(folder, tokenizer), system
  if saved.get(HASH, _hash(stored)) != _hash(stored):
    raise ValueError(f"{stored} is not the tokenizer that {folder} was trained with ({HASH} in {CONFIG}): "
                     f"copy that of {tokenizer} there again")
  return str(stored), system


def bind_tokenizer(config: Any, workdir: epath.PathLike) -> str:
  """Checks that `text.tokenizer` is the one that the run in `workdir` keeps, or takes the kept one.

  Args:
    config: uses data.example, text.tokenizer, resume and init_from; text.tokenizer is set to the kept file
      if it does not exist.
    workdir: of the run; need not exist. Without a checkpoint it binds nothing: its start failed.

  Returns:
    SHA-256 of the tokenizer; "" for a stage without text.

  Raises:
    FileNotFoundError: if there is no tokenizer.
    ValueError: if it differs from that of this run or of the one that it resumes.
  """
  if config.data.example == "reconstruct":
    return ""
  given = text_lib.tokenizer_file(config.text.tokenizer)
  workdir = paths.path(workdir, "--workdir")
  kept = workdir / folder_lib.TOKENIZER_FILE
  continues = sources.has_checkpoint(workdir)
  if continues and kept.exists() and not given.exists():
    logging.warning(
        "text.tokenizer=%s does not exist: this run's own %s is used", config.text.tokenizer, kept)
    config.text.tokenizer, given = str(kept), kept
  text_lib.Text(config.text.tokenizer)  # raises for a missing or unsuitable file
  digest = _hash(given)
  for run in (str(workdir) if continues else "", config.resume):
    other = _workdir(run) / folder_lib.TOKENIZER_FILE if run else None
    if other is not None and other.exists() and _hash(other) != digest:
      raise ValueError(f"text.tokenizer={config.text.tokenizer} differs from {other}, with which {run} was "
                       f"trained: set --config.text.tokenizer={other}")
  for path in paths.split(config.init_from):
    if registry.has("weights", path.partition(":")[0]):
      continue
    other = _workdir(path) / folder_lib.TOKENIZER_FILE
    if other.exists() and _hash(other) != digest:
      logging.warning("text.tokenizer=%s differs from %s, whose weights this run starts from",
                      config.text.tokenizer, other)
  return digest


def keep_tokenizer(config: Any, workdir: epath.PathLike) -> None:
  """Writes the tokenizer of `bind_tokenizer` beside config.json, unless the stage has no text."""
  kept = epath.Path(workdir) / folder_lib.TOKENIZER_FILE
  if config.data.example != "reconstruct" and config.text.tokenizer != str(kept):
    atomic_io.write(kept, text_lib.tokenizer_file(config.text.tokenizer).read_bytes())


def _workdir(path: str) -> epath.Path:
  folder = orbax_io.absolute(path)
  return folder.parent.parent if folder.parent.name == sources.STEPS else folder


def _of_config(saved: Mapping[str, Any], name: str) -> tuple[str, str]:
  text = renamed.translate(saved).get("text")
  if not isinstance(text, Mapping) or not all(
      isinstance(text.get(key), str) for key in ("tokenizer", "system")):
    raise ValueError(f"{name} is damaged: it lacks text.tokenizer or text.system")
  return text["tokenizer"], text["system"]


def _of_earlier_run(folder: epath.Path, tokenizer: str) -> str:
  """Finds the tokenizer of a run that keeps none."""
  if registry.has("tokenizer", tokenizer):
    return tokenizer
  name = paths.expand(tokenizer, f"text.tokenizer of {folder / CONFIG}")
  places = [name]
  if not paths.is_remote(name) and not os.path.isabs(name):
    above = [] if paths.is_remote(folder) else [os.path.join(p, name) for p in folder.parents]
    places = [*above, os.path.abspath(name)]
  found = {_hash(file): file for place in reversed(places)
           if (file := text_lib.tokenizer_file(place)).is_file()}
  remedy = f"copy the one that it was trained with to {folder / folder_lib.TOKENIZER_FILE}"
  if not found:
    raise FileNotFoundError(
        f"the tokenizer of {folder} is not found: its {CONFIG} names {tokenizer}, and there is none at "
        f"{', '.join(dict.fromkeys(places))}; {remedy}")
  if len(found) > 1:
    raise ValueError(f"the tokenizer of {folder} is ambiguous: its {CONFIG} names {tokenizer}, and "
                     f"{', '.join(map(str, found.values()))} differ; {remedy}")
  (digest, file), = found.items()
  logging.warning("%s keeps no tokenizer; its %s names %s: %s is used (SHA-256 %s…). To be sure, %s",
                  folder, CONFIG, tokenizer, file, digest[:12], remedy)
  return str(file)


def _hash(file: epath.Path) -> str:
  return hashlib.sha256(file.read_bytes()).hexdigest()
