"""Makes the first look at own data: counts, sizes, captions, what is left out, and a grid of images.

Reads headers and texts of up to 100 records, evenly spaced, and decodes up to 16 images. Uses no JAX.
"""

import collections
from collections.abc import Iterator, Sequence
import dataclasses
import functools

import numpy as np
from PIL import Image

from unilip_jax.common import image_grid, rectangles
from unilip_jax.data import conversations, decode, sources, stream, user_text
from unilip_jax.data.own import images as images_lib
from unilip_jax.data.own import rows

_HEADERS, _DECODED, _IMAGES, _CAPTIONS = 100, 32, 16, 5
_SIDE = 224  # pixels of an image in the grid, at most
_LONGEST = 60  # characters of a caption that are shown


@dataclasses.dataclass(frozen=True)
class Look:
  """Lines of text, and a PNG file of the images as the model gets them."""

  lines: Sequence[str]
  png: bytes


def look(
    source: sources.Source, example: str, *, image_size: int, crop: str, flip: bool, max_pixels: int,
    seed: int = 0, buckets: Sequence[rectangles.Size] = (), scaled: bool = False) -> Look:
  """Looks at a source.

  Args:
    source: of the kind "own", or another one.
    example: a key of sources.PARTS.
    image_size: pixels per side that the model gets.
    crop: see decode.fit; "stretch" for all examples but reconstruct.
    flip: whether images are mirrored at random.
    max_pixels: larger images are refused.
    seed: of crops and flips.
    buckets: data.buckets, of which each image gets the nearest; () are squares.
    scaled: see decode.prepare.

  Raises:
    ValueError: if none of the images can be read.
  """
  facts = _Facts(image_size)
  for index in _spread(len(source), _HEADERS):
    facts.note(source, index, max_pixels)
  buckets = [rectangles.both_sides(size) for size in buckets or (image_size,)]
  side = min(_SIDE, max(max(size) for size in buckets))
  tiles, captions = [], []
  for index in _spread(len(source), _DECODED):
    rng = stream.generator(seed, index)
    prepare = functools.partial(
        decode.prepare, crop=crop, flip=flip, max_pixels=max_pixels, rng=rng,
        note=lambda kind: facts.decoded.update([kind]), scaled=scaled)
    record = None
    try:
      record = source[index]
      shown = record.parts.get("image", record.parts.get("cond_image"))
      _, width, height = decode.describe(shown, max_pixels)
      size = buckets[rectangles.nearest((height, width), buckets)]
      parts = [prepare(record.parts[part], size=size)
               for part in ("cond_image", "image") if part in record.parts]
      words = _words(record)
    except (OSError, decode.BadRecordError) as error:
      facts.add_fault(index, error, record)
      continue
    tiles.append(np.concatenate([_small(part, side) for part in parts], axis=1))
    captions.append(words)
  if not tiles:
    raise ValueError("none of the images can be read: " + "; ".join(facts.problems()))
  text = "×".join(map(str, buckets[0])) if len(buckets) == 1 else f"the nearest of {len(buckets)} sizes"
  chosen = _spread(len(tiles), _IMAGES)
  grid = image_grid.captioned(np.stack([tiles[i] for i in chosen]), [captions[i] for i in chosen],
                              columns=2 if len(parts) > 1 else 4)
  return Look(list(_lines(source, example, facts, image_size, f"{text} ({crop})")), grid)


