"""Datasets as they are downloaded, as streams of items. Lists are read; no image is opened.

What a list says wrongly becomes an item with a problem, so that the manifest can name it. A list that
cannot be read at all is an error.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import json
import os
import posixpath
import re
from typing import Any

from etils import epath

from unilip_jax.data import sources, tar_index
from unilip_jax.data.prepare import items as items_lib
from unilip_jax.data.prepare import json_lists

Item = items_lib.Item
Rows = list[dict[str, Any]]  # what was read: a row for each list or tar
KINDS = ("t2i", "edit", "understand")
_LONGEST_KEY = 80  # characters; a tar's name has room for 100 with the suffix
_KEY = re.compile(rf"[A-Za-z0-9_-]{{1,{_LONGEST_KEY}}}")  # no dots: they end a key in a tar
_IMAGE_MARK = "<image>"


class _Wrong(ValueError):
  """An entry of a list that does not say what it should."""


def gpt_image_edit(source: epath.PathLike, rows: Rows) -> Iterator[Item]:
  """GPT-Image-Edit-1.5M as downloaded: edits.

  `gptedit.txt` holds lines `image_dir,json_file[,anything]`, relative to its folder. Each JSON is a list
  of {"image": [input, output], "conversations": [{"value": instruction}, …]}; entries with another
  number of images are left out, as officially.

  Args:
    source: the folder, or the txt file.
    rows: see json_lists.array.

  Raises:
    FileNotFoundError, json_lists.ListError: see json_lists.array.
    ValueError: for a line without two columns.
  """
  listing = epath.Path(source).expanduser()
  if listing.is_dir():
    listing /= "gptedit.txt"
  root = listing.parent
  with json_lists.open_list(listing) as f:
    text = f.read(json_lists.LONGEST).decode(errors="replace")
  number = 0
  for at, line in enumerate(text.splitlines(), 1):
    if not line.strip():
      continue
    columns = [c.strip() for c in line.split(",")]
    if len(columns) < 2 or not all(columns[:2]):
      raise ValueError(f"{listing}, line {at}: image_dir,json_file[,count] is wanted, not {line[:80]!r}")
    folder, name = columns[:2]
    for i, entry in enumerate(json_lists.array(root / name, rows)):
      yield _item(f"{name}[{i}]", number, lambda: _gpt_edit(entry, root / folder))  # noqa: B023
      number += 1


def _gpt_edit(entry: Any, folder: epath.Path) -> Mapping[str, items_lib.Part]:
  images = _field(entry, "image", list)
  if len(images) != 2:
    raise _Wrong(f"no pair: {len(images)} images; only pairs of input and output are kept")
  turns = _field(entry, "conversations", list)
  if not turns:
    raise _Wrong("bad entry: conversations is empty")
  return {"cond_image": _below(folder, images[0]), "image": _below(folder, images[1]),
          "text": _words(_field(turns[0], "value", str))}


def sharegpt4o(source: epath.PathLike, kind: str, rows: Rows) -> Iterator[Item]:
  """ShareGPT-4o-Image as downloaded and unpacked.

  `text_to_image.json` is a list of {"input_prompt", "output_image"}; `text_and_image_to_image.json` has
  "input_image", a list, too; paths are relative to the folder.

  Args:
    source: the folder.
    kind: "t2i" or "edit": which of the two lists.
    rows: see json_lists.array.
  """
  root = epath.Path(source).expanduser()
  name = "text_to_image.json" if kind == "t2i" else "text_and_image_to_image.json"

  def parts(entry: Any) -> Mapping[str, items_lib.Part]:
    made = {"image": _below(root, _field(entry, "output_image", str)),
            "text": _words(_field(entry, "input_prompt", str))}
    if kind == "t2i":
      return made
    images = _field(entry, "input_image", (list, str))
    images = [images] if isinstance(images, str) else images
    if len(images) != 1:
      raise _Wrong(f"no pair: {len(images)} input images, one is wanted")
    return {"cond_image": _below(root, images[0])} | made

  for i, entry in enumerate(json_lists.array(root / name, rows)):
    yield _item(f"{name}[{i}]", i, lambda: parts(entry))  # noqa: B023


def json_lines(source: epath.PathLike, kind: str, root: str, rows: Rows) -> Iterator[Item]:
  """People's own data, one JSON object a line; docs/data.md shows the format.

  Args:
    source: the file.
    kind: of KINDS.
    root: folder that paths are relative to and may not leave; "" is the list's own.
    rows: see json_lists.array.

  Raises:
    ValueError: for an unknown kind.
  """
  if kind not in KINDS:
    raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(KINDS)}")
  listing = epath.Path(source).expanduser()
  folder = epath.Path(root).expanduser() if root else listing.parent

  def parts(entry: Any) -> Mapping[str, items_lib.Part]:
    if kind == "understand":
      return {"cond_image": _below(folder, _field(entry, "image", str)), "turns": _turns(entry)}
    made = {"text": _words(_field(entry, "text", str))}
    if kind == "t2i":
      return {"image": _below(folder, _field(entry, "image", str))} | made
    return {"cond_image": _below(folder, _field(entry, "input", str)),
            "image": _below(folder, _field(entry, "output", str))} | made

  for number, (at, entry, wrong) in enumerate(json_lists.lines(listing, rows)):
    name = f"{listing.name}:{at}"
    if wrong:
      yield Item(name, "", {}, wrong)
    else:
      yield _item(name, number, lambda: parts(entry), _given_key(entry))  # noqa: B023


def tars(pattern: str, kind: str, index_dir: str, rows: Rows) -> Iterator[Item]:
  """WebDataset tars, record by record, to be written anew.

  Args:
    pattern: files or patterns, comma-separated.
    kind: key of sources.PARTS; `cls` members come along where there are any.
    index_dir: where tar indices are cached.
    rows: gets {"list", "items", "bytes", "problem"} of each tar.
  """
  number = 0
  for path in sources.expand(pattern):
    index = tar_index.load(path, index_dir)
    for row in range(len(index)):
      yield tar_item(path, index, row, number, kind)
      number += 1
    for fault in index.faults:
      yield Item(f"{path}:{fault.partition(': ')[0]}", "", {}, fault.partition(": ")[2])
    rows.append({"list": path, "items": len(index), "bytes": epath.Path(path).stat().length,
                 "problem": index.problem})
    if index.problem:
      yield Item(path, "", {}, f"broken tar: {index.problem}")


def tar_item(path: str, index: tar_index.TarIndex, row: int, number: int, kind: str) -> Item:
  """The item of one sample of a tar; `number` among all makes its key another than any other's."""
  key = index.keys[row]
  here = {s: i for i, s in enumerate(index.suffixes) if index.offsets[row, i] >= 0}
  wanted = dict(sources.PARTS[kind]) | ({"label": ("cls",)} if "cls" in here else {})
  found = {part: next((s for s in suffixes if s in here), "") for part, suffixes in wanted.items()}
  missing = [part for part, suffix in found.items() if not suffix]
  name = f"{path}:{key}"
  if missing:
    return Item(name, "", {}, f"incomplete sample: it has no {', '.join(missing)}")
  stem = posixpath.basename(path).partition(".")[0]
  return Item(name, f"{number:08d}-{_safe(f'{stem}-{key}')}", {
      part: ("range", path, int(index.offsets[row, here[s]]), int(index.sizes[row, here[s]]))
      for part, s in found.items()})


