"""Reconstruction losses: L2, perceptual, distillation. Images in [0, 1], everything float32."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from unilip_jax.models import perceptual as networks


def l2(reconstruction: jax.Array, target: jax.Array) -> jax.Array:
  """Mean squared error.

  Args:
    reconstruction: float[B, R, R, 3], about [0, 1], unclamped.
    target: float[B, R, R, 3] in [0, 1].

  Returns:
    float32[].
  """
  return jnp.square(reconstruction.astype(jnp.float32) - target.astype(jnp.float32)).mean()


def distill(features: jax.Array, teacher: jax.Array) -> jax.Array:
  """Mean squared error of mlp1's outputs, float[B, L, C] each: float32[]."""
  return jnp.square(features.astype(jnp.float32) - teacher.astype(jnp.float32)).mean()


def perceptual(
    lpips: Callable[[jax.Array, jax.Array], jax.Array],
    convnext: Callable[[jax.Array], jax.Array],
    reconstruction: jax.Array, target: jax.Array, *, lpips_weight: float, convnext_weight: float
) -> jax.Array:
  """(lpips_weight·LPIPS + convnext_weight·MSE of logits) / (lpips_weight + convnext_weight).

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
  # One pass of the network over both. Side by side in the batch, each pair stays on its device; one
  # batch behind the other would move half of the images. No gradient goes into the target's.
  both = jnp.stack([reconstruction, target], axis=1)
  logits = convnext(networks.convnext_input(both.reshape(-1, *target.shape[1:])))
  logits = logits.reshape(-1, 2, logits.shape[-1])
  difference = jnp.square(logits[:, 0] - jax.lax.stop_gradient(logits[:, 1])).mean(-1)
  distance = lpips(reconstruction, target)
  total = lpips_weight * distance + convnext_weight * difference
  return (total / (lpips_weight + convnext_weight)).mean()
