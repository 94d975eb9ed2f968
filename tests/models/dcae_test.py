"""DC-AE equals the recorded official runs and diffusers, in every published variant."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import torch

from tests import golden_model, parity
from unilip_jax import presets, tree
from unilip_jax.convert import rules, tables_dcae
from unilip_jax.models import dcae


def _torch_dict(module):
  return {k: v.detach().numpy() for k, v in module.state_dict().items()
          if not k.endswith("num_batches_tracked")}


def test_decoder_and_encoder_equal_the_recorded_stages(golden):
  run = np.load(golden / "component_dcae.npz")
  tensors = safetensors_numpy.load_file(
      golden / "pretrained/vae/diffusion_pytorch_model.safetensors")
  encoder_dims, decoder_dims = golden_model.dcae_dims(golden)
  table = (tables_dcae.encoder_rules(encoder_dims, "encoder.", "encoder/")
           + tables_dcae.decoder_rules(decoder_dims, "decoder.", "decoder/"))
  params = rules.from_torch(tensors, table, None)
  twin = "golden component_dcae"
  decoder = dcae.Decoder(decoder_dims, jnp.float32, "none")
  out, seen = jax.jit(lambda x: decoder.apply(
      {"params": params["decoder"]}, x, mutable=["intermediates"]))(
          golden_model.nhwc(run["decode_in"]))
  for i in range(6):
    stage = seen["intermediates"][f"up_blocks_{i}"]["out"][0]
    name = f"dec_up{i}"
    recorded = golden_model.nhwc(run[name])
    parity.assert_parity("DC-AE decoder stage", twin, _like(stage, recorded), recorded)
  parity.assert_parity("DC-AE decoder", twin, out, golden_model.nhwc(run["decode_out"]))
  encoder = dcae.Encoder(encoder_dims, jnp.float32)
  out, seen = jax.jit(lambda x: encoder.apply(
      {"params": params["encoder"]}, x, mutable=["intermediates"]))(
          golden_model.nhwc(run["encode_in"]))
  for i in range(6):
    recorded = golden_model.nhwc(run[f"enc_down{i}"])
    stage = seen["intermediates"][f"down_blocks_{i}"]["out"][0]
    parity.assert_parity("DC-AE encoder stage", twin, _like(stage, recorded), recorded)
  parity.assert_parity("DC-AE encoder", twin, out, golden_model.nhwc(run["encode_out"]))


def _like(stage, recorded):
  """The recordings keep every n-th pixel of large stages."""
  step = stage.shape[1] // recorded.shape[1]
  return stage[:, ::step, ::step]


_VARIANTS = {
    "interpolate, Conv": dict(resample=("interpolate", "Conv"), norm="rms_norm", act="silu",
                              layers=(1, 1, 2, 1, 2)),
    "pixel_shuffle, empty outer stage": dict(
        resample=("pixel_shuffle", "pixel_unshuffle"), norm="rms_norm", act="silu",
        layers=(0, 1, 1, 2, 1)),
    "batch_norm, relu": dict(resample=("pixel_shuffle", "pixel_unshuffle"), norm="batch_norm",
                             act="relu", layers=(1, 1, 1, 1, 1)),
    "interpolate, empty outer stage": dict(resample=("interpolate", "Conv"), norm="rms_norm",
                                           act="relu", layers=(0, 2, 1, 1, 1)),
}


@pytest.fixture(scope="module", params=list(_VARIANTS))
def twin_variant(request):
  variant = _VARIANTS[request.param]
  channels = (8, 8, 16, 16, 32)
  kinds = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 2
  scales = ((), (), (), (5,), (5, 3))
  torch.manual_seed(0)
  twin = diffusers.AutoencoderDC(
      latent_channels=8, attention_head_dim=8, encoder_block_types=kinds, decoder_block_types=kinds,
      encoder_block_out_channels=channels, decoder_block_out_channels=channels,
      encoder_layers_per_block=variant["layers"], decoder_layers_per_block=variant["layers"],
      encoder_qkv_multiscales=scales, decoder_qkv_multiscales=scales,
      upsample_block_type=variant["resample"][0], downsample_block_type=variant["resample"][1],
      decoder_norm_types=variant["norm"], decoder_act_fns=variant["act"]).eval()
  for name, buffer in twin.named_buffers():  # statistics that are not the identity
    if name.endswith("running_mean"):
      buffer.normal_(0, 0.1)
    elif name.endswith("running_var"):
      buffer.uniform_(0.5, 1.5)
  encoder_dims, decoder_dims = tables_dcae.dims_from_config(dict(twin.config))
  return request.param, twin, encoder_dims, decoder_dims


def test_decoder_and_gradients_equal_diffusers(twin_variant):
  name, twin, _, dims = twin_variant
  table = tables_dcae.decoder_rules(dims, "", "")
  params = rules.from_torch(_torch_dict(twin.decoder), table, None)
  latents = np.random.default_rng(0).standard_normal((2, 3, 3, 8)).astype(np.float32)
  z = torch.tensor(np.moveaxis(latents, -1, 1).copy(), requires_grad=True)
  expected = twin.decoder(z)
  weight = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)
  (expected * torch.tensor(weight)).sum().backward()
  decoder = dcae.Decoder(dims, jnp.float32, "none")

  def loss(p, x):
    out = decoder.apply({"params": p}, x)
    return (out * np.moveaxis(weight, 1, -1)).sum(), out

  (_, out), (grads, latent_grad) = jax.jit(
      jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, latents)
  label = f"diffusers ({name})"
  parity.assert_parity("DC-AE decoder", label, out, golden_model.nhwc(expected.detach().numpy()))
  parity.assert_parity("DC-AE decoder, input gradient", label, latent_grad,
                       golden_model.nhwc(z.grad.numpy()))
  twin_grads = {k: p.grad.numpy() for k, p in twin.decoder.named_parameters()}
  missing = {k for k in _torch_dict(twin.decoder) if k not in twin_grads}  # statistics
  twin_grads |= {k: np.zeros_like(_torch_dict(twin.decoder)[k]) for k in missing}
  recorded = tree.flatten(rules.from_torch(twin_grads, table, None))
  for path, gradient in tree.flatten(grads).items():
    if path.endswith(("/mean", "/var")):
      continue  # no parameters in PyTorch
    parity.assert_parity("DC-AE decoder, gradients", label, gradient, recorded[path])


def test_encoder_equals_diffusers(twin_variant):
  name, twin, dims, _ = twin_variant
  params = rules.from_torch(
      _torch_dict(twin.encoder), tables_dcae.encoder_rules(dims, "", ""), None)
  image = np.random.default_rng(0).standard_normal((2, 48, 48, 3)).astype(np.float32)
  with torch.no_grad():
    expected = twin.encoder(torch.tensor(np.moveaxis(image, -1, 1).copy())).numpy()
  out = jax.jit(lambda x: dcae.Encoder(dims, jnp.float32).apply({"params": params}, x))(image)
  parity.assert_parity("DC-AE encoder", f"diffusers ({name})", out, golden_model.nhwc(expected))


def test_published_parameter_counts():
  preset = presets.get("1b")
  decoder = dcae.Decoder(preset.tokenizer.decoder, jnp.float32, "none")
  encoder = dcae.Encoder(preset.dcae_encoder, jnp.float32)
  count = lambda m, s: tree.count(jax.eval_shape(m.init, jax.random.key(0), jnp.zeros(s))["params"])
  assert count(decoder, (1, 2, 2, 32)) == 159_223_171
  assert count(encoder, (1, 64, 64, 3)) == 153_027_104


def test_unknown_kinds_are_refused():
  with pytest.raises(ValueError, match="not AutoencoderDC"):
    tables_dcae.dims_from_config({"_class_name": "AutoencoderKL"})
