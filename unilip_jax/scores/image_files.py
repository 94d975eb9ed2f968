"""Checks a folder of images, made by any model, against a benchmark's layout: each problem is named."""

import collections
from collections.abc import Sequence
import dataclasses
import hashlib
import io
import re
from typing import Any

from etils import epath
from PIL import Image

from unilip_jax.common import errors, paths
from unilip_jax.scores import base

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_LAYOUT = ("grid.png",)  # names that official layouts hold next to the images

Key = tuple[str, int]  # (item id, k)


@dataclasses.dataclass(frozen=True)
class Folder:
  """Describes the images of a benchmark in a folder.

  Attributes:
    path: of the folder.
    files: {(item id, k): path relative to the folder} of the readable images.
    missing: (item id, k) of absent images.
    unreadable: {relative path: what is wrong}.
    wrong_size: {relative path: its size and the expected one}.
    identical: {relative path: an earlier path of another item with the same bytes}.
    unknown: images that belong to no item, each with what it resembles.
  """

  path: epath.Path
  files: dict[Key, str]
  missing: list[Key]
  unreadable: dict[str, str]
  wrong_size: dict[str, str]
  identical: dict[str, str]
  unknown: list[str]

  def read(self, key: Key) -> bytes:
    """Reads the file of an image."""
    return (self.path / self.files[key]).read_bytes()

  def lines(self) -> list[str]:
    """One line a problem."""
    return [*(f"missing: image {k} of item {i}" for i, k in self.missing),
            *(f"unreadable: {path}: {why}" for path, why in self.unreadable.items()),
            *(f"wrong size: {path}: {why}" for path, why in self.wrong_size.items()),
            *(f"identical: {path} has the bytes of {other}" for path, other in self.identical.items()),
            *(f"unknown: {line}" for line in self.unknown)]

  def summary(self) -> dict[str, Any]:
    """Counts and the first names of every problem, for records."""
    return {"folder": self.path.name, "images": len(self.files), "missing": len(self.missing),
            "unreadable": len(self.unreadable), "wrong_size": len(self.wrong_size),
            "identical": len(self.identical), "unknown": len(self.unknown),
            "problems": errors.listed(self.lines()).splitlines()}


def check(
    benchmark: base.Benchmark, items: Sequence[base.Item], folder: epath.PathLike, *,
    images_per_item: int | None = None, size: int | None = None) -> Folder:
  """Compares a folder with the layout of a benchmark.

  Args:
    benchmark: whose layout.
    items: all items.
    folder: of the images, local or gs://.
    images_per_item: expected images of each item; None takes the official number.
    size: pixels per side that every sample must have; None takes that of most images of a generation
      benchmark, and allows any in editing.

  Raises:
    FileNotFoundError: if the folder is absent, or holds no image of an item, with the expected paths.
  """
  root = paths.path(folder)
  if not root.is_dir():
    raise FileNotFoundError(f"no folder of images {root}")
  count = images_per_item or benchmark.images_per_item
  expected = {(item.id, k): benchmark.output_path(item, k) for item in items for k in range(count)}
  files, missing, unreadable, sizes, identical = {}, [], {}, {}, {}
  first_with: dict[str, Key] = {}
  for key, path in expected.items():
    if not paths.is_file(root / path):
      missing.append(key)
      continue
    data = (root / path).read_bytes()
    try:
      sizes[path] = image_size(data)
    except ValueError as error:
      unreadable[path] = str(error)
      continue
    files[key] = path
    other = first_with.setdefault(hashlib.sha256(data).hexdigest(), key)
    if other[0] != key[0]:
      identical[path] = expected[other]
  if not files and not unreadable:
    raise FileNotFoundError(
        f"{root} holds no image of {benchmark.name}'s items; expected for example "
        f"{', '.join(list(expected.values())[:3])}")
  return Folder(root, files, missing, unreadable, _wrong_sizes(benchmark, sizes, size), identical,
                _unknown(benchmark, items, root, set(expected.values())))


def read_input(item: base.Item) -> bytes:
  """Reads the first input image of an item.

  Raises:
    FileNotFoundError, ValueError: for an image that is absent or damaged, with the item's id.
  """
  image = item.images[0]
  name = f"item {item.id}: {'its input image' if isinstance(image, bytes) else image}"
  try:
    data = base.image_bytes(image)
    image_size(data)
  except FileNotFoundError as error:
    raise FileNotFoundError(f"{name} does not exist") from error
  except ValueError as error:
    raise ValueError(f"{name}: {error}") from error
  return data


def image_size(data: bytes) -> tuple[int, int]:
  """Returns (width, height) of an image file after checking that it is complete.

  Raises:
    ValueError: for bytes that are no complete image.
  """
  try:
    with Image.open(io.BytesIO(data)) as image:
      size = image.size
      if image.format == "PNG":
        image.verify()  # the check sums of every part; decoding takes longer
      else:
        image.load()
  except (OSError, SyntaxError, Image.DecompressionBombError) as error:
    raise ValueError(f"{len(data)} bytes that are no complete image ({error})") from error
  return size


def _wrong_sizes(
    benchmark: base.Benchmark, sizes: dict[str, tuple[int, int]], size: int | None) -> dict[str, str]:
  if not sizes or (size is None and benchmark.kind != "generation"):
    return {}
  expected = ((size * benchmark.tiles_per_side,) * 2 if size
              else collections.Counter(sizes.values()).most_common(1)[0][0])
  return {path: f"{w}×{h}, expected {expected[0]}×{expected[1]}" for path, (w, h) in sizes.items()
          if (w, h) != expected}


def _unknown(
    benchmark: base.Benchmark, items: Sequence[base.Item], root: epath.Path, expected: set[str]
) -> list[str]:
  """Lists images that belong to no item; one that differs only in zeros, case or suffix is a duplicate."""
  found = sorted((folder / name).relative_to(root).as_posix() for folder, _, names in root.walk()
                 for name in names if name.lower().endswith(_SUFFIXES) and name not in _LAYOUT)
  found = [path for path in found if path not in expected]
  if not found:
    return []
  side = {path for item in items for path in benchmark.side_paths(item)}
  plain = {_plain(path): path for path in expected}
  return [path + (f" resembles {plain[_plain(path)]}: a doubled id or another suffix"
                  if _plain(path) in plain else "")
          for path in found if path not in side]


def _plain(path: str) -> str:
  stem = path.rsplit(".", 1)[0].lower()
  return re.sub(r"(?<!\d)0+(?=\d)", "", stem)
