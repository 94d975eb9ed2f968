"""Downloads from the Hugging Face hub: `hf://organisation/name[@revision]`."""

import functools
import importlib
import importlib.util
import pathlib

PREFIX = "hf://"
_PATTERNS = ("*.safetensors", "*.json", "*.pth", "merges.txt")
# Only the transformer of a diffusers pipeline is read; its text encoder has many gigabytes.
_OTHERS = ("text_encoder/*", "tokenizer/*", "vae/*")
_HALVES = ("*.fp16.*", "*.bf16.*")  # second copies, needed only where there is no first


class HubError(ValueError):
  """The repository cannot be downloaded; the message explains how to provide its files."""


def download(source: str) -> pathlib.Path:
  """Fetches a repository's weights, configs and tokenizer into the hub's cache.

  The hub's package shows its progress, keeps complete files and resumes interrupted ones.

  Args:
    source: `hf://organisation/name`, `@revision` optional.

  Returns:
    The local folder.

  Raises:
    HubError: for a malformed name, an unknown repository or no network, with the remedy.
  """
  name, _, revision = source.removeprefix(PREFIX).partition("@")
  if name.count("/") != 1 or not all(name.split("/")):
    raise HubError(f"{source}: expected {PREFIX}organisation/name, optionally @revision")
  try:
    import huggingface_hub
    from huggingface_hub import errors
  except ImportError as error:
    raise HubError(_by_hand(
        name, "huggingface_hub is not installed: pip install huggingface_hub")) from error
  try:
    fetch = functools.partial(huggingface_hub.snapshot_download, name, revision=revision or None,
                              allow_patterns=list(_PATTERNS))
    folder = pathlib.Path(fetch(ignore_patterns=[*_OTHERS, *_HALVES]))
    if not any(path for suffix in ("safetensors", "pth") for path in folder.rglob(f"*.{suffix}")):
      folder = pathlib.Path(fetch(ignore_patterns=list(_OTHERS)))
  except errors.RepositoryNotFoundError as error:
    raise HubError(f"{source}: no such repository, or it needs `hf auth login`") from error
  except errors.RevisionNotFoundError as error:
    raise HubError(f"{source}: no such revision {revision!r}") from error
  except (OSError, errors.HFValidationError, *_transport_errors()) as error:
    raise HubError(_by_hand(name, str(error).strip().split("\n")[0].split(". ")[0])) from error
  return folder


def _transport_errors() -> tuple[type[Exception], ...]:
  """Errors of a connection that breaks; the hub's package has changed its transport twice."""
  return tuple(importlib.import_module(name).HTTPError for name in ("httpx2", "httpx")
               if importlib.util.find_spec(name))


def _by_hand(name: str, reason: str) -> str:
  short = name.split("/")[1]
  return "\n".join([
      f"{PREFIX}{name} could not be downloaded ({reason[:200]}).",
      "Fetch it on a machine with a network:", "",
      f"  hf download {name} --local-dir {short}", "",
      f"(config.json, all *.safetensors and the tokenizer's files of https://huggingface.co/{name}), copy "
      "the folder here and pass it:", "",
      f"  python -m unilip_jax.convert import --source=PATH/{short} --out=…"])
