"""How far losses move when the loss's frozen networks multiply float32 at a lower precision.

  python -m benchmarks.loss_precision [--size=1b] [--image_size=224] [--images=2]

Emulated on a CPU, which ignores JAX's precision. "high" is three bfloat16 passes on a TPU (operands in
two parts of bfloat16, the product of the small parts left out) and TF32 on a GPU (operands rounded to ten
bits); "bfloat16" is one pass. Networks have random weights, images are smooth noise, a reconstruction is
its image blurred, with noise. Compared are the perceptual loss and the distance of the teacher's features
of both images. Writes benchmarks/results/loss_precision_cpu.json.
"""

import argparse
from collections.abc import Callable
import contextlib
import pathlib
from typing import Any

import jax
from jax._src.lax import lax as lax_internal  # where jax.numpy looks dot_general up
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from unilip_jax.losses import reconstruction as losses
from unilip_jax.models import perceptual, presets, tokenizer
from unilip_jax.ops import backend

_OUT = pathlib.Path(__file__).parent / "results/loss_precision_cpu.json"
Product = Callable[[jax.Array, jax.Array], jax.Array]


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", default="1b", choices=presets.SIZES)
  parser.add_argument("--image_size", type=int, default=224)
  parser.add_argument("--images", type=int, default=2)
  args = parser.parse_args()
  rows, exact = [], None
  for name, product in _PRODUCTS.items():
    with emulated(product):
      values = _losses(args.size, args.image_size, args.images)
    exact = exact or values
    rows += [{"name": f"{what}, {name}", "unit": "relative", "value": abs(value / exact[what] - 1)}
             for what, value in values.items() if name != "float32"]
    print("\n".join(f"{r['name']}: {r['value']:.2e}" for r in rows[-len(values):]), flush=True)
  harness.save(_OUT, harness.about("loss_precision") | {"settings": vars(args), "rows": rows})


# ---- emulated multiplications


def round_tf32(x: jax.Array) -> jax.Array:
  """Rounds float32 to ten bits of mantissa, ties away from zero, as NVIDIA's cvt.rna."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  return jax.lax.bitcast_convert_type((bits + jnp.uint32(1 << 12)) & jnp.uint32(0xFFFFE000), jnp.float32)


def round_bfloat16(x: jax.Array) -> jax.Array:
  """Rounds float32 to bfloat16."""
  return jax.lax.reduce_precision(x, 8, 7)


def three_passes(multiply: Product, x: jax.Array, y: jax.Array) -> jax.Array:
  """Multiplies two bfloat16 parts of each operand, without the smallest of the four products."""
  parts = lambda z: (round_bfloat16(z), round_bfloat16(z - round_bfloat16(z)))
  (x0, x1), (y0, y1) = parts(x), parts(y)
  return multiply(x0, y0) + multiply(x0, y1) + multiply(x1, y0)


_PRODUCTS: dict[str, Callable[[Product, jax.Array, jax.Array], jax.Array]] = {
    "float32": lambda multiply, x, y: multiply(x, y),
    "three bfloat16 passes": three_passes,
    "TF32": lambda multiply, x, y: multiply(round_tf32(x), round_tf32(y)),
    "bfloat16": lambda multiply, x, y: multiply(round_bfloat16(x), round_bfloat16(y))}


@contextlib.contextmanager
def emulated(product: Callable[[Product, jax.Array, jax.Array], jax.Array]):
  """Replaces dots and convolutions of float32 by `product`."""
  def replacement(original):
    def operation(x, y, *args, **kwargs):
      multiply = lambda x, y: original(x, y, *args, **kwargs)
      return product(multiply, x, y) if x.dtype == jnp.float32 else multiply(x, y)

    return operation

  saved = lax_internal.dot_general, jax.lax.conv_general_dilated
  jax.clear_caches()  # functions of jax.numpy are jitted
  lax_internal.dot_general, jax.lax.conv_general_dilated = map(replacement, saved)
  try:
    yield
  finally:
    lax_internal.dot_general, jax.lax.conv_general_dilated = saved
    jax.clear_caches()


# ---- losses


def _losses(size: str, image_size: int, images: int) -> dict[str, float]:
  preset, rng = presets.get(size), np.random.default_rng(0)
  coarse = rng.uniform(0, 1, (images, image_size // 16, image_size // 16, 3)).astype(np.float32)
  image = jax.image.resize(coarse, (images, image_size, image_size, 3), "cubic").clip(0, 1)
  blurred = jax.image.resize(
      jax.image.resize(image, (images, image_size // 8, image_size // 8, 3), "cubic"), image.shape, "cubic")
  reconstruction = blurred + jnp.asarray(rng.normal(0, 0.02, image.shape), jnp.float32)
  lpips = perceptual.Lpips(preset.vgg, dtype=jnp.float32)
  convnext = perceptual.ConvNext(preset.convnext, dtype=jnp.float32)
  teacher = tokenizer.Tokenizer(preset.tokenizer, dtype=jnp.float32)
  with backend.planning("tpu"):  # XLA's convolutions, not the formulation of CPUs
    weights = {"lpips": _weights(lpips, rng, image, image), "convnext": _weights(convnext, rng, image),
               "teacher": _weights(teacher, rng, image, method="features")}

    def perceptual_loss(reconstruction, image, weights):
      return losses.perceptual(
          lambda a, b: lpips.apply({"params": weights["lpips"]}, a, b),
          lambda x: convnext.apply({"params": weights["convnext"]}, x),
          reconstruction, image, lpips_weight=1.0, convnext_weight=0.1)

    loss = jax.jit(perceptual_loss)(reconstruction, image, weights)
    features = jax.jit(lambda x, params: teacher.apply({"params": params}, x, method=teacher.features))
    distill = losses.distill(*(features(x, weights["teacher"]) for x in (reconstruction, image)))
  return {"perceptual loss": float(loss), "distance of the teacher's features": float(distill)}


def _weights(module: Any, rng: np.random.Generator, *inputs: jax.Array, **options: Any) -> Any:
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **options))["params"]

  def sample(key_path, leaf):
    name = key_path[-1].key
    if name == "scale" or name.startswith(("lin", "layer_scale")):
      return jnp.ones(leaf.shape)
    fan_in = np.prod(leaf.shape["layers" in str(key_path):-1]) or 1
    return jnp.asarray(rng.normal(0, min(fan_in**-0.5, 0.3), leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(sample, shapes)


if __name__ == "__main__":
  main()
