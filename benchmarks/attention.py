"""Estimates or times attention at 1b: complete or in parts (ops/attention_parts.py), with gradients or not.

  python -m benchmarks.attention --topology=v5e:2x2     # compiled for one TPU chip; no TPU is used
  python -m benchmarks.attention                        # timed on this machine's accelerator

The result decides which TPUs compute attention in parts, and for how many examples at once. Compiled, a row
is the compiler's own estimate of cycles at the chip's clock, with the memory traffic and temporaries of the
program. "whole" is attention over all examples at once, "chosen" what ops/attention.py uses there. Timed,
padding by a mask is also compared with padding by a length. Writes
benchmarks/results/attention_<device or topology>.json.
"""

import argparse
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import harness, programs
from unilip_jax.ops import attention, attention_parts, backend
from unilip_jax.plan import topology

# Queries, keys, heads, heads of keys, width of a head, whether a mask hides keys.
_CASES = {
    "ViT, 448 px": (1025, 1025, 16, 16, 64, False),
    "ViT, 224 px": (257, 257, 16, 16, 64, False),
    "LLM, 512 tokens": (512, 512, 14, 2, 64, True),
    "DiT, 196 latents, 300 states": (196, 300, 20, 20, 112, True),
}
_PADDED = {  # gen2 at 1b; three quarters of the keys are valid
    "connector, 512 states": (512, 512, 14, 2, 64, True),
    "DiT, 256 latents, 512 states": (256, 512, 16, 16, 72, True),
}
_BATCHES = (1, 2, 8, 32)


def _plain(q, k, v, mask):
  return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")


def _in_parts(q, k, v, mask, examples):
  return attention_parts.in_parts(jax.nn.dot_product_attention, q, k, v, mask, examples)


def _with_gradients(function):
  def run(q, k, v, mask, dy):
    y, gradients = jax.vjp(lambda *qkv: function(*qkv, mask), q, k, v)
    return y, gradients(dy)

  return run


def _functions(batch: int, scores: int) -> dict[str, Any]:
  """Returns {name: (q, k, v, mask) -> y}; parts are those whose scores stay under 80 MB."""
  found = {"chosen": lambda q, k, v, mask: attention.attention(q, k, v, mask=mask), "whole": _plain}
  for examples in (1, 2, 4, 8, 16):
    if examples < batch and not batch % examples and examples * scores < 80e6:
      found[f"{examples} at once"] = functools.partial(_in_parts, examples=examples)
  return found


def _specs(case: tuple, batch: int, sharding: Any = None) -> list[Any]:
  """Returns q, k, v, mask and the gradient of the output."""
  queries, keys, heads, kv_heads, width, masked = case
  spec = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(
      (batch, *shape), dtype, sharding=sharding)
  return [spec(queries, heads, width), spec(keys, kv_heads, width), spec(keys, kv_heads, width),
          spec(1, queries, keys, dtype=jnp.bool_) if masked else None, spec(queries, heads, width)]


def _programs(sharding: Any = None):
  """Yields (name, function, arguments' shapes) of every row."""
  for name, case in _CASES.items():
    for batch in _BATCHES:
      *inputs, dy = _specs(case, batch, sharding)
      for form, function in _functions(batch, 4 * case[0] * case[1] * case[2]).items():
        yield f"{name}, batch {batch}, {form}", function, inputs
        yield f"{name}, batch {batch}, {form}, with gradients", _with_gradients(function), [*inputs, dy]


def _padded():
  """Yields the same of attention to padded keys, for each form of padding."""
  for name, case in _PADDED.items():
    for form, last in {"mask": False, "length": True}.items():
      function = lambda q, k, v, mask, last=last: attention.attention(q, k, v, mask=mask, pads_last=last)
      q, k, v, mask, dy = _specs(case, _BATCHES[-1])
      mask = jax.ShapeDtypeStruct((_BATCHES[-1], 1, 1, case[1]), jnp.bool_)
      yield f"{name}, padding by a {form}", function, [q, k, v, mask]
      yield f"{name}, padding by a {form}, with gradients", _with_gradients(function), [q, k, v, mask, dy]


def _compiled(where: str) -> list[dict[str, Any]]:
  found = topology.parse(where)
  with backend.planning("tpu", found.chip.device_kind):
    return [programs.estimated(name, function, specs, found)
            for name, function, specs in _programs(topology.one_chip(found))]


def _arrays(specs: list[Any]) -> list[Any]:
  """Makes random numbers; a mask is causal, or hides the last quarter of the keys."""
  keys = jax.random.split(jax.random.key(0), len(specs))
  seen = lambda shape: 3 * shape[-1] // 4 - 1 if shape[-2] == 1 else 0  # above the diagonal
  return [None if s is None else jnp.tril(jnp.ones(s.shape, s.dtype), seen(s.shape))
          if s.dtype == jnp.bool_ else jax.random.normal(key, s.shape, s.dtype)
          for key, s in zip(keys, specs)]


def _timed(repeats: int) -> list[dict[str, Any]]:
  return programs.timed(
      ((name, function, _arrays(specs)) for name, function, specs in itertools.chain(
          _programs(), _padded())), repeats)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--topology", default="", help="compile only, e.g. v5e:2x2")
  parser.add_argument("--repeats", type=int, default=20)
  args = parser.parse_args()
  if args.topology:
    rows, label = _compiled(args.topology), args.topology.replace(":", "_")
  else:
    rows, label = _timed(args.repeats), harness.label()
  harness.write(f"benchmarks/results/attention_{label}.json", "attention", vars(args), rows)


if __name__ == "__main__":
  main()
