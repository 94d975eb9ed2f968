"""Reconstruction losses: L2, perceptual, distillation. Images in [0, 1], everything float32."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from unilip_jax.models import perceptual as networks


def l2(reconstruction: jax.Array, target: jax.Array) -> jax.Array:
  """Computes the mean squared error.

  Args:
    reconstruction: float[B, R, R, 3], about [0, 1], unclamped.
    target: float[B, R, R, 3] in [0, 1].

  Returns:
    float32[].
  """
  chex.assert_equal_shape([reconstruction, target])
  return jnp.square(reconstruction.astype(jnp.float32) - target.astype(jnp.float32)).mean()


def distill(features: jax.Array, teacher: jax.Array) -> jax.Array:
  """Computes the mean squared error of mlp1's outputs, float[B, L, C] each: float32[]."""
  chex.assert_equal_shape([features, teacher])
  return jnp.square(features.astype(jnp.float32) - teacher.astype(jnp.float32)).mean()


def perceptual(
    lpips: Callable[[jax.Array, jax.Array], jax.Array],
    convnext: Callable[[jax.Array], jax.Array],
    reconstruction: jax.Array, target: jax.Array, *, lpips_weight: float, convnext_weight: float
) -> jax.Array:
  """Computes (lpips_weight·LPIPS + convnext_weight·MSE of logits) / (lpips_weight + convnext_weight).

  Args:
    lpips: (a, b) in [0, 1] -> float32[B].
    convnext: ImageNet-normalised images -> logits[B, classes].
    reconstruction: float[B, R, R, 3], about [0, 1].
    target: float[B, R, R, 3] in [0, 1].
    lpips_weight: 1.0 officially.
    convnext_weight: 0.1 officially.

  Returns:
    float32[], the mean over the batch.
  """
  chex.assert_equal_shape([reconstruction, target])
  # Two passes, not one over both images: the target's saves nothing for the backward pass.
  logits, target_logits = (convnext(networks.convnext_input(x)) for x in (reconstruction, target))
  difference = jnp.square(logits - jax.lax.stop_gradient(target_logits)).mean(-1)
  distance = lpips(reconstruction, target)
  total = lpips_weight * distance + convnext_weight * difference
  return (total / (lpips_weight + convnext_weight)).mean()
