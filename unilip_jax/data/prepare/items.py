"""Items: where the bytes of one future record are, before any file is opened.

A part locates its bytes, as a tuple that JSON can hold:

  ("file", path)                           a complete file, local or gs://
  ("range", path, offset, size, stamp)     bytes of a file of this stamp (files.py): a member of a tar
  ("text", string)                         the text itself
  ("tfds", name, split, data_dir, index)   the feature of the part's name in a tensorflow-datasets record
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import hashlib
import json
from typing import Any

Part = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Item:
  """One future record.

  Attributes:
    name: its place in the source, for reports: "hqedit.json[17]".
    key: of the sample in its shard.
    parts: {part of sources.PARTS, or "label": where its bytes are}.
    problem: why the item is unusable, as far as the list shows; "" for a usable one.
  """

  name: str
  key: str
  parts: Mapping[str, Part]
  problem: str = ""


def to_json(items: Sequence[Item]) -> str:
  """Serialises items for `from_json`."""
  return json.dumps([[i.name, i.key, dict(i.parts), i.problem] for i in items])


def from_json(text: str) -> list[Item]:
  """Reads what `to_json` wrote."""
  return [Item(name, key, {n: tuple(p) for n, p in parts.items()}, problem)
          for name, key, parts, problem in json.loads(text)]


def without_repeats(items: Iterable[Item], *, keys_are_given: bool) -> Iterator[Item]:
  """Marks items that repeat an earlier one: the same images and words, or the same key.

  Keeps an 8-byte hash of every item: about 0.08 GB for a million of them with Python's overhead.

  Args:
    items: of one list or several.
    keys_are_given: keys are the user's own; otherwise they are numbers and cannot repeat.
  """
  seen: set[bytes] = set()
  for item in items:
    if not item.problem:
      hashes = {"the same images and words": _hash(json.dumps(dict(item.parts), sort_keys=True))}
      if keys_are_given:
        hashes[f"the key {item.key!r}"] = _hash(f"key {item.key}")
      repeats = [what for what, digest in hashes.items() if digest in seen]
      if repeats:
        item = dataclasses.replace(item, problem=f"repeated: an earlier item has {repeats[-1]}")
      else:
        seen.update(hashes.values())
    yield item


def _hash(text: str) -> bytes:
  return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