def tfds(name: str, split: str, data_dir: str | None, rows: Rows) -> Iterator[Item]:
  """Images and labels of a tensorflow-datasets split that was prepared as ArrayRecord."""
  args = (name, split, data_dir)
  count = len(sources.TfdsSource(*args, parts={"image": ()}))
  for i in range(count):
    yield Item(f"{name}:{split}[{i}]", f"{i:08d}",
               {part: ("tfds", *args, i) for part in ("image", "label")})
  rows.append({"list": f"{name}:{split}", "items": count})


def _item(
    name: str, number: int, parts: Callable[[], Mapping[str, items_lib.Part]], key: str = "") -> Item:
  """An item with these parts, or with what is wrong about its entry."""
  try:
    if key and not _KEY.fullmatch(key):
      raise _Wrong(f"bad key: {key[:100]!r} is not of letters, digits, - and _, or longer "
                   f"than {_LONGEST_KEY}")
    return Item(name, key or f"{number:08d}", parts())
  except _Wrong as error:
    return Item(name, "", {}, str(error))


def _given_key(entry: Any) -> str:
  key = entry.get("key", "") if isinstance(entry, dict) else ""
  return key if isinstance(key, str) else str(key)


def _field(entry: Any, name: str, kind: type | Sequence[type]) -> Any:
  if not isinstance(entry, dict):
    raise _Wrong(f"bad entry: no JSON object but {str(entry)[:60]!r}")
  if name not in entry:
    there = ", ".join(map(str, list(entry)[:10])) or "none"
    raise _Wrong(f"bad entry: {name} is missing; there are {there}")
  value = entry[name]
  if not isinstance(value, kind):
    raise _Wrong(f"bad entry: {name} is {str(value)[:60]!r}, of the wrong type")
  return value


