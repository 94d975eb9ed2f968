"""Detects how own data is stored: images with captions, lists, Parquet, a dataset on disk, or tars.

| layout | what it is |
|---|---|
| images | image files; a caption, or JSON, of the same name; folders named as `10_sks dog` |
| list | metadata.jsonl or .csv next to images, or one list of images, edits or conversations |
| parquet | Parquet files with images or paths, as Hugging Face datasets are downloaded |
| arrow | a folder of `Dataset.save_to_disk` |
| tar | WebDataset tars |
"""

from collections.abc import Callable, Sequence
import csv
import dataclasses
import os
import posixpath
import re

from absl import logging

from unilip_jax.common import paths
from unilip_jax.data import files, folder_source, omissions, sources
from unilip_jax.data.own import columns

SIDECARS = folder_source.SIDECARS
_LISTS = ("jsonl", "ndjson", "csv", "json")
_BY_SUFFIX = {"parquet": "parquet", "arrow": "arrow", "tar": "tar"} | dict.fromkeys(_LISTS, "list")
_DISK = ("state.json", "dataset_info.json", "dataset_dict.json")  # of Dataset.save_to_disk
_SPLIT = re.compile(r"(?:^|[/_-])(train|test|validation|valid|val|dev)(?=[-_./0-9]|$)", re.IGNORECASE)
_METADATA = "metadata."  # name of a list of images, as Hugging Face's ImageFolder has it
_HELP = ('docs/data.md, "Own images", lists the layouts: images with captions (a.png and a.txt), '
         "metadata.jsonl, a list of edits or conversations, Parquet, a dataset on disk, tars")


@dataclasses.dataclass(frozen=True)
class Layout:
  """What was detected.

  Attributes:
    kind: one of configs.checks.OWN_LAYOUTS.
    path: as given, expanded.
    files: lists, Parquet or Arrow files or tars to read; none of images.
    note: for the log.
    images: paths of the image files next to a list or of the layout images.
  """

  kind: str
  path: str
  files: tuple[str, ...] = ()
  note: str = ""
  images: tuple[str, ...] = ()


def detect(path: str, chosen: str = "") -> Layout:
  """Detects the layout of a folder or file.

  Args:
    path: local or gs://.
    chosen: layout to use where several are possible; "" detects.

  Raises:
    FileNotFoundError: if it does not exist.
    ValueError: if it holds several layouts, naming them, or none.
  """
  place = paths.path(path, "data.own")
  if not place.exists():
    paths.existing_folder(path, "data.own")
    raise FileNotFoundError(f"data.own={path} does not exist")
  root = os.fspath(place)
  if not place.is_dir():
    kind = _BY_SUFFIX.get(_suffix(root), "")
    if not kind:
      raise ValueError(f"data.own={path} is a file of an unknown kind; {_HELP}")
    return Layout(kind, root, (root,), os.path.basename(root))
  names = [name for name, _ in sorted(folder_source.list_files(place, omissions.Omissions()))]
  found = _possible(root, names)
  if chosen and chosen not in found:
    raise ValueError(f"data.own_layout={chosen}: {path} holds no such layout; detected: "
                     f"{', '.join(found) or 'none'}. {_HELP}")
  if len(found) > 1 and not chosen:
    what = "; ".join(f"{kind}: {layout.note}" for kind, layout in found.items())
    raise ValueError(f"data.own={path} can be read in several ways ({what}). Choose one with "
                     f"--config.data.own_layout={next(iter(found))}, or name the list itself as data.own")
  if not found:
    texts = sum(_suffix(name) in SIDECARS for name in names)
    if texts and texts == len(names):
      raise ValueError(f"data.own={path} holds {texts} texts, but no image; {_HELP}")
    raise ValueError(f"data.own={path} holds no data that is known ({len(names)} files"
                     f"{', e.g. ' + ', '.join(names[:3]) if names else ''}); {_HELP}")
  return found[chosen or next(iter(found))]


