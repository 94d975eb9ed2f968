"""Identifies what a score depends on: hashes of items and files, library versions, time."""

from collections.abc import Iterable, Sequence
import hashlib
from importlib import metadata
import json
import time
from typing import Any

from etils import epath

from unilip_jax.common import atomic_io, paths
from unilip_jax.scores import base

_LIBRARIES = ("unilip_jax", "jax", "numpy", "pillow")
_HASHED = (".json", ".jsonl", ".tsv", ".csv", ".txt")  # files of a folder whose hashes are stated


def items_digest(items: Iterable[base.Item]) -> str:
  """SHA-256 of ids, texts, categories, records and image contents or names; not of where files lie."""
  digest = hashlib.sha256()
  for item in items:
    images = [hashlib.sha256(image).hexdigest() if isinstance(image, bytes) else epath.Path(image).name
              for image in item.images]
    digest.update(json.dumps(
        [item.id, item.prompt, item.category, images, item.record], sort_keys=True,
        default=lambda value: hashlib.sha256(value).hexdigest() if isinstance(value, bytes)
        else str(value)).encode())
  return digest.hexdigest()


def file_hashes(path: epath.PathLike) -> dict[str, str]:
  """{file name: SHA-256} of a file, or of the tables and lists at the top of a folder."""
  place = paths.path(path)
  if paths.is_file(place):
    return {place.name: hashlib.sha256(place.read_bytes()).hexdigest()}
  if not place.is_dir():
    return {}
  return {p.name: hashlib.sha256(p.read_bytes()).hexdigest()
          for p in sorted(place.iterdir()) if p.suffix.lower() in _HASHED and paths.is_file(p)}


def versions() -> dict[str, str]:
  """{library: version} of those that make or score images."""
  return {name: metadata.version(name) for name in _LIBRARIES}


def now() -> str:
  """The time in UTC, to seconds."""
  return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_lines(path: epath.PathLike, records: Sequence[Any]) -> None:
  """Writes a file of JSON lines atomically."""
  atomic_io.write(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode())
