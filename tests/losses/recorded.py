"""Recorded runs of official post-training code, and the toy network they used; all in float64.

The network reads concat(latents, scalars, context): h = tanh(in · W1 + b1), out = h · W2 + b2.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

_FOLDER = pathlib.Path(__file__).parents[1] / "golden"


@functools.cache
def cases(name: str):
  return json.loads((_FOLDER / "post.json").read_text())[name]


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
  with np.load(_FOLDER / "post.npz") as file:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}


def weights(name: str, prefix: str = "") -> dict[str, jax.Array]:
  return {key: jnp.asarray(arrays(name)[f"{prefix}{key}"]) for key in ("W1", "b1", "W2", "b2")}


def network(params, latents, scalars, context):
  """Runs the toy network; scalars and context are [B] and [B, 3], or one row for all."""
  count = latents.shape[0]
  rows = [latents.reshape(count, -1)]
  rows += [jnp.broadcast_to(s, (count,))[:, None] for s in scalars]
  rows.append(jnp.broadcast_to(jnp.atleast_2d(context), (count, 3)))
  hidden = jnp.tanh(jnp.concatenate(rows, 1) @ params["W1"] + params["b1"][None])
  return (hidden @ params["W2"] + params["b2"][None]).reshape(latents.shape)
