"""Bilinear operators that keep a formulation of their own under every derivative.

`jax.custom_vjp` has no forward mode. An operator of this file does: its derivatives of every order and
mode are operators of this file again.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core as jex_core
from jax.interpreters import ad, batching, mlir

Operator = Callable[..., jax.Array]


def define(
    name: str, function: Operator, left: Callable[..., jax.Array], right: Callable[..., jax.Array]
) -> Operator:
  """Makes a traceable function of two arrays, linear in each, an operator with given transposes.

  Args:
    name: of the operator in jaxprs.
    function: (x, y, **settings) -> array; settings are hashable.
    left: (cotangent of the result, y, **settings) -> cotangent of x.
    right: (x, cotangent of the result, **settings) -> cotangent of y.

  Returns:
    `function`, with jvp, vjp and vmap.
  """
  primitive = jex_core.Primitive(name)

  def abstract(x: Any, y: Any, **settings: Any) -> Any:
    out = jax.eval_shape(lambda x, y: function(x, y, **settings), x, y)
    return jax.core.ShapedArray(out.shape, out.dtype)

  primitive.def_impl(function)
  primitive.def_abstract_eval(abstract)
  mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
  ad.defbilinear(
      primitive, lambda cotangent, x, y, **settings: left(cotangent, y, **settings),
      lambda cotangent, x, y, **settings: right(x, cotangent, **settings))
  batching.primitive_batchers[primitive] = lambda arrays, axes, **settings: (
      jax.vmap(lambda x, y: function(x, y, **settings), axes)(*arrays), 0)
  return lambda x, y, **settings: primitive.bind(x, y, **settings)
