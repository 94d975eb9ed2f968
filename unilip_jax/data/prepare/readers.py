"""Reads downloaded datasets as streams of items. Lists are read; no image is opened.

A wrong entry of a list becomes an item with a problem, so that the manifest can name it. A list that
cannot be read at all is an error.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import os
import posixpath
import re
from typing import Any

from etils import epath

from unilip_jax.common import paths
from unilip_jax.data import conversations, files, source_kinds, sources, tar_index
from unilip_jax.data.prepare import items as items_lib
from unilip_jax.data.prepare import json_lists

Item = items_lib.Item
Rows = list[dict[str, Any]]  # one for each list or tar that was read
KINDS = ("t2i", "edit", "understand")
_MAX_KEY = 80  # characters; a tar's name has room for 100 with the suffix
_KEY = re.compile(rf"[A-Za-z0-9_-]{{1,{_MAX_KEY}}}")  # no dots: they end a key in a tar


class _EntryError(ValueError):
  """An entry of a list that cannot become an item; the message is the reason."""


def gpt_image_edit(source: epath.PathLike, rows: Rows) -> Iterator[Item]:
  """Yields the edits of a downloaded GPT-Image-Edit-1.5M.

  `gptedit.txt` holds lines `image_dir,json_file[,anything]`, relative to its folder. Each JSON is a list
  of {"image": [input, output], "conversations": [{"value": instruction}, …]}; entries with another
  number of images are skipped (official).

  Args:
    source: the folder, or the txt file.
    rows: see json_lists.array.

  Raises:
    FileNotFoundError, json_lists.ListError: see json_lists.array.
    ValueError: for a line without two columns.
  """
  listing = paths.path(source, "--source")
  if listing.is_dir():
    listing /= "gptedit.txt"
  root = listing.parent
  with json_lists.open_list(listing) as f:
    text = f.read(json_lists.MAX_ELEMENT + 1).decode("utf-8-sig", errors="replace")
  if len(text) > json_lists.MAX_ELEMENT:
    raise ValueError(f"{listing} has more than {json_lists.MAX_ELEMENT} bytes; expected lines of "
                     "image_dir,json_file")
  number = 0
  for at, line in enumerate(text.splitlines(), 1):
    if not line.strip():
      continue
    columns = [c.strip() for c in line.split(",")]
    if len(columns) < 2 or not all(columns[:2]):
      raise ValueError(f"{listing}, line {at}: expected image_dir,json_file[,count], not {line[:80]!r}")
    folder, name = columns[:2]
    for i, entry in enumerate(json_lists.array(root / name, rows)):
      yield _item(f"{name}[{i}]", number, lambda: _gpt_edit(entry, root / folder))  # noqa: B023
      number += 1


def _gpt_edit(entry: Any, folder: epath.Path) -> Mapping[str, items_lib.Part]:
  images = _field(entry, "image", list)
  if len(images) != 2:
    raise _EntryError(f"no pair: {len(images)} images; only pairs of input and output are kept")
  turns = _field(entry, "conversations", list)
  if not turns:
    raise _EntryError("bad entry: conversations is empty")
  return {"cond_image": _below(folder, images[0]), "image": _below(folder, images[1]),
          "text": _words(_field(turns[0], "value", str))}


def sharegpt4o(source: epath.PathLike, kind: str, rows: Rows) -> Iterator[Item]:
  """Yields the pairs or edits of a downloaded and unpacked ShareGPT-4o-Image.

  `text_to_image.json` is a list of {"input_prompt", "output_image"}; the entries of
  `text_and_image_to_image.json` also have "input_image", a list. Paths are relative to the folder.

  Args:
    source: the folder.
    kind: "t2i" or "edit": which of the two lists.
    rows: see json_lists.array.
  """
  root = paths.path(source, "--source")
  name = "text_to_image.json" if kind == "t2i" else "text_and_image_to_image.json"

  def parts(entry: Any) -> Mapping[str, items_lib.Part]:
    target = {"image": _below(root, _field(entry, "output_image", str)),
              "text": _words(_field(entry, "input_prompt", str))}
    if kind == "t2i":
      return target
    images = _field(entry, "input_image", (list, str))
    images = [images] if isinstance(images, str) else images
    if len(images) != 1:
      raise _EntryError(f"no pair: {len(images)} input images, expected one")
    return {"cond_image": _below(root, images[0])} | target

  for i, entry in enumerate(json_lists.array(root / name, rows)):
    yield _item(f"{name}[{i}]", i, lambda: parts(entry))  # noqa: B023


def json_lines(source: epath.PathLike, kind: str, root: str, rows: Rows) -> Iterator[Item]:
  """Yields users' own data, one JSON object a line; docs/data.md shows the format.

  Args:
    source: the file.
    kind: one of KINDS.
    root: folder that paths are relative to and may not leave; "" is the folder of the list.
    rows: see json_lists.array.

  Raises:
    ValueError: for an unknown kind.
  """
  if kind not in KINDS:
    raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(KINDS)}")
  listing = paths.path(source, "--source")
  folder = paths.path(root, "--root") if root else listing.parent

  def parts(entry: Any) -> Mapping[str, items_lib.Part]:
    if kind == "understand":
      return {"cond_image": _below(folder, _field(entry, "image", str)), "turns": _turns(entry)}
    text = {"text": _words(_field(entry, "text", str))}
    if kind == "t2i":
      return {"image": _below(folder, _field(entry, "image", str))} | text
    return {"cond_image": _below(folder, _field(entry, "input", str)),
            "image": _below(folder, _field(entry, "output", str))} | text

  for number, (at, entry, problem) in enumerate(json_lists.lines(listing, rows)):
    name = f"{listing.name}:{at}"
    if problem:
      yield Item(name, "", {}, problem)
    else:
      yield _item(name, number, lambda: parts(entry), _key_of(entry))  # noqa: B023


def tars(pattern: str, kind: str, index_dir: str, rows: Rows) -> Iterator[Item]:
  """Yields the samples of WebDataset tars, to be written as new shards.

  Args:
    pattern: files or patterns, comma-separated.
    kind: key of sources.PARTS; `cls` members are kept as labels.
    index_dir: cache folder of tar indices.
    rows: receives {"list", "items", "bytes", "problem"} of each tar.
  """
  number = 0
  for path in files.expand(pattern):
    index = tar_index.load(path, index_dir)
    for row in range(len(index)):
      yield tar_item(path, index, row, number, kind)
      number += 1
    for member, reason in index.faults:
      yield Item(f"{path}:{member}", "", {}, reason)
    rows.append({"list": path, "items": len(index), "bytes": epath.Path(path).stat().length,
                 "problem": index.problem})
    if index.problem:
      yield Item(path, "", {}, f"broken tar: {index.problem}")


def tar_item(path: str, index: tar_index.TarIndex, row: int, number: int, kind: str) -> Item:
  """Returns the item of one sample of a tar; `number`, its rank among all samples, makes the key unique."""
  key = index.keys[row]
  members = index.members(row)
  parts = dict(sources.PARTS[kind]) | ({"label": ("cls",)} if "cls" in members else {})
  chosen = {part: next((s for s in suffixes if s in members), "") for part, suffixes in parts.items()}
  missing = [part for part, suffix in chosen.items() if not suffix]
  name = f"{path}:{key}"
  if missing:
    found = f"{', '.join(list(members)[:5])}" or "nothing"
    return Item(name, "", {}, f"incomplete sample: it has no {', '.join(missing)}, but {found} (a key ends "
                "at its first dot)")
  stem = posixpath.basename(path).partition(".")[0]
  return Item(name, f"{number:08d}-{_safe(f'{stem}-{key}')}", {
      part: ("range", path, *members[s], index.stamp) for part, s in chosen.items()})


def tfds(name: str, split: str, data_dir: str | None, rows: Rows) -> Iterator[Item]:
  """Yields images and labels of a tensorflow-datasets split that is stored as ArrayRecord."""
  args = (name, split, data_dir)
  count = len(source_kinds.TfdsSource(*args, parts={"image": ()}))
  for i in range(count):
    yield Item(f"{name}:{split}[{i}]", f"{i:08d}",
               {part: ("tfds", *args, i) for part in ("image", "label")})
  rows.append({"list": f"{name}:{split}", "items": count})


def _item(
    name: str, number: int, parts: Callable[[], Mapping[str, items_lib.Part]], key: str = "") -> Item:
  """Returns an item with these parts, or with the problem of its entry."""
  try:
    if key and not _KEY.fullmatch(key):
      raise _EntryError(f"bad key: {key[:100]!r} is not of letters, digits, - and _, or longer "
                   f"than {_MAX_KEY}")
    return Item(name, key or f"{number:08d}", parts())
  except _EntryError as error:
    return Item(name, "", {}, str(error))


def _key_of(entry: Any) -> str:
  key = entry.get("key", "") if isinstance(entry, dict) else ""
  return key if isinstance(key, str) else str(key)


def _field(entry: Any, name: str, kind: type | Sequence[type]) -> Any:
  if isinstance(entry, json_lists.Broken):
    raise _EntryError(entry)
  if not isinstance(entry, dict):
    raise _EntryError(f"bad entry: expected a JSON object, not {str(entry)[:60]!r}")
  if name not in entry:
    fields = ", ".join(map(str, list(entry)[:10])) or "none"
    raise _EntryError(f"bad entry: {name} is missing; fields: {fields}")
  value = entry[name]
  if not isinstance(value, kind):
    raise _EntryError(f"bad entry: {name} is {str(value)[:60]!r}, of the wrong type")
  return value


def _words(text: str) -> items_lib.Part:
  """Returns an instruction or prompt on one line, without `<image>` (official)."""
  text = " ".join(text.replace(conversations.IMAGE_MARK, " ").split())
  if not text:
    raise _EntryError("empty text")
  return ("text", _check_unicode(text))


def _turns(entry: Any) -> items_lib.Part:
  """Returns the conversation of an entry, in one of the forms of data/conversations.py."""
  if not isinstance(entry, dict) or not any(name in entry for name in conversations.FIELDS):
    _field(entry, "turns", list)
  try:
    turns = conversations.turns_of(entry)
  except ValueError as error:
    raise _EntryError(str(error)) from error
  return ("text", conversations.as_json([[_check_unicode(t) for t in turn] for turn in turns]))


def _check_unicode(text: str) -> str:
  try:
    text.encode()
  except UnicodeEncodeError as error:  # JSON can hold halves of surrogate pairs
    raise _EntryError(f"bad text: not Unicode: {error}") from None
  return text


def _below(folder: epath.Path, path: Any) -> items_lib.Part:
  """Returns a file below a folder; refuses other paths, since a list may come from elsewhere."""
  if not isinstance(path, str) or not path.strip() or "\0" in path:
    raise _EntryError(f"bad path: {str(path)[:60]!r}")
  root = os.fspath(folder).rstrip("/")
  if "://" in path or path.startswith("/"):
    if not path.startswith(f"{root}/"):
      raise _EntryError(f"bad path: {path[:200]} is not below {root or '/'} (--root sets that folder)")
    path = path[len(root) + 1:]
  if ".." in path.split("/"):
    raise _EntryError(f"bad path: {path[:200]} leaves its folder")
  return ("file", f"{root}/{_check_unicode(path)}")


def _safe(key: str) -> str:
  """Shortens a key for a tar and replaces characters that keys may not have with dashes."""
  return re.sub(r"[^A-Za-z0-9_-]", "-", key)[-(_MAX_KEY - 20):]
