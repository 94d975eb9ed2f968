"""Patches of the colour photographs that scikit-image includes."""

import numpy as np
from skimage import data


def patches(count: int, size: int) -> np.ndarray:
  """Cuts uint8[count, size, size, 3] out of four photographs in turn, at places that differ."""
  sources = (data.astronaut, data.coffee, data.chelsea, data.rocket)
  photographs = [np.asarray(load())[..., :3] for load in sources]
  random = np.random.default_rng(0)
  result = []
  for i in range(count):
    photograph = photographs[i % len(photographs)]
    row, column = (random.integers(0, side - size + 1) for side in photograph.shape[:2])
    result.append(photograph[row:row + size, column:column + size])
  return np.stack(result)
