"""Local and remote files: pattern expansion, and byte ranges read through a bounded cache of open files."""

import functools
import glob
import os
from typing import Any

from etils import epath
import fsspec

_MAX_OPEN_FILES = 64  # per process


def expand(patterns: str) -> list[str]:
  """Lists the files that comma-separated patterns match, sorted within each pattern.

  Raises:
    FileNotFoundError: if a pattern matches nothing.
  """
  paths: list[str] = []
  for pattern in patterns.split(","):
    if "://" in pattern:
      scheme, rest = pattern.split("://", 1)
      parts = rest.split("/")
      fixed = next((i for i, p in enumerate(parts) if glob.has_magic(p)), len(parts) - 1)
      root = epath.Path(f"{scheme}://{'/'.join(parts[:fixed])}")
      matches = sorted(os.fspath(p) for p in root.glob("/".join(parts[fixed:])))
    else:
      matches = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
    if not matches:
      raise FileNotFoundError(f"no file matches {pattern}; see docs/data.md for the layouts")
    paths += matches
  return paths


def is_file(path: epath.PathLike) -> bool:
  """Returns whether a path is a regular file; reading a pipe or a device might never end."""
  text = os.fspath(path)
  return epath.Path(text).is_file() if "://" in text else os.path.isfile(text)


def read_range(path: str, offset: int, size: int) -> bytes:
  """Reads `size` bytes of a local or remote file, from `offset` on."""
  if "://" in path:
    system, name = fsspec.core.url_to_fs(path)
    return system.cat_file(name, start=offset, end=offset + size)  # `open` would read 5 MiB ahead
  # The reference keeps the file open while another thread evicts it from the cache.
  file = _open_cached(path, os.getpid())
  return os.pread(file.fileno(), size, offset)


@functools.lru_cache(maxsize=_MAX_OPEN_FILES)
def _open_cached(path: str, process: int) -> Any:
  del process  # a forked child must not share its parent's cache entry
  return open(path, "rb", buffering=0)
