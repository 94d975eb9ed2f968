"""Estimates the layers that most of a gen2 step at 1b consists of, with the TPU's compiler.

  python -m benchmarks.gen2_parts --topology=v5e:2x2

Nothing runs: layers are compiled for one chip, with the examples of a chip where it has 32: 23 text→image
and 9 edits at 448 px, bfloat16. The vision tower is frozen and runs forward only. The DiT's layer and parts
have their gradients; the layer recomputes its activations. Rows are as those of decoder_parts.py. Writes
benchmarks/results/gen2_parts_<topology>.json.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import harness, programs
from unilip_jax.models import layers, presets, sana
from unilip_jax.models.vision import internvit
from unilip_jax.ops import backend
from unilip_jax.plan import topology
from unilip_jax.training import flops

_DTYPE = jnp.bfloat16
_EXAMPLES = (23, 9)  # text→image, edits
_STATES = (512, 768)  # of their prompts: 256 and 512 tokens, and 256 queries
_GRID = (16, 16)  # latents


def _parts() -> Iterator[tuple[str, Any, list[Any], bool]]:
  """Yields (name, module, shapes of its arguments, whether with gradients)."""
  d = presets.get("1b")
  array = lambda *shape, dtype=_DTYPE: jax.ShapeDtypeStruct(shape, dtype)
  vit = d.tokenizer.vit
  for batch in _EXAMPLES:
    image = array(batch, 1 + vit.grid**2, vit.width)
    yield f"ViT layer, {batch} images", internvit.Layer(vit, _DTYPE), [image], False
  batch, width = sum(_EXAMPLES), d.dit.width
  x = array(batch, _GRID[0] * _GRID[1], width)
  contexts = tuple(array(b, s, width) for b, s in zip(_EXAMPLES, _STATES))
  masks = tuple(array(b, 1, 1, s, dtype=jnp.bool_) for b, s in zip(_EXAMPLES, _STATES))
  cross = sana.CrossAttention(d.dit, _DTYPE)
  yield "DiT cross-attention, with gradients", cross, [x, contexts, masks], True
  gated = sana.GatedConv(d.dit.mlp_ratio, _GRID, _DTYPE)
  yield "DiT gated convolution, with gradients", gated, [x], True
  layer = layers.remat(sana.Layer, "full")(d.dit, _GRID, _DTYPE)
  yield "DiT layer, with gradients", layer, [x, contexts, masks, array(batch, 6, width)], True


def _row(name: str, module: Any, arguments: list[Any], gradients: bool, found: Any) -> dict[str, Any]:
  place = topology.one_chip(found)
  spec = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place)
  params = jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]

  def forward(params, *arguments):
    y = module.apply({"params": params}, *arguments)
    return y[0] if isinstance(y, tuple) else y

  def with_gradients(*arguments):
    leaves, structure = jax.tree.flatten(arguments)
    is_float = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]  # the others are masks

    def of_floats(floats):
      rest = iter(floats)
      return forward(*structure.unflatten([next(rest) if f else x for x, f in zip(leaves, is_float)]))

    y, pull = jax.vjp(of_floats, [x for x, f in zip(leaves, is_float) if f])
    return y, pull(jnp.ones_like(y))

  run = with_gradients if gradients else forward
  specs = jax.tree.map(spec, [params, *arguments])
  return programs.estimated(name, run, specs, found) | {
      "products_at_peak_ms": 1e3 * flops.count(run, params, *arguments) / found.chip.peak}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--topology", default="v5e:2x2")
  args = parser.parse_args()
  found = topology.parse(args.topology)
  rows = []
  with backend.planning("tpu", found.chip.device_kind):
    for part in _parts():
      rows.append(_row(*part, found))
      print(rows[-1], flush=True)
  label = args.topology.replace(":", "_")
  harness.write(f"benchmarks/results/gen2_parts_{label}.json", "gen2_parts", vars(args), rows)


if __name__ == "__main__":
  main()
