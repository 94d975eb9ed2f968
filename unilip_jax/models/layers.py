"""Layers that several networks share: dense, norms, convolutions, scanned stacks, remat, initialisers."""

from collections.abc import Callable
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from unilip_jax.models import lora
from unilip_jax.ops import backend, conv, cpu, matmul, resample
from unilip_jax.sharding import activations

Dtype = Any


def torch_uniform(fan_in: int) -> Callable[..., jax.Array]:
  """Returns PyTorch's default initialiser of weights and biases of linear layers and convolutions.

  Uniform in ±1/√fan_in, which is what Kaiming-uniform with a = √5 computes.
  """
  bound = 1.0 / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class Dense(nn.Module):
  """y = x W + b on the last axis.

  W may be int8, with a scale for each output (quantization.py). Adapters may add to y (lora.py).

  Attributes:
    features: output width.
    dtype: of the computation.
    kernel_init: defaults to PyTorch's.
    bias_init: defaults to PyTorch's.
    use_bias: whether there is b.
    parts: equal parts of y that the caller uses apart; more than 1 returns a tuple of them.
  """

  features: int
  dtype: Dtype
  kernel_init: Callable[..., jax.Array] | None = None
  bias_init: Callable[..., jax.Array] | None = None
  use_bias: bool = True
  parts: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array | tuple[jax.Array, ...]:
    width, lead = x.shape[-1], x.shape[:-1]
    default = torch_uniform(width)
    kernel = self.param("kernel", self.kernel_init or default, (width, self.features)).astype(self.dtype)
    rows = x.reshape(-1, width).astype(self.dtype)
    # XLA's CPU backend is faster with one 2-D matrix multiplication. On TPUs a matrix of all rows would be
    # a copy where an example's rows do not fill tiles of 8, as the 1025 of InternViT, and each part of y
    # another one (docs/performance.md).
    on_tpu = backend.name() == "tpu"
    inputs = x.astype(self.dtype) if on_tpu else rows
    count = self.parts if on_tpu else 1
    split = lambda a: jnp.split(a, count, axis=-1)
    along_y = lambda a: a.reshape(*(1,) * (inputs.ndim - 1), -1)
    # Cut with an axis of its own: slices of a dimension that fsdp splits would be sent between devices.
    kernels = [kernel.reshape(width, count, -1)[:, i] for i in range(count)] if count > 1 else [kernel]
    scale = self.get_variable("params", "kernel_scale")
    if scale is None:
      ys = [matmul.matmul(inputs, k) for k in kernels]
    else:
      ys = [jnp.dot(inputs, k, preferred_element_type=jnp.float32) * along_y(s)
            for k, s in zip(kernels, split(scale))]
      ys = [y.astype(self.dtype) for y in ys]
    if self.use_bias:
      bias = self.param("bias", self.bias_init or default, (self.features,)).astype(self.dtype)
      ys = [y + along_y(b) for y, b in zip(ys, split(bias))]
    adapters = self.get_variable("params", lora.NAME)
    if adapters is not None:
      added = lora.branch(rows, adapters, self.name, self.features, self.dtype)
      ys = [y + a.reshape(y.shape) for y, a in zip(ys, split(added))]
    if len(ys) < self.parts:
      ys = jnp.split(ys[0], self.parts, axis=-1)
    ys = tuple(y.reshape(*lead, -1) for y in ys)
    return ys if self.parts > 1 else ys[0]


class LayerNorm(nn.Module):
  """LayerNorm over the last axis with float32 statistics; the output has dtype `dtype`."""

  eps: float
  dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    lead = (1,) * (x.ndim - 1)
    y = centred * jax.lax.rsqrt(variance + self.eps)
    return (y * scale.reshape(*lead, -1) + bias.reshape(*lead, -1)).astype(self.dtype)


