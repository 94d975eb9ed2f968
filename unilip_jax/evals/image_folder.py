"""A folder of any model's images, as the commands `fid` and `pairs` read it."""

from collections.abc import Iterator, Mapping
import concurrent.futures
import dataclasses
import hashlib
import json
import os
from typing import Any
import zlib

from etils import epath

from unilip_jax.common import errors, paths

# Those of pytorch-fid; data/decode.py reads them, and opens a file by its content.
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


@dataclasses.dataclass(frozen=True)
class ImageFolder:
  """Holds the names of a folder's own files; subfolders and hidden files are left out.

  Attributes:
    path: of the folder.
    names: of the images, sorted.
    left_out: names of what is no image.
  """

  path: epath.Path
  names: tuple[str, ...]
  left_out: tuple[str, ...]

  @classmethod
  def open(cls, folder: str, option: str) -> "ImageFolder":
    """Lists a folder.

    Raises:
      FileNotFoundError: if it is absent or holds no image; the message starts with `option`.
    """
    path = paths.existing_folder(folder, option)
    entries = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))
    # Reading a pipe or a device might never end.
    names = tuple(n for n in entries if n.lower().endswith(_SUFFIXES) and paths.is_file(path / n))
    if not names:
      raise FileNotFoundError(f"{option}={folder} holds no image ({', '.join(_SUFFIXES)})")
    images = {*names}
    return cls(path, names, tuple(n for n in entries if n not in images))

  def fingerprint(self) -> str:
    """Returns a digest of names and contents."""
    digest = hashlib.sha256()
    for name in self.names:
      digest.update(f"{name}\0{zlib.crc32((self.path / name).read_bytes())}\n".encode())
    return digest.hexdigest()[:16]

  def batches(self, size: int, transform: Any = lambda pixels: pixels) -> Iterator[list[Any]]:
    """Yields transform(uint8[H, W, 3]) of the images in batches; threads decode the next one meanwhile.

    Raises:
      ValueError: at the end, naming all images that cannot be read; no batch follows the first of them.
    """
    from unilip_jax.data import decode, rgb

    def read(name: str) -> Any:
      try:
        pixels = decode.pixels((self.path / name).read_bytes(), rgb.MAX_PIXELS)
      except decode.BadImageError as error:
        return f"{name}: {error}"
      return transform(pixels)

    chunks = [self.names[i:i + size] for i in range(0, len(self.names), size)]
    broken: list[str] = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      ahead = [pool.submit(read, name) for name in chunks[0]]
      for following in [*chunks[1:], ()]:
        current, ahead = ahead, [pool.submit(read, name) for name in following]
        values = [future.result() for future in current]
        broken += [value for value in values if isinstance(value, str)]
        if not broken:
          yield values
    if broken:
      raise ValueError(f"{self.path}: {len(broken)} images cannot be read:\n{errors.listed(broken)}")


def print_result(result: Mapping[str, Any], *, as_json: bool) -> None:
  """Prints what one of the commands computed, a line for each value or as one JSON object."""
  if as_json:
    print(json.dumps(result, ensure_ascii=False))
    return
  for name, value in result.items():
    print(f"{name:<22} {value:.6g}" if isinstance(value, float) else f"{name:<22} {value}")
