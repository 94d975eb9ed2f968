"""The optimizer equals PyTorch's, its schedules the recorded ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from tests import parity
from unilip_jax.optim import optimizer, param_table

_TABLE = (("^a/", {"lr": 0.1}), ("^frozen/", {"train": False}))
_NO_DECAY = ("ln", "bias", "norm", "gamma", "embed")


def _params():
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  return {"a": {"kernel": normal(4, 3), "norm_kernel": normal(2, 2)},
          "b": {"kernel": normal(3, 5), "bias": normal(5), "layers": {"scale": normal(2, 4)}}}


def test_adamw_with_clipping_and_two_rates_equals_torch():
  params = _params()
  columns = param_table.resolve(params, _TABLE[:1], _NO_DECAY)
  adamw = optimizer.make_adamw(columns, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1)
  state = adamw.init(params)
  parameters = {(m, n): torch.nn.Parameter(torch.tensor(v))
                for m, n, v in [("a", "kernel", params["a"]["kernel"]),
                                ("a", "norm_kernel", params["a"]["norm_kernel"]),
                                ("b", "kernel", params["b"]["kernel"]), ("b", "bias", params["b"]["bias"]),
                                ("b", "scale", params["b"]["layers"]["scale"])]}
  decayed = {("a", "kernel"), ("b", "kernel")}
  reference = torch.optim.AdamW(
      [{"params": [p], "lr": 1e-2 * (0.1 if k[0] == "a" else 1.0),
        "weight_decay": 0.1 if k in decayed else 0.0} for k, p in parameters.items()])
  for step in range(5):
    rng = np.random.default_rng(step + 1)
    grads = jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), params)  # noqa: B023
    flat = {("a", "kernel"): grads["a"]["kernel"], ("a", "norm_kernel"): grads["a"]["norm_kernel"],
            ("b", "kernel"): grads["b"]["kernel"], ("b", "bias"): grads["b"]["bias"],
            ("b", "scale"): grads["b"]["layers"]["scale"]}
    for key, parameter in parameters.items():
      parameter.grad = torch.tensor(flat[key])
    torch_norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
    reference.step()
    clipped, norm = optimizer.clip(grads, 1.0)
    np.testing.assert_allclose(norm, torch_norm, rtol=1e-6)
    updates, state = adamw.update(clipped, state, params)
    params = optax.tree.add_scale(params, jnp.float32(-1e-2), updates)
  results = {("a", "kernel"): params["a"]["kernel"], ("a", "norm_kernel"): params["a"]["norm_kernel"],
             ("b", "kernel"): params["b"]["kernel"], ("b", "bias"): params["b"]["bias"],
             ("b", "scale"): params["b"]["layers"]["scale"]}
  for key, parameter in parameters.items():
    parity.assert_parity("AdamW + clipping", "torch.optim.AdamW, 5 updates", results[key],
                         parameter.detach().numpy(), rtol=1e-6)


def test_cosine_equals_the_recorded_rates(golden):
  recorded = np.load(golden / "lr_cosine_tokenizer.npz")["lr"][:, 1]
  rates = jax.vmap(lambda s: optimizer.cosine(s, lr=1e-4, end_lr=1e-5, warmup=10, total=400))(
      jnp.arange(400))
  parity.assert_parity("learning rate", "golden lr_cosine_tokenizer", rates, recorded, rtol=1e-6)


def test_cosine_equals_the_recorded_rates_of_generation(golden):
  recorded = np.load(golden / "lr_cosine_with_min_lr_generation.npz")["lr"]
  rates = jax.vmap(lambda s: optimizer.cosine(s, lr=1e-4, end_lr=1e-5, warmup=3, total=1000))(
      jnp.arange(1000))
  parity.assert_parity("learning rate", "golden lr_cosine_with_min_lr", rates, recorded, rtol=1e-6)


def test_cosine_stays_at_its_end():
  rate = optimizer.cosine(jnp.int32(900), lr=1.0, end_lr=0.1, warmup=10, total=400)
  np.testing.assert_allclose(rate, 0.1, rtol=1e-6)


def test_ema_copies_first_then_warms_up():
  decays = [float(optimizer.ema_decay(jnp.int32(t), 0.999)) for t in (0, 1, 2, 100_000)]
  np.testing.assert_allclose(decays, [0.0, 2 / 11, 3 / 12, 0.999], rtol=1e-6)
  new = optimizer.ema_update({"w": jnp.float32(7.0)}, {"w": jnp.float32(3.1)}, jnp.float32(0.0))
  assert float(new["w"]) == np.float32(3.1)
