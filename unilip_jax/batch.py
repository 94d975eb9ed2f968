"""The batch contract: names, shapes, dtypes and ranges of what the data pipeline hands to a step.

Model initialisation, synthetic data, the loop and the tests all read these functions.
"""

from collections.abc import Mapping

import jax
import numpy as np

# Entries beside the images:
#   _id    int64[B]   stream position (training) or index in the set (evaluation)
#   _mask  bool[B]    False marks the padding of the last evaluation batch


def reconstruct_spec(batch_size: int, image_size: int) -> dict[str, jax.ShapeDtypeStruct]:
  """A reconstruction batch.

  Returns:
    image: uint8[B, R, R, 3] in 0..255, sRGB.
    _mask: bool[B].
    _id: int64[B]; on the host only, it never goes to the device.
  """
  return {
      "image": jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), np.uint8),
      "_mask": jax.ShapeDtypeStruct((batch_size,), np.bool_),
      "_id": jax.ShapeDtypeStruct((batch_size,), np.int64),
  }


def device_part(batch: Mapping) -> dict:
  """The entries that a jitted step takes: all but the ids, which JAX would truncate to int32."""
  return {k: v for k, v in batch.items() if k != "_id"}


def synthetic(spec: Mapping[str, jax.ShapeDtypeStruct], seed: int = 0) -> dict[str, np.ndarray]:
  """A batch of random values of the given spec: masks all True, ids counting from 0."""
  rng = np.random.default_rng(seed)
  batch = {}
  for name, s in spec.items():
    if s.dtype == np.bool_:
      batch[name] = np.ones(s.shape, np.bool_)
    elif name == "_id":
      batch[name] = np.arange(s.shape[0], dtype=np.int64)
    else:
      batch[name] = rng.integers(0, 256, s.shape).astype(s.dtype)
  return batch
