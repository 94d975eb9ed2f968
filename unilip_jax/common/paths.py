"""Paths as users give them: expanded and checked by the same rules in every command and config field.

A path is local or gs://. `~` and `~user` are home folders. A path that exists as written is taken
literally, whatever characters it has: spaces, commas, `*`, `[`. Other schemes, an empty path and a path
through a file or a dangling link are refused. The argument `name` is the option or field, for the message.
"""

from collections.abc import Iterator
import glob
import os
import re

from etils import epath

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_REMOTE = "gs://"
# A scheme without both slashes names no bucket, and as a local path it would make a folder "gs:".
_BROKEN_SCHEME = re.compile(r"(gs|gcs|s3|https?|file|hf|az|abfs|hdfs):/?(?!/)", re.IGNORECASE)


class PathError(ValueError):
  """A path that cannot be used; the message has the remedy."""


def is_remote(path: epath.PathLike) -> bool:
  """Returns whether a path is in a bucket."""
  return os.fspath(path).startswith(_REMOTE)


def expand(path: epath.PathLike, name: str = "path") -> str:
  """Expands a path's home folder, and checks its form; reads nothing.

  Args:
    path: as given by the user.
    name: of the option or field.

  Returns:
    The path without slashes at its end. A relative path stays relative.

  Raises:
    PathError: if it is empty, or has another scheme than gs://, or the home of an unknown user.
  """
  text = os.fspath(path)
  say = f"{name}={text}"
  if not text.strip():
    raise PathError(f"{name} is empty; give a path")
  if "\0" in text:
    raise PathError(f"{say!r} has a zero byte")
  if scheme := _SCHEME.match(text):
    if not text.startswith(_REMOTE):
      raise PathError(f"{say}: {_other_scheme(scheme[0], text)}")
    if not text.removeprefix(_REMOTE).strip("/"):
      raise PathError(f"{say} names no bucket; write gs://BUCKET/FOLDER")
    return _without_slashes(text)
  if broken := _BROKEN_SCHEME.match(text):
    rest = text[broken.end():].lstrip("/")
    if not os.path.lexists(text):
      raise PathError(f"{say}: a scheme is followed by two slashes: write gs://{rest}, or ./{text} for a "
                      "folder of this name")
  if text.startswith("~"):
    home = os.path.expanduser(text)
    if home == text and not os.path.lexists(text):
      raise PathError(f"{say}: this machine has no user {text[1:].split('/')[0]!r}; write ./{text} for a "
                      "folder of this name")
    text = home
  return _without_slashes(text)


def absolute(path: epath.PathLike, name: str = "path") -> str:
  """Expands as `expand`; a relative path continues the current folder."""
  text = expand(path, name)
  return text if is_remote(text) else os.path.abspath(text)


def path(text: epath.PathLike, name: str = "path") -> epath.Path:
  """Expands as `expand`; returns a Path."""
  return epath.Path(expand(text, name))


def existing_file(text: epath.PathLike, name: str) -> epath.Path:
  """Expands a path to read, and checks that it is a file. Of a path in a bucket only the form is checked.

  Raises:
    FileNotFoundError: if it does not exist, naming the first folder of it that is missing.
    PathError: if it is a folder, a pipe or a device, or cannot be read.
  """
  found = _existing(text, name)
  if not is_remote(found) and not os.path.isfile(found):
    kind = "a folder" if os.path.isdir(found) else "no regular file"
    raise PathError(f"{name}={found} is {kind}; a file is needed")
  return found


def existing_folder(text: epath.PathLike, name: str) -> epath.Path:
  """Expands a path to read, and checks that it is a folder; otherwise as `existing_file`."""
  found = _existing(text, name)
  if not is_remote(found) and not os.path.isdir(found):
    raise PathError(f"{name}={found} is a file; a folder is needed")
  return found


def is_file(path: epath.PathLike) -> bool:
  """Returns whether a path is a regular file; reading a pipe or a device might never end."""
  if is_remote(path):
    return epath.Path(path).is_file()
  return os.path.isfile(path)  # epath's own is true for them


def output_folder(text: epath.PathLike, name: str) -> epath.Path:
  """Expands a folder to write, and checks that it can be made or written to; makes nothing.

  Raises:
    PathError: if it, or a folder above it, is a file or a dangling link or cannot be written to.
  """
  folder = path(text, name)
  if is_remote(folder):
    return folder
  if os.path.exists(folder) and not os.path.isdir(folder):
    raise PathError(f"{name}={folder} is a file; give a folder")
  _check_writable(folder, name)
  return folder


