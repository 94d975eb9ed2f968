"""Downloads from the Hugging Face hub: `hf://organisation/name[@revision]`."""

import importlib
import importlib.util
import pathlib

PREFIX = "hf://"
_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.pth")


class HubError(ValueError):
  """The repository cannot be had; the message says how to provide its files."""


def download(source: str) -> pathlib.Path:
  """Fetches a repository's weights and configs into the hub's cache, resuming what is there.

  Args:
    source: `hf://organisation/name`, `@revision` optional.

  Returns:
    The local folder.

  Raises:
    HubError: for a malformed name, an unknown repository or no network, saying what to do.
  """
  name, _, revision = source.removeprefix(PREFIX).partition("@")
  if name.count("/") != 1 or not all(name.split("/")):
    raise HubError(f"{source}: expected {PREFIX}organisation/name, optionally @revision")
  try:
    import huggingface_hub
    from huggingface_hub import errors
  except ImportError as error:
    raise HubError(_by_hand(name, "huggingface_hub is not installed")) from error
  try:
    folder = huggingface_hub.snapshot_download(
        name, revision=revision or None, allow_patterns=list(_PATTERNS))
  except errors.RepositoryNotFoundError as error:
    raise HubError(f"{source}: no such repository, or it needs `hf auth login`") from error
  except errors.RevisionNotFoundError as error:
    raise HubError(f"{source}: no such revision {revision!r}") from error
  except (OSError, errors.HFValidationError, *_transport_errors()) as error:
    raise HubError(_by_hand(name, str(error).strip().split("\n")[0].split(". ")[0])) from error
  return pathlib.Path(folder)


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
      f"(config.json and all *.safetensors of https://huggingface.co/{name}), copy the folder here "
      "and pass it:", "",
      f"  python -m unilip_jax.convert import --source=PATH/{short} --out=…"])
