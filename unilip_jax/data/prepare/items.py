"""What one record is to be made of, before anything of it is opened.

A part says where its bytes are, as a tuple that JSON can hold:

  ("file", path)                    a whole file, local or gs://
  ("range", path, offset, size)     bytes of a file: a member of a tar
  ("text", string)                  stands in the list itself
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
  """One record to be.

  Attributes:
    name: where it stands in the source, for reports: "hqedit.json[17]".
    key: of the sample in its shard.
    parts: {part of sources.PARTS, or "label": where its bytes are}.
    problem: "" or why nothing can be made of it, as far as the list tells.
  """

  name: str
  key: str
  parts: Mapping[str, Part]
  problem: str = ""


def to_json(items: Sequence[Item]) -> str:
  """A text from which `from_json` makes equal items."""
  return json.dumps([[i.name, i.key, dict(i.parts), i.problem] for i in items])


def from_json(text: str) -> list[Item]:
  """See `to_json`."""
  return [Item(name, key, {n: tuple(p) for n, p in parts.items()}, problem)
          for name, key, parts, problem in json.loads(text)]


def without_repeats(items: Iterable[Item], *, keys_are_given: bool) -> Iterator[Item]:
  """Marks items that stand in the list before: with the same images and words, or the same key.

  Holds 8 bytes of hash of every item: about 0.08 GB for a million of them with Python's overhead.

  Args:
    items: of one list or several.
    keys_are_given: keys are the user's own; else they are numbers and cannot repeat.
  """
  seen: set[bytes] = set()
  for item in items:
    if not item.problem:
      same = {"the same images and words": _hash(json.dumps(dict(item.parts), sort_keys=True))}
      if keys_are_given:
        same[f"the key {item.key!r}"] = _hash(f"key {item.key}")
      repeated = [what for what, digest in same.items() if digest in seen]
      if repeated:
        item = dataclasses.replace(item, problem=f"repeated: {repeated[-1]} stood before")
      else:
        seen.update(same.values())
    yield item


def _hash(text: str) -> bytes:
  return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