class RMSNorm(nn.Module):
  """RMSNorm over the last axis with float32 statistics, optionally with a bias (DC-AE)."""

  eps: float
  dtype: Dtype
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    lead = (1,) * (x.ndim - 1)
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    x = x.astype(jnp.float32)
    y = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
    y *= scale.reshape(*lead, -1)
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
      y += bias.reshape(*lead, -1)
    return y.astype(self.dtype)


class Mlp(nn.Module):
  """Dense → exact GELU → Dense; parameters fc1, fc2."""

  hidden: int
  features: int
  dtype: Dtype
  kernel_init: Callable[..., jax.Array] | None = None
  bias_init: Callable[..., jax.Array] | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = dict(kernel_init=self.kernel_init, bias_init=self.bias_init)
    x = Dense(self.hidden, self.dtype, **init, name="fc1")(x)
    return Dense(self.features, self.dtype, **init, name="fc2")(nn.gelu(x, approximate=False))


class Conv(nn.Module):
  """k×k convolution, padding k // 2 unless another is given, PyTorch's default initialisation.

  With `doubled` it convolves the image whose sides are doubled.
  """

  features: int
  side: int
  dtype: Dtype
  stride: int = 1
  use_bias: bool = True
  doubled: bool = False
  padding: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = activations.constrain(x, "batch")
    fan_in = self.side**2 * x.shape[-1]
    init = torch_uniform(fan_in)
    kernel = self.param("kernel", init, (self.side, self.side, x.shape[-1], self.features))
    if self.doubled:
      y = resample.conv_nearest(x.astype(self.dtype), kernel)
    else:
      y = conv.conv(x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride,
                    padding=self.padding)
    if self.use_bias:
      y += self.param("bias", init, (self.features,)).astype(self.dtype)[None, None, None]
    return activations.constrain(y, "batch")


class Depthwise(nn.Module):
  """k×k convolution of each channel by itself; `batch_axis` as of conv.depthwise."""

  side: int
  dtype: Dtype
  use_bias: bool
  batch_axis: int = 0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = torch_uniform(self.side**2)
    kernel = self.param("kernel", init, (self.side, self.side, 1, x.shape[-1]))
    y = conv.depthwise(x.astype(self.dtype), kernel.astype(self.dtype), self.batch_axis)
    if self.use_bias:
      y += self.param("bias", init, (x.shape[-1],)).astype(self.dtype)[None, None, None]
    return y


_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def remat(module: type[nn.Module], name: str, *, scanned: bool = False) -> type[nn.Module]:
  """Wraps a module class so that its backward pass recomputes what the policy does not save.

  Args:
    module: class of one layer or block.
    name: "none" saves everything; "dots" saves the outputs of dense layers; "full" saves only the
      module's input.
    scanned: whether the module is the body of a scan, where nothing has to keep XLA from undoing the
      rematerialisation.

  Raises:
    ValueError: for another name.
  """
  if name == "none":
    return module
  if name not in _POLICIES:
    raise ValueError(f"unknown remat policy {name!r}; choose none, {', '.join(_POLICIES)}")
  return nn.remat(module, policy=_POLICIES[name], prevent_cse=not scanned)


def scan(
    module: type[nn.Module], length: int, remat_name: str = "none", *, in_axes: Any = (),
) -> type[nn.Module]:
  """Makes a stack of `length` equal layers as one scanned module; name its instance "layers".

  Args:
    module: class with __call__(x, *others) -> (x, outputs); outputs are stacked along axis 0.
    length: number of layers; each has its own parameters along axis 0.
    remat_name: see `remat`.
    in_axes: one entry per argument in `others`: 0 where each layer takes its own slice, BROADCAST
      where all take the same.
  """
  # A loop compiles faster; CPUs run a short stack faster without.
  unroll = cpu.unroll(length) if backend.name() == "cpu" else 1
  return nn.scan(
      remat(module, remat_name, scanned=True), variable_axes={"params": 0},
      split_rngs={"params": True}, length=length, in_axes=in_axes, unroll=unroll)


BROADCAST = nn.broadcast
