"""Turns one item into one sample: the per-record function, the same in processes, array jobs and Beam.

A pure function of the item, the files it names and the settings. The images' bytes are kept unless
`shorter_edge` asks for smaller images. An item that can never become an example raises Skipped with the
reason. A fault that may be temporary (network, disk) raises OSError and stops the run.
"""

from collections.abc import Mapping
import dataclasses
import io
from typing import Any

from etils import epath
from PIL import Image

from unilip_jax.data import decode, files, source_kinds, user_text
from unilip_jax.data.prepare import items as items_lib

LONG_PROMPT = 1000  # characters; training skips longer text→image prompts (examples.py)
VERIFY = ("full", "header")
_IMAGES = ("image", "cond_image")
_PREFIX = {("edit", "cond_image"): "input.", ("edit", "image"): "output."}
_SUFFIX = {"text": "txt", "turns": "json", "label": "cls"}


class Skipped(ValueError):
  """An item without a sample; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Rules:
  """How a record is checked and resized.

  Attributes:
    kind: key of sources.PARTS.
    verify: "full" decodes every image; "header" reads formats and sizes only.
    shorter_edge: pixels; larger images are resized to it and encoded again. 0 keeps every byte.
    quality: of JPEGs that are encoded again.
    max_pixels: larger images are skipped.
    max_file_bytes: larger files are skipped.
  """

  kind: str
  verify: str = "full"
  shorter_edge: int = 0
  quality: int = 95
  max_pixels: int = 178_956_970
  max_file_bytes: int = 1 << 28


@dataclasses.dataclass(frozen=True)
class Sample:
  """One record, encoded.

  Attributes:
    key: in its shard.
    parts: {part: (suffix in a tar, bytes)}.
    long_prompt: the text has more than LONG_PROMPT characters.
  """

  key: str
  parts: Mapping[str, tuple[str, bytes]]
  long_prompt: bool


def make(item: items_lib.Item, rules: Rules) -> Sample:
  """Makes the sample of an item.

  Raises:
    Skipped: for an unusable item.
    OSError: for a file that exists and cannot be read.
  """
  if item.problem:
    raise Skipped(item.problem)
  parts: dict[str, tuple[str, bytes]] = {}
  for name, part in sorted(item.parts.items()):
    data = _read(name, part, rules.max_file_bytes)
    if name in _IMAGES:
      try:
        suffix, data = _image(data, rules)
      except decode.BadImageError as error:
        raise Skipped(f"broken image: {name}, {_where(part)}: {error}") from None
      parts[name] = _PREFIX.get((rules.kind, name), "") + suffix, data
    else:
      parts[name] = _SUFFIX[name], data
  text = parts["text"][1] if "text" in parts else b""
  if "text" in parts:
    try:
      words = user_text.line(text)
    except ValueError as error:
      raise Skipped(str(error)) from None
    return Sample(item.key, parts, len(words) > LONG_PROMPT)
  return Sample(item.key, parts, False)


def size(part: items_lib.Part, limit: int) -> int:
  """Returns the bytes of a part without reading it.

  Raises:
    Skipped: if the file is missing or too large.
  """
  if part[0] == "text":
    return len(part[1].encode())
  if part[0] == "range":
    length = part[3]
  elif part[0] == "file":
    path = epath.Path(part[1])
    if not files.is_file(path):
      raise Skipped(f"missing file: {part[1]}")
    length = path.stat().length
  else:
    return 0
  if length > limit:
    raise Skipped(f"too large: {_where(part)} has {length} bytes (--max_file_bytes={limit})")
  return length


def _read(name: str, part: items_lib.Part, limit: int) -> bytes:
  size(part, limit)
  if part[0] == "text":
    return part[1].encode()
  if part[0] == "file":
    return epath.Path(part[1]).read_bytes()
  if part[0] == "range":
    return files.read_range(*part[1:])
  return _tfds_feature(name, *part[1:])


_TFDS: dict[Any, source_kinds.TfdsSource] = {}  # one per process


def _tfds_feature(feature: str, name: str, split: str, data_dir: str | None, index: int) -> bytes:
  args = (name, split, data_dir)
  if (args, feature) not in _TFDS:
    _TFDS[args, feature] = source_kinds.TfdsSource(*args, parts={feature: ()})
  return _TFDS[args, feature][index].parts[feature]


def _where(part: items_lib.Part) -> str:
  return str(part[1]) if part[0] == "file" else ":".join(map(str, part[1:4]))


def _image(data: bytes, rules: Rules) -> tuple[str, bytes]:
  """Returns (suffix, bytes) of an image that can be decoded; the suffix is that of its actual format."""
  suffix, width, height = decode.describe(data, rules.max_pixels)
  shrink = rules.shorter_edge and min(width, height) > rules.shorter_edge
  if not shrink and rules.verify == "header":
    return suffix, data
  image = decode.decode(data, rules.max_pixels)
  if not shrink:
    return suffix, data
  scale = rules.shorter_edge / min(width, height)
  image = image.resize((max(1, round(width * scale)), max(1, round(height * scale))),
                       Image.Resampling.BICUBIC)
  buffer = io.BytesIO()
  image.save(buffer, "JPEG", quality=rules.quality, subsampling=0)
  return "jpg", buffer.getvalue()
