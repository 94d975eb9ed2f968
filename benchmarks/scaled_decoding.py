"""Measures what data.decode=scaled changes in the pixels of photographs.

  python -m benchmarks.scaled_decoding

Reads photographs that scikit-learn and scikit-image include, saves them as JPEG at their own size, and
compares `decode.prepare` with and without `scaled` for several ratios of the JPEG's size to the result's:
1024 px to 448 px is 2.29. Writes benchmarks/results/scaled_decoding_cpu.json.
"""

import argparse
import io

import numpy as np
from PIL import Image
from skimage import data
from sklearn import datasets

from benchmarks import harness
from unilip_jax.data import decode

_RATIOS = (2.0, 2.29, 3.0, 4.57)  # 2.29 and 4.57: 1024 px to 448 and 224
_QUALITY = 90


def _photographs() -> dict[str, np.ndarray]:
  """Returns uint8[H, W, 3] by name."""
  samples = datasets.load_sample_images()
  names = [name.rpartition("/")[2].partition(".")[0] for name in samples.filenames]
  return dict(zip(names, samples.images)) | {
      name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.parse_args()
  photographs, rows = _photographs(), []
  for ratio in _RATIOS:
    measured = []
    for pixels in photographs.values():
      buffer = io.BytesIO()
      Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY)
      side = int(min(pixels.shape[:2]) / ratio)
      exact, scaled = (
          decode.prepare(buffer.getvalue(), size=side, crop="center", flip=False, max_pixels=10**8,
                         rng=None, scaled=scaled).astype(np.float64) for scaled in (False, True))
      difference = np.abs(exact - scaled)
      measured.append((10 * np.log10(255**2 / (difference**2).mean()), difference.mean(), difference.max()))
    decibels, mean, largest = np.array(measured).T
    rows += [harness.row(f"ratio {ratio}, peak signal-to-noise ratio", decibels, "dB", True) | {
                 "least": float(decibels.min())},
             harness.row(f"ratio {ratio}, mean absolute difference", mean, "levels of 255"),
             harness.row(f"ratio {ratio}, largest difference", largest, "levels of 255") | {
                 "most": float(largest.max())}]
  harness.write("benchmarks/results/scaled_decoding_cpu.json", "scaled_decoding",
                {"photographs": list(photographs), "quality": _QUALITY, "ratios": _RATIOS}, rows)


if __name__ == "__main__":
  main()
