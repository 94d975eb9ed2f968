"""Image files with captions of the same name; folders named as kohya's, `10_sks dog`: repeats and words."""

import collections
from collections.abc import Mapping, Sequence
import copy
import functools
import math
import os
import posixpath
import re
from typing import Any

import numpy as np

from unilip_jax.common import json_text
from unilip_jax.data import conversations, decode, folder_source, omissions, sources
from unilip_jax.data.own import columns, layouts

_REPEATS = re.compile(r"(\d{1,3})_(.+)")  # a longer number is a year


class Images(sources.Source):
  """Images below a folder, in the order of their paths, each as often as its folder's name says.

  The caption of an image is the file of its name (.txt, .caption, or .json with an entry text, prompt or
  caption), else the words of its folder's name, else `prompt`.
  """

  def __init__(self, folder: str, example: str, prompt: str = ""):
    """Lists the folder.

    Args:
      folder: local or gs://.
      example: a key of sources.PARTS.
      prompt: of images without a caption; "" leaves them out.
    """
    self._example, self._prompt, self._folder = example, prompt, folder
    parts = dict(sources.PARTS[example])
    if example == "t2i":
      parts["text"] = layouts.SIDECARS
    self._files = folder_source.FolderSource(
        folder, parts, lambda part, name: part == "text" and bool(self._words(name)))
    if example == "t2i":
      self._files.left_out().explain(
          omissions.lacks("text", layouts.SIDECARS), "--config.data.own_prompt=TEXT serves those without")
    repeats = [repeats_of(self._place(i))[0] for i in range(len(self._files))]
    common = math.gcd(*repeats) or 1
    self._order = np.repeat(np.arange(len(repeats)), np.array(repeats, np.int64) // common)

  def _place(self, index: int) -> str:
    return posixpath.join(self._folder, next(iter(self._files.files(index).values())))

  def _words(self, name: str) -> str:
    """Returns the caption of an image without a file of its own."""
    return repeats_of(posixpath.join(self._folder, name))[1] or self._prompt

  def folders(self) -> Mapping[str, int]:
    """Returns {name of a folder that states repeats: images in it}."""
    counts = collections.Counter(
        posixpath.basename(posixpath.dirname(self._place(i))) for i in range(len(self._files)))
    return {name: counts[name] for name in sorted(counts) if _REPEATS.fullmatch(name)}

  def left_out(self) -> omissions.Omissions:
    return self._files.left_out()

  def stamps(self) -> Sequence[str]:
    stamps = self._files.stamps()
    return [stamps[i] for i in self._order] if stamps else ()

  def without(self, part: str) -> "Images":
    """Returns a source of the same records that does not read a part."""
    other = copy.copy(self)
    other._files = self._files.without(part)
    return other

  def __len__(self) -> int:
    return len(self._order)

  def __getitem__(self, index: int) -> sources.Record:
    number = int(self._order[index])
    record, names = self._files[number], self._files.files(number)
    parts: dict[str, Any] = dict(record.parts)
    key = next(iter(names.values()))
    if self._example == "understand" and "turns" in parts:
      parts["turns"] = conversation(parts["turns"])
    elif self._example == "t2i" and "text" in parts and names["text"].lower().endswith(".json"):
      parts["text"] = caption_of(parts["text"])
    elif self._example == "t2i" and "text" not in names:
      parts["text"] = self._words(key).encode()
    return sources.Record(parts, key, os.fspath(self._folder))


@functools.lru_cache(maxsize=1024)
def _of_folder(name: str) -> tuple[int, str]:
  match = _REPEATS.fullmatch(name)
  return (int(match[1]), match[2].strip()) if match and int(match[1]) else (1, "")


def repeats_of(path: str) -> tuple[int, str]:
  """Returns (repeats, words) of a file's folder, e.g. (10, "sks dog") of "10_sks dog"; else (1, "")."""
  return _of_folder(posixpath.basename(posixpath.dirname(path)))


def caption_of(data: bytes) -> bytes:
  """Returns the caption in the JSON of an image.

  Raises:
    decode.BadRecordError: if there is none.
  """
  value = _object(data)
  name = next((n for n in columns.CAPTION if isinstance(value.get(n), str)), "")
  if not name:
    raise decode.BadRecordError(f"the JSON of the image has no entry {', '.join(columns.CAPTION)}")
  return value[name].encode(errors="replace")


def conversation(data: bytes) -> bytes:
  """Returns the part `turns` of the JSON of an image.

  Raises:
    decode.BadRecordError: if it is no conversation.
  """
  try:
    return conversations.as_json(conversations.parse(data)).encode()
  except ValueError as error:
    raise decode.BadRecordError(str(error)) from error


def _object(data: bytes) -> Mapping[str, Any]:
  try:
    value = json_text.loads(data.decode("utf-8-sig"))
  except ValueError as error:
    raise decode.BadRecordError(f"the JSON of the image is broken: {error}") from error
  if not isinstance(value, Mapping):
    raise decode.BadRecordError(f"the JSON of the image is a {type(value).__name__}, not an object")
  return value
