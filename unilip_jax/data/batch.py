"""The batch contract: names, shapes, dtypes and ranges of the batches that a step receives.

Model initialisation, synthetic data, planning, the loop and the tests all use these functions.
"""

from collections.abc import Mapping
import math
from typing import Any

import jax
import numpy as np

from unilip_jax.common import rectangles

Spec = Mapping[str, Any]  # {name: ShapeDtypeStruct}, or sub-batches by name

# In every batch or sub-batch:
#   _id    int64[B]   stream position (training) or index in the set (evaluation); on the host only
#   _mask  bool[B]    False for padding of the last evaluation batch and for broken records


def _entries(batch_size: int, **shapes: tuple[tuple[int, ...], Any]) -> dict[str, Any]:
  entries = shapes | {"_mask": ((), np.bool_), "_id": ((), np.int64)}
  return {name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
          for name, (shape, dtype) in entries.items()}


def reconstruct_spec(batch_size: int, image_size: int | rectangles.Size) -> Spec:
  """Returns the spec of a reconstruction batch: image uint8[B, H, W, 3] in 0..255, sRGB.

  Args:
    batch_size: B.
    image_size: pixels per side of a square, or (H, W).
  """
  return _entries(batch_size, image=((*rectangles.both_sides(image_size), 3), np.uint8))


def t2i_spec(
    batch_size: int, image_size: int | rectangles.Size, length: int,
    latents: tuple[int, int, int] | None = None) -> Spec:
  """Returns the spec of a text→image batch.

  Args:
    batch_size: B.
    image_size: R, pixels per side; or (height, width) instead of R, R.
    length: L, tokens of a prompt.
    latents: (h, w, C) if the batch holds the target's latents instead of the image.

  Returns:
    image: uint8[B, R, R, 3], the target; or latents: float32[B, h, w, C], unscaled.
    tokens: int32[B, L], the prompt through `<img>`, padded on the right.
    token_mask: bool[B, L], False for padding.
  """
  target = ({"latents": (latents, np.float32)} if latents
            else {"image": ((*rectangles.both_sides(image_size), 3), np.uint8)})
  return _entries(
      batch_size, **target, tokens=((length,), np.int32), token_mask=((length,), np.bool_))


def edit_spec(
    batch_size: int, image_size: int | rectangles.Size, length: int,
    latents: tuple[int, int, int] | None = None) -> Spec:
  """Returns the spec of an editing batch: `t2i_spec` and cond_image uint8[B, 1, R, R, 3], the input."""
  return dict(t2i_spec(batch_size, image_size, length, latents)) | {
      "cond_image": jax.ShapeDtypeStruct(
          (batch_size, 1, *rectangles.both_sides(image_size), 3), np.uint8)}


def prompt_spec(
    batch_size: int, length: int, record_bytes: int, image_size: int | None = None) -> Spec:
  """Returns the spec of a batch of prompts for reward training.

  Args:
    batch_size: B.
    length: L, tokens of a prompt.
    record_bytes: N.
    image_size: R, pixels per side of the image to edit; None without.

  Returns:
    tokens and token_mask: see `t2i_spec`; cond_image: see `edit_spec`.
    _record: uint8[B, N], JSON {"prompt": text, "data": object for the rewards}, padded with zeros; on the
      host only.
  """
  image = {} if image_size is None else {"cond_image": ((1, image_size, image_size, 3), np.uint8)}
  return _entries(batch_size, **image, tokens=((length,), np.int32), token_mask=((length,), np.bool_),
                  _record=((record_bytes,), np.uint8))


def understand_spec(batch_size: int, image_size: int, length: int, tiles: int = 1) -> Spec:
  """Returns the spec of a batch of conversations about an image.

  Returns:
    cond_image: uint8[B, T, R, R, 3], the image's tiles.
    tokens: int32[B, L], the complete conversation, padded on the right.
    token_mask: bool[B, L], False for padding.
    answer_mask: bool[B, L], True for the tokens of the answers, which the loss is taken on.
  """
  return _entries(
      batch_size, cond_image=((tiles, image_size, image_size, 3), np.uint8),
      tokens=((length,), np.int32), token_mask=((length,), np.bool_),
      answer_mask=((length,), np.bool_))