def output_file(text: epath.PathLike, name: str) -> epath.Path:
  """Expands a file to write; otherwise as `output_folder`."""
  if os.fspath(text).endswith("/"):
    raise PathError(f"{name}={os.fspath(text)} names a folder; give a file")
  file = path(text, name)
  if is_remote(file):
    return file
  if os.path.isdir(file):
    raise PathError(f"{name}={file} is a folder; give a file")
  _check_writable(file.parent, name)
  return file


def split(text: str) -> list[str]:
  """Splits comma-separated paths; a text that exists as a whole is one path."""
  whole = text.strip()
  if "," in whole and not _SCHEME.match(whole) and os.path.lexists(os.path.expanduser(whole)):
    return [whole]
  return [part.strip() for part in text.split(",") if part.strip()]


def matches(pattern: str, name: str = "path") -> list[str]:
  """Lists what a path or pattern matches, sorted; parts of it that exist as written are taken literally.

  Args:
    pattern: `*`, `?`, `[ab]` and `**` as in a shell, local or gs://. Local files whose name starts with a
      dot match only where the pattern has the dot.
    name: of the option or field.
  """
  text = expand(pattern, name)
  if is_remote(text):
    parts = text.removeprefix(_REMOTE).split("/")
    fixed = next((i for i, p in enumerate(parts) if glob.has_magic(p)), len(parts) - 1)
    root = epath.Path(f"{_REMOTE}{'/'.join(parts[:fixed])}")
    return sorted(os.fspath(p) for p in root.glob("/".join(parts[fixed:])))
  return sorted(glob.glob(_literally(text), recursive=True))


def _literally(pattern: str) -> str:
  """Escapes the leading parts of a local pattern that exist as written.

  A part such as `a[1]` that exists is meant literally. `*` also matches a folder called `*`: it stays
  unless the whole pattern exists.
  """
  if os.path.lexists(pattern):
    return glob.escape(pattern)
  parts = pattern.split("/")
  for i, part in enumerate(parts):
    if glob.has_magic(part) and (
        "*" in part or "?" in part or not os.path.lexists("/".join(parts[:i + 1]))):
      return "/".join([*(glob.escape(p) for p in parts[:i]), *parts[i:]])
  return glob.escape(pattern)


def _existing(text: epath.PathLike, name: str) -> epath.Path:
  found = path(text, name)
  if is_remote(found) or os.path.exists(found):
    if not is_remote(found) and not os.access(found, os.R_OK):
      raise PathError(f"{name}={found} cannot be read: no permission")
    return found
  for place in _from_root(found):
    if os.path.islink(place) and not os.path.exists(place):
      raise FileNotFoundError(
          f"{name}={found}: {place} is a link to {os.readlink(place)}, which does not exist")
    if not os.path.exists(place):
      raise FileNotFoundError(f"{name}={found} does not exist" + (
          f": there is no {place}" if os.fspath(place) != os.fspath(found) else ""))
    if not os.path.isdir(place):
      raise PathError(f"{name}={found}: {place} is a file, not a folder")
  raise FileNotFoundError(f"{name}={found} does not exist")


def _check_writable(folder: epath.Path, name: str) -> None:
  """Checks that a local folder can be made or written to."""
  above = os.curdir
  for place in _from_root(folder):
    if os.path.islink(place) and not os.path.exists(place):
      raise PathError(f"{name}={folder}: {place} is a link to {os.readlink(place)}, which does not exist; "
                      "remove it or make its target")
    if not os.path.exists(place):
      break
    if not os.path.isdir(place):
      raise PathError(f"{name}={folder}: {place} is a file, not a folder")
    above = os.fspath(place)
  if not os.access(above, os.W_OK | os.X_OK):
    raise PathError(f"{name}={folder}: no permission to write to {above}; choose another folder")


def _from_root(path: epath.PathLike) -> Iterator[str]:
  """Yields the folders that a path goes through, outermost first, and the path itself."""
  parts = os.path.normpath(os.fspath(path)).split("/")
  for i in range(1, len(parts) + 1):
    yield "/".join(parts[:i]) or "/"


def _other_scheme(scheme: str, text: str) -> str:
  rest = text[len(scheme):]
  if scheme.lower() == "file://":
    return f"write a local path without a scheme: /{rest.lstrip('/')}"
  if scheme.lower() in ("gs://", "gcs://"):
    return f"write gs://{rest}"
  if scheme.lower() == "hf://":
    return "only `unilip convert import --source` reads hf://; import the weights, then give their folder"
  return f"{scheme} is not supported; paths are local or gs:// (copy the files first)"


def _without_slashes(text: str) -> str:
  return text.rstrip("/") or "/"
