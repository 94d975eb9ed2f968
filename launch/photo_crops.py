"""Cuts photographs that matplotlib and scikit-learn include into crops: real images without a download.

  python launch/photo_crops.py --out=DIR     # DIR/train/*.jpg and DIR/test/*.jpg

The right fifth of every photograph gives the test crops, the rest the training crops.
"""

import argparse
import pathlib

from matplotlib import cbook
import numpy as np
from PIL import Image
from sklearn import datasets

_SIDE = 160  # pixels of a crop
_COUNTS = {"train": 240, "test": 40}  # per photograph


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", required=True)
  out = pathlib.Path(parser.parse_args().out)
  photographs = [Image.open(p).convert("RGB") for p in _photographs()]
  for split, count in _COUNTS.items():
    folder = out / split
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number, photograph in enumerate(photographs):
      part = _part(photograph, split)
      for i in range(count):
        left, top = (int(rng.integers(max(1, n - _SIDE + 1))) for n in part.size)
        crop = part.crop((left, top, left + _SIDE, top + _SIDE))
        crop.save(folder / f"{number}-{i:03d}.jpg", quality=95)
  print(f"{len(photographs)} photographs, {_COUNTS} crops each, in {out}")


def _photographs() -> list[pathlib.Path]:
  """Lists a portrait, a temple and a flower: each is hard to reconstruct in another way."""
  portrait = pathlib.Path(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
  folder = pathlib.Path(datasets.__file__).parent / "images"
  return [portrait, folder / "china.jpg", folder / "flower.jpg"]


def _part(image: Image.Image, split: str) -> Image.Image:
  """Returns the left four fifths or the right fifth; at least as wide as a crop."""
  width, height = image.size
  cut = width - max(width // 5, _SIDE)
  return image.crop((cut, 0, width, height) if split == "test" else (0, 0, cut, height))


if __name__ == "__main__":
  main()
