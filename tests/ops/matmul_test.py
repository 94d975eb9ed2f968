"""Every formulation of a matrix multiplication rounds its operands where asked, and nothing else."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import parity
from unilip_jax.ops import cpu, matmul

# Rows, width, features: either of the operands as the narrower, and the least there can be of each.
_SHAPES = [(24, 8, 20), (24, 20, 8), (1, 8, 20), (24, 1, 20), (24, 8, 1), (1, 1, 1)]


@pytest.fixture(params=[False, True], ids=["plain", "amx"])
def amx(request, monkeypatch):
  if request.param and not cpu.has_amx():
    pytest.skip("this CPU has no AMX")
  monkeypatch.setattr(cpu, "has_amx", lambda: request.param)
  jax.clear_caches()  # of what was traced for the other kind


def _inputs(shape, dtype=jnp.float32):
  rows, width, features = shape
  rng = np.random.default_rng(0)
  sample = lambda *s: jnp.asarray(rng.standard_normal(s, np.float32), dtype)
  return sample(rows, width), sample(width, features), sample(rows, features)


def _results(function, x, weight, dy):
  """(y, dx, dweight)."""
  y, pull = jax.vjp(function, x, weight)
  return y, *pull(dy.astype(y.dtype))


def _of_rounded(x, weight, dy):
  """The same in float32, of operands rounded to bfloat16."""
  x, weight, dy = (a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x, weight, dy))
  return x @ weight, dy @ weight.T, x.T @ dy


@pytest.mark.parametrize("shape", _SHAPES)
def test_asked_for_bfloat16_only_the_operands_are_rounded(shape, amx):
  inputs = _inputs(shape)
  with jax.default_matmul_precision("bfloat16"):
    result = jax.jit(lambda *a: _results(matmul.matmul, *a))(*inputs)
  for value, expected in zip(result, _of_rounded(*inputs), strict=True):
    chex.assert_type(value, jnp.float32)
    assert parity.relative_error(value, expected) < 1e-6


@pytest.mark.parametrize("shape", _SHAPES)
def test_bfloat16_arrays_have_float32_sums_and_stay_bfloat16(shape, amx):
  inputs = _inputs(shape, jnp.bfloat16)
  result = jax.jit(lambda *a: _results(matmul.matmul, *a))(*inputs)
  for value, expected in zip(result, _of_rounded(*inputs), strict=True):
    chex.assert_type(value, jnp.bfloat16)
    assert parity.relative_error(value.astype(jnp.float32), expected) < 0.01  # of the result


def test_float32_is_not_rounded_unasked(amx):
  x, weight, _ = _inputs(_SHAPES[0])
  for precision in ("float32", None):
    with jax.default_matmul_precision(precision):
      np.testing.assert_array_equal(matmul.matmul(x, weight), jnp.dot(x, weight))


@pytest.mark.parametrize("frozen", [0, 1], ids=["input", "weight"])
def test_either_operand_may_be_constant(frozen, amx):
  inputs = _inputs(_SHAPES[0])
  free = inputs[1 - frozen]
  with jax.default_matmul_precision("bfloat16"):
    def loss(free):
      return (matmul.matmul(*((inputs[0], free) if frozen == 0 else (free, inputs[1]))) * inputs[2]).sum()

    gradient = jax.jit(jax.grad(loss))(free)
  assert parity.relative_error(gradient, _of_rounded(*inputs)[2 if frozen == 0 else 1]) < 1e-6


def test_operands_may_come_transposed_or_as_a_slice_of_a_stack(amx):
  x, weight, dy = _inputs((24, 8, 20))

  def run(x_t, weights_t, dy):
    return _results(lambda x_t, w_t: matmul.matmul(x_t.T, w_t[1].T), x_t, weights_t, dy)

  with jax.default_matmul_precision("bfloat16"):
    y, dx_t, dweights_t = jax.jit(run)(x.T, jnp.stack([weight.T, weight.T]), dy)
    looped, _ = jax.jit(lambda x, ws: jax.lax.scan(
        lambda total, w: (total + matmul.matmul(x, w), None), jnp.zeros_like(dy), ws))(
            x, jnp.stack([weight, weight]))
  expected = _of_rounded(x, weight, dy)
  for value, wanted in zip((y, dx_t.T, dweights_t[1].T), expected, strict=True):
    assert parity.relative_error(value, wanted) < 1e-6
  assert parity.relative_error(looped, 2 * expected[0]) < 1e-6


def test_numpy_arrays_need_no_jit(amx):
  x, weight, dy = (np.asarray(a) for a in _inputs(_SHAPES[0], jnp.bfloat16))
  assert parity.relative_error(
      matmul.matmul(x, weight).astype(jnp.float32), _of_rounded(x, weight, dy)[0]) < 0.01


def test_rounded_multiplications_have_forward_derivatives(amx):
  x, weight, _ = _inputs(_SHAPES[0])
  dx, dweight, _ = (2 * a for a in _inputs(_SHAPES[0]))
  with jax.default_matmul_precision("bfloat16"):
    along = jax.jit(lambda: jax.jvp(matmul.matmul, (x, weight), (dx, dweight)))()[1]
    mixed = jax.jit(jax.grad(lambda w: jax.jvp(
        lambda x: jnp.square(matmul.matmul(x, w)), (x,), (dx,))[1].sum()))(weight)
  x, weight, dx, dweight = (a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x, weight, dx, dweight))
  assert parity.relative_error(along, dx @ weight + x @ dweight) < 1e-6
  # d/dw Σ 2 (x w) (dx w); the cotangents are rounded too.
  assert parity.relative_error(mixed, 2 * (x.T @ (dx @ weight) + dx.T @ (x @ weight))) < 0.01