def _words(text: str) -> items_lib.Part:
  """An instruction or prompt on one line, without `<image>` (officially taken out too)."""
  text = " ".join(text.replace(_IMAGE_MARK, " ").split())
  if not text:
    raise _Wrong("empty text: there are no words")
  return ("text", _sound(text))


def _turns(entry: Any) -> items_lib.Part:
  """{"turns": [[question, answer], …]} of an entry that says so, or says it as LLaVA's lists do."""
  if "conversations" in entry and "turns" not in entry:
    said = _field(entry, "conversations", list)
    if len(said) % 2:
      raise _Wrong(f"bad turns: {len(said)} entries of conversations; questions and answers must alternate")
    for i, one in enumerate(said):
      if _field(one, "from", str) != ("human", "gpt")[i % 2]:
        raise _Wrong('bad turns: conversations must alternate between "human" and "gpt"')
    words = [_field(one, "value", str).replace(_IMAGE_MARK, "").strip() for one in said]
    turns: list[Any] = [words[i:i + 2] for i in range(0, len(words), 2)]
  else:
    turns = _field(entry, "turns", list)
  for turn in turns:
    if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(t, str) for t in turn)):
      raise _Wrong(f"bad turns: one is {str(turn)[:60]!r}, not [question, answer]")
    if not all(t.strip() for t in turn):
      raise _Wrong("bad turns: a question or an answer is empty")
  if not turns:
    raise _Wrong("bad turns: there are none")
  return ("text", json.dumps(
      {"turns": [[_sound(t) for t in turn] for turn in turns]}, ensure_ascii=False))


def _sound(text: str) -> str:
  try:
    text.encode()
  except UnicodeEncodeError as error:  # JSON can hold halves of surrogate pairs
    raise _Wrong(f"bad text: no Unicode, {error}") from None
  return text


def _below(folder: epath.Path, path: Any) -> items_lib.Part:
  """A file that lies below a folder: a list from elsewhere must not make us read other files."""
  if not isinstance(path, str) or not path.strip() or "\0" in path:
    raise _Wrong(f"bad path: {str(path)[:60]!r}")
  root = os.fspath(folder).rstrip("/")
  if "://" in path or path.startswith("/"):
    if not path.startswith(f"{root}/"):
      raise _Wrong(f"bad path: {path[:200]} does not lie below {root or '/'} (--root sets that folder)")
    path = path[len(root) + 1:]
  if ".." in path.split("/"):
    raise _Wrong(f"bad path: {path[:200]} leaves its folder")
  return ("file", f"{root}/{_sound(path)}")


def _safe(key: str) -> str:
  """The end of a key for a tar: what may not stand in one becomes a dash."""
  return re.sub(r"[^A-Za-z0-9_-]", "-", key)[-(_LONGEST_KEY - 20):]
