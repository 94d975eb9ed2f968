"""Samples text from the language model over a KV cache: greedy, by temperature, and nucleus sampling."""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

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


class Answers(NamedTuple):
  """Holds answers in progress, one a row.

  Attributes:
    count: int32[], tokens that each row has.
    done: bool[B], whether a row has stopped.
    out: int32[B, N]; from the end of an answer on, and after `count`, the stop token.
    cache: of the prompts and the answers so far.
  """

  count: jax.Array
  done: jax.Array
  out: jax.Array
  cache: qwen2.Cache


def pick(
    logits: jax.Array, keys: jax.Array, temperature: float | jax.Array, top_p: float | jax.Array
) -> jax.Array:
  """Chooses the next token of each row.

  Args:
    logits: float32[B, V].
    keys: [B] random keys; unused at temperature 0.
    temperature: divides the logits; 0 takes the largest. float32[B] is one per row.
    top_p: samples from the smallest set of likeliest tokens with at least this probability; float32[B]
      together with such a temperature.

  Returns:
    int32[B].
  """
  if isinstance(temperature, jax.Array):
    return _pick_by_row(logits, keys, temperature, top_p)
  if temperature == 0:
    return _likeliest(logits)
  logits = logits / temperature
  return _sample(_nucleus(logits, top_p) if top_p < 1 else logits, keys)


def _pick_by_row(
    logits: jax.Array, keys: jax.Array, temperature: jax.Array, top_p: jax.Array) -> jax.Array:
  """Chooses as `pick` with numbers does, row by row; sorts and samples only where a row needs it."""
  hot = temperature > 0

  def sample(logits):
    scaled = logits / jnp.where(hot, temperature, 1.0)[:, None]
    part = hot & (top_p < 1)
    cut = lambda x: jnp.where(part[:, None], _nucleus(x, top_p[:, None]), x)
    scaled = jax.lax.cond(part.any(), cut, lambda x: x, scaled)
    return jnp.where(hot, _sample(scaled, keys), _likeliest(logits))

  return jax.lax.cond(hot.any(), sample, _likeliest, logits)


def _likeliest(logits: jax.Array) -> jax.Array:
  return logits.argmax(-1).astype(jnp.int32)


def _nucleus(logits: jax.Array, top_p: float | jax.Array) -> jax.Array:
  """Keeps the smallest set of likeliest tokens with probability `top_p`, a number or [B, 1]."""
  order = jnp.sort(logits, axis=-1)[:, ::-1]
  share = jnp.cumsum(jax.nn.softmax(order, axis=-1), axis=-1)
  last = jnp.minimum((share < top_p).sum(-1), logits.shape[-1] - 1)  # the one that crosses top_p
  floor = jnp.take_along_axis(order, last[:, None], axis=1)
  return jnp.where(logits < floor, -jnp.inf, logits)


def _sample(logits: jax.Array, keys: jax.Array) -> jax.Array:
  return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def begin(
    logits: jax.Array, cache: qwen2.Cache, *, room: int, stop: int, rows: jax.Array,
    temperature: float | jax.Array, top_p: float | jax.Array) -> Answers:
  """Chooses the first token of each answer.

  Args:
    logits: float32[B, V] of the first new token.
    cache: of the prompts, without room.
    room: N, most new tokens.
    stop: id that ends an answer.
    rows: [B] random keys, one per row; token i of a row depends on (key, i) alone.
    temperature, top_p: see `pick`.
  """
  token = pick(logits, _token_keys(rows, 0), temperature, top_p)
  out = jnp.full((logits.shape[0], room), stop, jnp.int32).at[:, 0].set(token)
  return Answers(jnp.int32(1), token == stop, out, qwen2.with_room(cache, room))


def advance(
    step: Step, answers: Answers, until: int | jax.Array, *, stop: int, rows: jax.Array,
    temperature: float | jax.Array, top_p: float | jax.Array) -> Answers:
  """Continues answers until they have `until` tokens, at most N, or every row has stopped.

  Args:
    step: runs the model on one token a row.
    answers: from `begin` or `advance`.
    until: number of tokens.
    stop, rows, temperature, top_p: as of `begin`.
  """
  def unfinished(a):
    return (a.count < until) & ~a.done.all()

  def one(a):
    token = jax.lax.dynamic_slice_in_dim(a.out, a.count - 1, 1, axis=1)
    logits, cache = step(token, ~a.done[:, None], a.cache)
    token = pick(logits, _token_keys(rows, a.count), temperature, top_p)
    token = jnp.where(a.done, stop, token)
    out = jax.lax.dynamic_update_slice(a.out, token[:, None], (0, a.count))
    return Answers(a.count + 1, a.done | (token == stop), out, cache)

  return jax.lax.while_loop(unfinished, one, answers)


def _token_keys(rows: jax.Array, i: int | jax.Array) -> jax.Array:
  return jax.vmap(lambda key: jax.random.fold_in(key, i))(rows)


def row_keys(seed: int | np.ndarray | jax.Array, first: int, count: int) -> jax.Array:
  """Makes the random keys of rows: that of row i depends on (seed, first + i) alone."""
  key = seeds.key(seed)
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(count))


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
  options = dict(stop=stop, rows=row_keys(seed, first, logits.shape[0]), temperature=temperature,
                 top_p=top_p)
  answers = begin(logits, cache, room=max_new_tokens, **options)
  out = advance(step, answers, max_new_tokens, **options).out
  return out, (out != stop).astype(jnp.int32).cumprod(1).sum(1)
