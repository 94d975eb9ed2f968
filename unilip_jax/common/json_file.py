"""JSON files: written atomically, read with errors that name the file and the remedy.

A file may hold its own checksum in the entry `crc32c`. It is verified on reading wherever it exists.
"""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath

from unilip_jax.common import atomic_io, paths

_CHECKSUM = "crc32c"
Kinds = Mapping[str, type | tuple[type, ...]]


def write(path: epath.PathLike, value: Any, *, checksum: bool = False, indent: int | None = 2) -> None:
  """Writes a JSON file atomically; values that JSON lacks are written as text.

  Args:
    path: local or gs:// path in an existing folder.
    value: JSON-ready, and a dict if `checksum` is True.
    checksum: add the checksum of the other entries as the entry `crc32c`.
    indent: of the JSON text; None writes one line.
  """
  text = json.dumps(value, indent=indent, default=str)
  if checksum:
    value = json.loads(text)
    text = json.dumps(value | {_CHECKSUM: _digest(value)}, indent=indent)
  atomic_io.write(path, (text + "\n").encode())


def read(
    path: epath.PathLike, *, remedy: str, kinds: Kinds | None = None, optional: Kinds | None = None
) -> dict[str, Any]:
  """Reads a JSON object.

  Args:
    path: local or gs:// path.
    remedy: end of the errors: what to do about a damaged file.
    kinds: {entry: type} of entries that must exist.
    optional: {entry: type} of entries that may be absent.

  Returns:
    The object, without the entry `crc32c`.

  Raises:
    FileNotFoundError: if there is no file.
    ValueError: if it is empty, truncated, not UTF-8, not a JSON object, an entry is absent or has another
      type, or its checksum differs.
  """
  path = paths.path(path)
  if not path.exists():
    raise FileNotFoundError(f"{path} is absent; {remedy}")
  if path.is_dir():
    raise ValueError(f"{path} is a folder, not a file; {remedy}")
  content = path.read_bytes()
  damaged = f"{path} is damaged"
  if not content.strip(b"\0 \t\r\n"):
    raise ValueError(f"{damaged}: it holds {len(content)} bytes and no text; {remedy}")
  try:
    value = json.loads(content.decode())
  except UnicodeDecodeError as error:
    raise ValueError(f"{damaged}: it is not UTF-8 text ({error}); {remedy}") from error
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{damaged}: {str(error)[:200]}; {remedy}") from error
  if not isinstance(value, dict):
    raise ValueError(f"{damaged}: it holds a {type(value).__name__}, not an object; {remedy}")
  if _CHECKSUM in value and value.pop(_CHECKSUM) != _digest(value):
    raise ValueError(f"{damaged}: its checksum differs from its content; {remedy}")
  for entry, kind in {**(kinds or {}), **(optional or {})}.items():
    if entry not in value and entry in (kinds or {}):
      raise ValueError(f"{damaged}: it lacks `{entry}`; {remedy}")
    if entry in value and not isinstance(value[entry], kind):
      raise ValueError(f"{damaged}: `{entry}` is {str(value[entry])[:80]!r}; {remedy}")
  return value


def _digest(value: Mapping[str, Any]) -> str:
  import google_crc32c  # benchmarks run where it is absent

  text = json.dumps(value, sort_keys=True)
  return f"{google_crc32c.value(text.encode()):08x}"
