"""Checksums of the files of a folder of arrays, stored next to them and verified before arrays are read.

A folder holds checksums.json: {"files": {path in the folder: [bytes, CRC32C]}, "crc32c": of this file}. It
is written before the folder gets its final name, so that a complete folder has one. An object store keeps
the CRC32C of every object: there the listing is compared and nothing is read. Folders of earlier versions
have no checksums.json: they are read unverified, with a line in the log.
"""

import base64
from collections.abc import Iterable, Iterator
import concurrent.futures
import json
import os
import pathlib
from typing import Any

from absl import logging
from etils import epath
import fsspec

from unilip_jax.common import errors, json_file
from unilip_jax.multihost import session

FILE = "checksums.json"
_CHUNK_BYTES = 2**22
_THREADS = 4
# Files that orbax writes after the checksums, and that nothing here reads.
_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")


class DamagedError(ValueError):
  """Files of weights are damaged; the message names each of them and the remedy."""


def write(folder: epath.PathLike) -> None:
  """Writes the checksums of all files below a complete folder."""
  files = {name: list(_measure(folder, name, entry)) for name, entry in _entries(folder)}
  json_file.write(epath.Path(folder) / FILE, {"files": dict(sorted(files.items()))}, checksum=True,
                  indent=None)


def faults(folder: epath.PathLike, *, part: int = 0, parts: int = 1) -> list[str] | None:
  """Compares the files below a folder with their checksums.

  Args:
    folder: with a checksums.json, or a subfolder of such a folder.
    part: share of the files to verify, of `parts`: several processes divide the work.
    parts: number of shares.

  Returns:
    One line per file that is damaged; None if neither the folder nor its parent has checksums.
  """
  folder = epath.Path(folder)
  places = ((folder, ""), (folder.parent, f"{folder.name}/"))
  root, prefix = next((place for place in places if (place[0] / FILE).exists()), (None, ""))
  if root is None:
    return None
  try:
    expected = {name: row for name, row in _read(root).items() if name.startswith(prefix)}
  except ValueError as error:
    return [f"  {error}"] if part == 0 else []
  present = dict(_entries(root, prefix))
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    lines = pool.map(lambda name: _fault(root, name, present.get(name), *expected[name]),
                     sorted(expected)[part::parts])
    return [f"  {root / name}: {why}" for name, why in zip(sorted(expected)[part::parts], lines) if why]


def faults_on_all(folder: epath.PathLike) -> list[str] | None:
  """As `faults`; each process verifies a share of the files, and all return the same lines in order."""
  own = faults(folder, part=session.index(), parts=session.count())
  shares = [json.loads(share) for share in session.all_gather_text(
      f"the files of {folder} are verified", json.dumps(own))]
  if all(share is None for share in shares):
    return None
  return sorted({line for share in shares for line in share or ()})


def subfolders(folder: epath.PathLike) -> set[str]:
  """Returns the names of the subfolders that a folder's checksums list; empty without checksums."""
  folder = epath.Path(folder)
  names = _read(folder) if (folder / FILE).exists() else ()
  return {name.split("/")[0] for name in names if "/" in name}


def measure(file: epath.PathLike) -> list[Any]:
  """Returns [bytes, CRC32C] of a file."""
  file = epath.Path(file)
  return list(_measure(file.parent, file.name, {"size": 0}))


def verify(folder: epath.PathLike, remedy: str, *, on_all: bool = False) -> None:
  """Verifies a folder of arrays.

  Args:
    folder: as of `faults`.
    remedy: last line of the error.
    on_all: whether all processes call it and divide the work.

  Raises:
    DamagedError: naming each damaged file and what is wrong with it.
  """
  wrong = faults_on_all(folder) if on_all else faults(folder)
  if wrong is None:
    log_unverified(folder)
  elif wrong:
    raise damaged(wrong, remedy)


def damaged(lines: Iterable[str], remedy: str) -> DamagedError:
  """Makes the error that names damaged files."""
  return DamagedError(f"damaged files:\n{errors.listed(lines)}\n{remedy}")


def log_unverified(folder: epath.PathLike) -> None:
  """Logs that a folder has no checksums."""
  logging.info("%s has no %s (written by an earlier version): its files are not verified", folder, FILE)


def _read(folder: epath.Path) -> dict[str, tuple[int, str]]:
  """Reads {path in the folder: (bytes, CRC32C)}; ValueError names a damaged file."""
  files = json_file.read(folder / FILE, remedy="the files it lists cannot be verified",
                         kinds={"files": dict})["files"]
  try:
    return {name: (int(size), str(crc)) for name, (size, crc) in files.items()}
  except (TypeError, ValueError) as error:
    raise ValueError(f"{folder / FILE} is damaged: {error}") from error


def _fault(root: epath.Path, name: str, entry: Any, size: int, crc: str) -> str:
  """Returns what is wrong with a file; "" if nothing."""
  if entry is None:
    return "absent"
  try:
    found_size = _size(entry)
    if found_size != size:
      return f"{found_size} bytes, not {size}" if found_size else f"empty, not {size} bytes"
    found = _measure(root, name, entry)[1]
  except OSError as error:
    return f"cannot be read ({error})"
  return "" if found == crc else f"its content has changed (CRC32C {found}, not {crc})"


def _entries(folder: epath.PathLike, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields (path in the folder, os.stat_result or entry of the object store's listing) of its files."""
  if "://" in os.fspath(folder):
    system, root = fsspec.core.url_to_fs(os.fspath(epath.Path(folder)))
    system.invalidate_cache(root)
    files = ((path.removeprefix(root).strip("/"), info) for path, info in system.find(
        f"{root}/{prefix}", detail=True).items())
  else:
    root = pathlib.Path(folder)
    files = ((path.relative_to(root).as_posix(), path.stat())
             for path in (root / prefix).rglob("*") if path.is_file())
  for name, entry in files:
    if name.rpartition("/")[2] != FILE and name not in _LATER:
      yield name, entry


def _size(entry: Any) -> int:
  return entry.st_size if isinstance(entry, os.stat_result) else int(entry["size"])


def _measure(root: epath.PathLike, name: str, entry: Any) -> tuple[int, str]:
  """Returns (bytes, CRC32C as 8 hexadecimal digits) of a file."""
  import google_crc32c  # benchmarks run where it is absent

  if not isinstance(entry, os.stat_result) and entry.get("crc32c"):  # Google Cloud Storage: base64
    return _size(entry), base64.b64decode(entry["crc32c"]).hex()
  path = epath.Path(root) / name
  opened = path.open("rb") if "://" in os.fspath(root) else open(path, "rb", buffering=0)  # noqa: SIM115
  size = crc = 0
  with opened as stream:
    while chunk := stream.read(_CHUNK_BYTES):
      crc = google_crc32c.extend(crc, chunk)
      size += len(chunk)
  return size, f"{crc:08x}"