def part_sizes(config: Any) -> dict[str, int]:
  """Returns the examples per sub-batch of a global batch; {"": B} without sub-batches.

  Args:
    config: uses batch_size, data.example, data.edit_share and data.part_multiple.

  Raises:
    ValueError: if a sub-batch would be empty.
  """
  if config.data.example not in ("t2i", "prompt"):
    return {"": config.batch_size}
  if config.data.edit_share in (0, 1):
    return {"edit" if config.data.edit_share else "t2i": config.batch_size}
  multiple = config.data.part_multiple
  edit = round(config.batch_size * config.data.edit_share / multiple) * multiple
  sizes = {"t2i": config.batch_size - edit, "edit": edit}
  if min(sizes.values()) <= 0:
    raise ValueError(
        f"batch_size={config.batch_size} with data.edit_share={config.data.edit_share} and "
        f"data.part_multiple={multiple} gives sub-batches {sizes}; raise batch_size or lower the "
        "multiple")
  return sizes


def check_divides(config: Any, mesh: jax.sharding.Mesh) -> None:
  """Raises ValueError if a training (sub-)batch does not divide over micro-batches and devices."""
  unit = mesh.size * config.grad_accum_steps
  parts = part_sizes(config)
  for name, size in parts.items():
    if size % unit == 0:
      continue
    over = f"{mesh.size} devices" + (
        f" × grad_accum_steps={config.grad_accum_steps}" if config.grad_accum_steps > 1 else "")
    if len(parts) == 1:
      raise ValueError(f"batch_size={size} does not divide over {over}; choose a multiple of {unit}, "
                       f"e.g. {math.ceil(size / unit) * unit}")
    raise ValueError(
        f"batch_size={config.batch_size} makes sub-batches {parts}, and {name} does not divide over "
        f"{over}; set data.part_multiple={unit} and batch_size to a multiple of it that leaves "
        f"data.edit_share={config.data.edit_share} about right")


def parts(batch: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """Returns the sub-batches by name; {"": batch} for a batch without."""
  return {"": batch} if "_mask" in batch else dict(batch)


def ids(batch: Mapping[str, Any]) -> np.ndarray:
  """Returns int64[B]: the ids of a batch, concatenated over its sub-batches."""
  return np.concatenate([part["_id"] for part in parts(batch).values()])


def device_part(batch: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the entries that a jitted step takes: all but the ids, which JAX would truncate to int32."""
  return {k: device_part(v) if isinstance(v, Mapping) else v
          for k, v in batch.items() if k != "_id"}


def image_size(batch: Mapping[str, Any]) -> rectangles.Size:
  """Returns (height, width) of the images of a batch, or of its spec."""
  part = next(iter(parts(batch).values()))
  return tuple(part["image"].shape[1:3])


def of_size(spec: Spec, size: rectangles.Size) -> Spec:
  """Returns the spec of a batch of reconstruction or generation with images of (height, width)."""
  def resized(name, s):
    if isinstance(s, Mapping):
      return of_size(s, size)
    if name not in ("image", "cond_image"):
      return s
    return jax.ShapeDtypeStruct((*s.shape[:-3], *size, s.shape[-1]), s.dtype)

  return {name: resized(name, s) for name, s in spec.items()}


def synthetic(spec: Spec, seed: int = 0) -> dict[str, Any]:
  """Returns random values of the given spec: masks all True, ids counting from 0, tokens below 64."""
  rng = np.random.default_rng(seed)
  batch: dict[str, Any] = {}
  for name, s in spec.items():
    if isinstance(s, Mapping):
      batch[name] = synthetic(s, seed + 1 + len(batch))
    elif s.dtype == np.bool_:
      batch[name] = np.ones(s.shape, np.bool_)
    elif name == "_id":
      batch[name] = np.arange(s.shape[0], dtype=np.int64)
    else:
      batch[name] = rng.integers(0, 64 if name == "tokens" else 256, s.shape).astype(s.dtype)
  return batch