def _possible(root: str, names: Sequence[str]) -> dict[str, Layout]:
  """Returns the layouts that the files below a folder can be read as."""
  at = lambda chosen: tuple(posixpath.join(root, name) for name in chosen)
  by_suffix: dict[str, list[str]] = {}
  for name in names:
    by_suffix.setdefault(_suffix(name), []).append(name)
  images = [n for suffix in sources.IMAGE_SUFFIXES for n in by_suffix.get(suffix, ())]
  stems = {posixpath.splitext(n)[0] for n in images}
  stems.update(images)  # a.png has its caption in a.txt or a.png.txt
  beside = [n for suffix in SIDECARS for n in by_suffix.get(suffix, ())
            if posixpath.splitext(n)[0] in stems]
  found: dict[str, Layout] = {}
  arrow = by_suffix.get("arrow", [])
  if arrow and any(posixpath.basename(n) in _DISK for n in names):
    chosen, note = _train_split(arrow)
    found["arrow"] = Layout("arrow", root, at(chosen), f"{len(chosen)} Arrow files{note}")
  lists = [] if found else _lists(root, by_suffix, {*beside})
  if lists:
    chosen, note = _train_split(lists)
    found["list"] = Layout("list", root, at(chosen), f"{', '.join(chosen[:3])}{note}", at(images))
  for kind, what in (("parquet", "Parquet files"), ("tar", "tars")):
    if by_suffix.get(kind):
      chosen, note = _train_split(by_suffix[kind])
      found[kind] = Layout(kind, root, at(chosen), f"{len(chosen)} {what}{note}")
  captions = len({posixpath.splitext(n)[0] for n in beside})
  referring = {"list", "parquet"} & {*found}  # what holds paths of the images
  if images and (captions or not referring):
    note = f"{len(images)} images" + (f", {captions} captions of the same name" if captions else "")
    found["images"] = Layout("images", root, (), note, at(images))
  return found


def _lists(root: str, by_suffix: dict[str, list[str]], beside: set[str]) -> list[str]:
  """Returns the lists of a folder: metadata files, else one JSON lines file, else one CSV or JSON list."""
  lines = [n for suffix in ("jsonl", "ndjson") for n in by_suffix.get(suffix, ())]
  tables = [n for n in by_suffix.get("csv", ()) if _is_table(posixpath.join(root, n))]
  metadata = [n for n in (*lines, *tables) if posixpath.basename(n).startswith(_METADATA)]
  if metadata:
    folders = [posixpath.dirname(n) for n in metadata]
    if len({*folders}) < len(folders):
      raise ValueError(f"{root} holds {', '.join(metadata)}: name one of them as data.own")
    return sorted(metadata)
  json_lists = [n for n in by_suffix.get("json", ())
                if n not in beside and _is_list(posixpath.join(root, n))]
  others = {*by_suffix.get("csv", ()), *by_suffix.get("json", ())} - {*tables, *json_lists} - beside
  unread = sorted(n for n in others if posixpath.basename(n).startswith(_METADATA))
  if unread and not by_suffix.keys() & {"jsonl", "ndjson", "parquet", "tar"}:
    raise ValueError(
        f"{posixpath.join(root, unread[0])} is no list of images: a CSV needs UTF-8, commas between its "
        "columns and one that is called file_name; JSON needs the form "
        '[{"file_name": "a.png", "text": "a cat"}, …]. Correct it, or rename it if it is something else')
  for candidates in (lines, tables, json_lists):
    if len(candidates) > 1 and len(_train_split(candidates)[0]) > 1:
      raise ValueError(f"{root} holds several lists, {', '.join(sorted(candidates)[:5])}: name one of them "
                       "as data.own")
    if candidates:
      return sorted(candidates)
  return []


def _is_table(path: str) -> bool:
  """Returns whether a CSV file has a column of images."""
  return _begins(path, lambda head: bool(columns.serves(next(csv.reader([head.split("\n")[0]]), []))))


def _is_list(path: str) -> bool:
  """Returns whether a JSON file holds a list of objects."""
  return _begins(path, lambda head: re.match(r"\s*\[\s*\{", head) is not None)


def _begins(path: str, test: Callable[[str], bool]) -> bool:
  try:
    size = min(4096, int(files.stamp(path).partition(":")[0]))
    return test(files.read_range(path, 0, size).decode("utf-8-sig", errors="replace"))
  except (OSError, csv.Error) as error:
    logging.warning("%s cannot be read: %s", path, error)
    return False


def _train_split(names: Sequence[str]) -> tuple[list[str], str]:
  """Returns (files of the split "train" if there are splits, else all; what is not read, for the log)."""
  splits = {name: match[1].lower() if (match := _SPLIT.search(name)) else "" for name in sorted(names)}
  if "train" not in splits.values():
    return list(splits), ""
  chosen = [name for name, split in splits.items() if split in ("train", "")]
  others = sorted({split for split in splits.values() if split not in ("train", "")})
  return chosen, f" of the split train ({', '.join(others)}: not read)" if others else ""


def _suffix(name: str) -> str:
  return posixpath.splitext(name)[1].lower().removeprefix(".")
