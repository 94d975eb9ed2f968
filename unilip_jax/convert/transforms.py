"""Moves between PyTorch's layouts and ours, each with its inverse; values never change."""

from collections.abc import Callable
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Transform:
  """One move.

  Attributes:
    to_ours: PyTorch's tensor -> our array of one layer.
    to_torch: undoes it.
    torch_rank: of the tensor; None for any.
    our_rank: of the array; None for any.
    singletons: axes of the tensor that are dropped, so that they must have length 1.
    length: of the tensor's first axis; None for any.
  """

  to_ours: Callable[[np.ndarray], np.ndarray]
  to_torch: Callable[[np.ndarray], np.ndarray]
  torch_rank: int | None = None
  our_rank: int | None = None
  singletons: tuple[int, ...] = ()
  length: int | None = None


def _same(x: np.ndarray) -> np.ndarray:
  return x


_CONV = Transform(
    lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1), torch_rank=4, our_rank=4)

TRANSFORMS: dict[str, Transform] = {
    "copy": Transform(_same, _same),
    # (out, in) <-> (in, out)
    "linear": Transform(lambda x: x.T, lambda x: x.T, torch_rank=2, our_rank=2),
    # (out, in, h, w) <-> (h, w, in, out)
    "conv": _CONV,
    # (channels, 1, h, w) <-> (h, w, 1, channels): the same move; for feature_group_count=channels
    "depthwise": _CONV,
    # (out, in, 1, 1) <-> (in, out): a 1×1 convolution that is a Dense here
    "conv1x1_linear": Transform(
        lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None],
        torch_rank=4, our_rank=2, singletons=(2, 3)),
    # (groups·size, size, 1, 1) <-> (groups, in, out): a grouped 1×1 convolution, square groups
    "grouped1x1": Transform(
        lambda x: x[:, :, 0, 0].reshape(-1, x.shape[1], x.shape[1]).transpose(0, 2, 1),
        lambda x: x.transpose(0, 2, 1).reshape(-1, x.shape[1])[:, :, None, None],
        torch_rank=4, our_rank=3, singletons=(2, 3)),
    # (channels, 1, 1) <-> (channels,)
    "channels": Transform(
        lambda x: x[:, 0, 0], lambda x: x[:, None, None],
        torch_rank=3, our_rank=1, singletons=(1, 2)),
    # (1, n, width) <-> (n, width)
    "unbatched": Transform(
        lambda x: x[0], lambda x: x[None], torch_rank=3, our_rank=2, singletons=(0,)),
    # (1, channels, 1, 1) <-> (channels,)
    "channels_4d": Transform(
        lambda x: x[0, :, 0, 0], lambda x: x[None, :, None, None],
        torch_rank=4, our_rank=1, singletons=(0, 2, 3)),
}


def get(transform: str | Transform) -> Transform:
  """The move of that name, or the one given.

  Raises:
    ValueError: for an unknown name.
  """
  if isinstance(transform, Transform):
    return transform
  if transform not in TRANSFORMS:
    raise ValueError(f"unknown transform {transform!r}; known: {', '.join(TRANSFORMS)}")
  return TRANSFORMS[transform]


def padded_vocabulary(used: int, rows: int, *, head: bool = False) -> Transform:
  """A table of `used` rows in PyTorch, with zeros up to `rows` here; export strips them.

  Args:
    used: rows in PyTorch, (used, width).
    rows: rows here.
    head: whether it is an output head: [width, rows] here, else [rows, width].
  """
  def pad(x):
    return np.concatenate([x, np.zeros((rows - used, x.shape[1]), x.dtype)])

  to_ours = (lambda x: pad(x).T) if head else pad
  to_torch = (lambda x: x.T[:used]) if head else (lambda x: x[:used])
  return Transform(to_ours, to_torch, torch_rank=2, our_rank=2, length=used)


def fits(transform: str | Transform, shape: tuple[int, ...]) -> bool:
  """Whether a PyTorch tensor of `shape` can make the move."""
  move = get(transform)
  if move.torch_rank is not None and len(shape) != move.torch_rank:
    return False
  if transform == "grouped1x1" and shape[0] % shape[1]:
    return False
  if move.length is not None and shape[0] != move.length:
    return False
  return all(shape[axis] == 1 for axis in move.singletons)
