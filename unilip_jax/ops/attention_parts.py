"""Attention over a few examples at a time, so that their scores stay in a TPU's on-chip memory.

XLA keeps an array in the vector memory of a v5e or v6e, 128 MiB, until its last use, if it fits. The scores
of InternViT at 448 px take 67 MB an image in float32. Those of one image fit; those of two do not, and then
every layer writes and reads them several times. Compiled for a v5e, eight images take an estimated 2.4 ms
at once and 0.6 ms one by one; with gradients, which recompute the scores of a part, 9.3 and 3.8 ms
(`python -m benchmarks.attention --topology=v5e:2x2`).
"""

from collections.abc import Callable
import functools

import jax
from jax.sharding import PartitionSpec as P

from unilip_jax.ops import backend

# A v5p's smaller memory holds the scores of no image; there parts are estimated slower.
_HEADS_OF_72 = ("TPU v5 lite", "TPU v5e")
_LARGE_MEMORY = (*_HEADS_OF_72, "TPU v6 lite", "TPU v6e")
# Bytes of float32 scores. XLA's choice depends on what else is alive; these follow its estimates.
_FITS_AT_ONCE = 100e6  # all examples at once
_PART = 40e6  # several examples at once, with what their gradients need
_EXAMPLE = 70e6  # one alone


def examples_per_part(batch: int, score_bytes: int, head_dim: int) -> int:
  """Chooses how many examples the device that is traced for attends to at once.

  Args:
    batch: examples on all devices.
    score_bytes: of one example's scores, float32[N, Q, S].
    head_dim: H. Heads of 72 and 112, the DiT's, fill tiles of 128 badly: in parts they are estimated slower
      on a v6e, and those of 112 with several examples also on a v5e, so they run at once.

  Returns:
    A divisor of the examples on one device; 0 to attend to all at once.
  """
  examples = backend.on_one_device(batch)
  kinds = _LARGE_MEMORY if head_dim % 64 == 0 else _HEADS_OF_72 if head_dim == 72 else ()
  if (backend.name() != "tpu" or backend.device_kind() not in kinds
      or examples * score_bytes <= _FITS_AT_ONCE or score_bytes > _EXAMPLE):
    return 0
  return max(n for n in range(1, examples + 1)
             if not examples % n and (n == 1 or n * score_bytes <= _PART))


def in_parts(
    attend: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array,
    mask: jax.Array | None, examples: int
) -> jax.Array:
  """Computes `attend(q, k, v, mask=mask)`, on every device `examples` at a time.

  Args:
    attend: computes every example independently.
    q: float[B, Q, N, H], B a multiple of `examples` on every device.
    k: float[B, S, K, H].
    v: float[B, S, K, H].
    mask: bool[B or 1, ...] or None.
    examples: of a part.

  Returns:
    float[B, Q, N, H].
  """
  by_example, common = [q, k, v], []
  if mask is not None:
    (common if mask.shape[0] == 1 else by_example).append(mask)

  @functools.partial(jax.checkpoint, prevent_cse=False)  # inside a loop there is nothing to merge with
  def one(q, k, v, *masks):
    return attend(q, k, v, mask=masks[0] if masks else None)

  def local(by_example, common):
    parts = [x.reshape(-1, examples, *x.shape[1:]) for x in by_example]
    y = jax.lax.scan(lambda _, part: (None, one(*part, *common)), None, parts)[1]
    return y.reshape(by_example[0].shape)

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return local(by_example, common)
  # With shard_map, since a loop over a split dimension would make every device visit all examples.
  return jax.shard_map(
      local, mesh=mesh, in_specs=(P(mesh.axis_names), P()), out_specs=P(mesh.axis_names))(
          by_example, common)
