"""Samples text from the language model over a KV cache: greedy, by temperature, and nucleus sampling."""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from unilip_jax.common import arguments
from unilip_jax.models import qwen2
from unilip_jax.ops import seeds

# (tokens int32[B, 1], valid bool[B, 1], cache) -> (logits float32[B, V] of the next token, cache)
Step = Callable[[jax.Array, jax.Array, qwen2.Cache], tuple[jax.Array, qwen2.Cache]]


@dataclasses.dataclass(frozen=True)
class Options:
  """Holds the options of an answer.

  Attributes:
    max_new_tokens: most new tokens, at least 1.
    temperature: see `pick`; at least 0.
    top_p: see `pick`; above 0 and at most 1.

  Raises:
    ValueError: for other values, with the choices.
  """

  max_new_tokens: int
  temperature: float = 0.0
  top_p: float = 1.0

  def __post_init__(self):
    arguments.integer("max_new_tokens", self.max_new_tokens, 1)
    arguments.number("temperature", self.temperature, 0.0)
    arguments.number("top_p", self.top_p, 0.0, 1.0, open_below=True)


def pick(
    logits: jax.Array, keys: jax.Array, temperature: float, top_p: float) -> jax.Array:
  """Chooses the next token of each row.

  Args:
    logits: float32[B, V].
    keys: [B] random keys; unused at temperature 0.
    temperature: divides the logits; 0 takes the largest.
    top_p: samples from the smallest set of likeliest tokens with at least this probability.

  Returns:
    int32[B].
  """
  if temperature == 0:
    return logits.argmax(-1).astype(jnp.int32)
  logits = logits / temperature
  if top_p < 1:
    order = jnp.sort(logits, axis=-1)[:, ::-1]
    share = jnp.cumsum(jax.nn.softmax(order, axis=-1), axis=-1)
    last = jnp.minimum((share < top_p).sum(-1), logits.shape[-1] - 1)  # the one that crosses top_p
    floor = jnp.take_along_axis(order, last[:, None], axis=1)
    logits = jnp.where(logits < floor, -jnp.inf, logits)
  return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def decode(
    step: Step, logits: jax.Array, cache: qwen2.Cache, *, max_new_tokens: int, stop: int,
    seed: int | np.ndarray | jax.Array, first: int = 0, temperature: float = 0.0, top_p: float = 1.0
) -> tuple[jax.Array, jax.Array]:
  """Continues prompts, all rows at once, until every row has stopped.

  Args:
    step: runs the model on one token a row.
    logits: float32[B, V] of the first new token.
    cache: of the prompts, without room.
    max_new_tokens: most new tokens.
    stop: id that ends an answer.
    seed: or its words (ops/seeds.py); the random numbers of row i depend on (seed, first + i) alone.
    first: index of the first row in its call.
    temperature: see `pick`.
    top_p: see `pick`.

  Returns:
    (int32[B, max_new_tokens], with `stop` from the end of the answer on; int32[B] tokens before it).
    The model runs once less than the number of tokens including `stop`.

  Raises:
    ValueError: see Options.
  """
  Options(max_new_tokens, temperature, top_p)
  batch = logits.shape[0]
  key = seeds.key(seed)
  rows = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(batch))

  def choose(logits, done, i):
    keys = jax.vmap(lambda k: jax.random.fold_in(k, i))(rows)
    return jnp.where(done, stop, pick(logits, keys, temperature, top_p))

  def unfinished(carry):
    i, done, *_ = carry
    return (i < max_new_tokens) & ~done.all()

  def advance(carry):
    i, done, token, out, cache = carry
    logits, cache = step(token[:, None], ~done[:, None], cache)
    token = choose(logits, done, i)
    out = jax.lax.dynamic_update_slice(out, token[:, None], (0, i))
    return i + 1, done | (token == stop), token, out, cache

  token = choose(logits, jnp.zeros((batch,), jnp.bool_), 0)
  out = jnp.full((batch, max_new_tokens), stop, jnp.int32).at[:, 0].set(token)
  start = (jnp.int32(1), token == stop, token, out, qwen2.with_room(cache, max_new_tokens))
  out = jax.lax.while_loop(unfinished, advance, start)[3]
  return out, (out != stop).astype(jnp.int32).cumprod(1).sum(1)