class _Facts:
  """Collects what headers and texts of records tell."""

  def __init__(self, image_size: int):
    self.sizes: list[tuple[int, int]] = []
    self.captions: collections.Counter[str] = collections.Counter()
    self.notes: collections.Counter[str] = collections.Counter()  # of headers
    self.decoded: collections.Counter[str] = collections.Counter()  # notes of the images that are decoded
    self.looked, self.small = 0, 0
    self._image_size = image_size
    self._faults: dict[int, str] = {}  # by record
    self._first: dict[str, str] = {}  # {fault: file}

  def note(self, source: sources.Source, index: int, max_pixels: int) -> None:
    """Reads a record's texts and the headers of its images."""
    self.looked += 1
    record = None
    try:
      record = source[index]
      for part in ("image", "cond_image"):
        if part in record.parts:
          _, width, height = decode.describe(record.parts[part], max_pixels)
          self.sizes.append((width, height))
          self.small += min(width, height) < self._image_size
          decode.note_unused(record.parts[part], lambda kind: self.notes.update([kind]))
      words = _words(record)
    except (OSError, decode.BadRecordError) as error:
      self.add_fault(index, error, record)
      return
    if words:
      self.captions[words] += 1

  def add_fault(self, index: int, error: Exception, record: sources.Record | None) -> None:
    """Counts a record that cannot be read, once."""
    why = self._faults.setdefault(index, str(error))
    if record is not None:
      self._first.setdefault(why, f", first: {record.key}")

  def problems(self) -> Iterator[str]:
    """Yields what cannot be read, the most frequent first."""
    for why, count in collections.Counter(self._faults.values()).most_common(3):
      yield f"{count} × {why}{self._first.get(why, '')}"


def _lines(
    source: sources.Source, example: str, facts: _Facts, image_size: int, size: str) -> Iterator[str]:
  of = "" if facts.looked == len(source) else f" (of {facts.looked} looked at)"
  yield f"{len(source)} records for the example {example}"
  if isinstance(source, images_lib.Images) and (folders := source.folders()):
    counts = ", ".join(f"{name} ({count})" for name, count in folders.items())
    yield f"folders that state repeats: {counts}"
  if isinstance(source, rows.Rows):
    roles = ", ".join(f"{part} from {' and '.join(names)}" for part, names in source.roles.items())
    yield f"columns: {roles}"
  by_area = sorted(facts.sizes, key=lambda size: size[0] * size[1])
  if by_area:
    least, middle, most = (f"{w}×{h}" for w, h in (by_area[0], by_area[len(by_area) // 2], by_area[-1]))
    yield f"sizes{of}: {least} to {most}, median {middle}; the model gets {size}"
  if facts.small:
    yield f"{facts.small} images{of} have an edge below {image_size} pixels and are enlarged"
  if facts.captions:
    lengths = [len(text) for text in facts.captions]
    shown = "; ".join(repr(_short(text)) for text in list(facts.captions)[:_CAPTIONS])
    yield (f"texts{of}: {len(facts.captions)} different ones of {min(lengths)} to {max(lengths)} "
           f"characters: {shown}")
  if left_out := source.left_out():
    yield f"left out: {left_out}"
  for kind, count in facts.notes.most_common():
    yield f"{count} ×{of} {kind}"
  of_decoded = f" (of {_DECODED} decoded)" if len(source) > _DECODED else ""
  for kind, count in facts.decoded.most_common():
    if kind not in facts.notes:  # headers tell it of more images
      yield f"{count} ×{of_decoded} {kind}"
  for problem in facts.problems():
    yield f"cannot be read{of}: {problem}"


def _spread(length: int, most: int) -> list[int]:
  """Returns up to `most` indices, evenly spaced."""
  return sorted({i * length // most for i in range(most)}) if length > most else list(range(length))


def _words(record: sources.Record) -> str:
  """Returns the text of a record on one line: its caption, instruction or first question and answer.

  Raises:
    decode.BadRecordError: for a text that training would not read.
  """
  try:
    if "turns" in record.parts:
      return " → ".join(" ".join(text.split()) for text in conversations.parse(record.parts["turns"])[0])
    return user_text.line(record.parts["text"]) if "text" in record.parts else ""
  except ValueError as error:
    raise decode.BadRecordError(str(error)) from error


def _short(text: str) -> str:
  return text if len(text) <= _LONGEST else f"{text[:_LONGEST - 1]}…"


def _small(pixels: np.ndarray, side: int) -> np.ndarray:
  """Fits an image into a white square of the grid."""
  height, width = pixels.shape[:2]
  scale = min(1.0, side / max(height, width))
  image = Image.fromarray(pixels)
  if scale < 1:
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
  square = Image.new("RGB", (side, side), "white")
  square.paste(image)
  return np.asarray(square)
