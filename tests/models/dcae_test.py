"""DC-AE equals the recorded official runs and diffusers, in every published variant."""

import chex
import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import torch

from tests import golden_model, parity
from unilip_jax.common import tree
from unilip_jax.convert import dcae as dcae_convert
from unilip_jax.convert import engine
from unilip_jax.models import dcae, presets
from unilip_jax.ops import backend


def _torch_dict(module):
  return {k: v.detach().numpy() for k, v in module.state_dict().items()
          if not k.endswith("num_batches_tracked")}


def _recorded_params(golden):
  """Parameters of the recorded DC-AE: {"encoder", "decoder"}."""
  tensors = safetensors_numpy.load_file(
      golden / "pretrained/vae/diffusion_pytorch_model.safetensors")
  encoder_dims, decoder_dims = golden_model.dcae_dims(golden)
  return engine.from_torch(
      tensors, [*dcae_convert.encoder_rules(encoder_dims, "encoder.", "encoder/"),
                *dcae_convert.decoder_rules(decoder_dims, "decoder.", "decoder/")], None)


def test_decoder_and_encoder_equal_the_recorded_stages(golden):
  run = np.load(golden / "component_dcae.npz")
  encoder_dims, decoder_dims = golden_model.dcae_dims(golden)
  params = _recorded_params(golden)
  reference = "golden component_dcae"
  decoder = dcae.Decoder(decoder_dims, jnp.float32, "none")
  out, seen = jax.jit(lambda x: decoder.apply(
      {"params": params["decoder"]}, x, mutable=["intermediates"]))(
          golden_model.nhwc(run["decode_in"]))
  for i in range(6):
    stage = seen["intermediates"][f"up_blocks_{i}"]["out"][0]
    name = f"dec_up{i}"
    recorded = golden_model.nhwc(run[name])
    parity.assert_recorded("DC-AE decoder stage", reference, stage, recorded)
  parity.assert_recorded("DC-AE decoder", reference, out, golden_model.nhwc(run["decode_out"]))
  encoder = dcae.Encoder(encoder_dims, jnp.float32)
  out, seen = jax.jit(lambda x: encoder.apply(
      {"params": params["encoder"]}, x, mutable=["intermediates"]))(
          golden_model.nhwc(run["encode_in"]))
  for i in range(6):
    recorded = golden_model.nhwc(run[f"enc_down{i}"])
    stage = seen["intermediates"][f"down_blocks_{i}"]["out"][0]
    parity.assert_recorded("DC-AE encoder stage", reference, stage, recorded)
  parity.assert_parity("DC-AE encoder", reference, out, golden_model.nhwc(run["encode_out"]))


_VARIANTS = {
    "interpolate, Conv": dict(resample=("interpolate", "Conv"), norm="rms_norm", act="silu",
                              layers=(1, 1, 2, 1, 2)),
    "pixel_shuffle, empty outer stage": dict(
        resample=("pixel_shuffle", "pixel_unshuffle"), norm="rms_norm", act="silu",
        layers=(0, 1, 1, 2, 1)),
    "batch_norm everywhere, relu": dict(
        resample=("interpolate", "pixel_unshuffle"), norm="batch_norm", act="relu",
        layers=(1, 1, 1, 1, 1)),
    # What dc-ae-f32c32-in-1.0 and its f64 and f128 siblings are.
    "batch_norm and relu outside, no multiscale": dict(
        resample=("pixel_shuffle", "pixel_unshuffle"), norm=("batch_norm",) * 3 + ("rms_norm",) * 2,
        act=("relu",) * 3 + ("silu",) * 2, layers=(0, 1, 2, 1, 1), scales=((),) * 5),
}


@pytest.fixture(scope="module", params=list(_VARIANTS))
def variant(request):
  fields = _VARIANTS[request.param]
  channels = (8, 8, 16, 16, 32)
  kinds = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 2
  scales = fields.get("scales", ((), (), (), (5,), (5, 3)))
  torch.manual_seed(0)
  reference = diffusers.AutoencoderDC(
      latent_channels=8, attention_head_dim=8, encoder_block_types=kinds, decoder_block_types=kinds,
      encoder_block_out_channels=channels, decoder_block_out_channels=channels,
      encoder_layers_per_block=fields["layers"], decoder_layers_per_block=fields["layers"],
      encoder_qkv_multiscales=scales, decoder_qkv_multiscales=scales,
      upsample_block_type=fields["resample"][0], downsample_block_type=fields["resample"][1],
      decoder_norm_types=fields["norm"], decoder_act_fns=fields["act"]).eval()
  for name, buffer in reference.named_buffers():  # statistics that are not the identity
    if name.endswith("running_mean"):
      buffer.normal_(0, 0.1)
    elif name.endswith("running_var"):
      buffer.uniform_(0.5, 1.5)
  encoder_dims, decoder_dims = dcae_convert.from_config(dict(reference.config))
  return request.param, reference, encoder_dims, decoder_dims


def test_decoder_and_gradients_equal_diffusers(variant):
  _assert_decoder_and_gradients(variant)


@pytest.mark.parametrize("variant", ["interpolate, Conv"], indirect=True)
def test_the_decoder_as_a_tpu_computes_it_equals_diffusers(variant, monkeypatch):
  monkeypatch.setattr(backend, "name", lambda: "tpu")
  _assert_decoder_and_gradients(variant)


def _assert_decoder_and_gradients(variant):
  name, reference, _, dims = variant
  reference.zero_grad()
  table = dcae_convert.decoder_rules(dims, "", "")
  params = engine.from_torch(_torch_dict(reference.decoder), table, None)
  latents = np.random.default_rng(0).standard_normal((2, 3, 3, 8)).astype(np.float32)
  z = torch.tensor(np.moveaxis(latents, -1, 1).copy(), requires_grad=True)
  expected = reference.decoder(z)
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
  expected_grads = {k: p.grad.numpy() for k, p in reference.decoder.named_parameters()}
  statistics = {k: v for k, v in _torch_dict(reference.decoder).items() if k not in expected_grads}
  assert all("running_" in k for k in statistics)  # buffers: no gradient in PyTorch, zero here
  expected_grads |= {k: np.zeros_like(v) for k, v in statistics.items()}
  recorded = tree.flatten(engine.from_torch(expected_grads, table, None))
  for path, gradient in tree.flatten(grads).items():
    parity.assert_parity("DC-AE decoder, gradients", label, gradient, recorded[path])


def test_encoder_equals_diffusers(variant):
  name, reference, dims, _ = variant
  params = engine.from_torch(
      _torch_dict(reference.encoder), dcae_convert.encoder_rules(dims, "", ""), None)
  image = np.random.default_rng(0).standard_normal((2, 48, 48, 3)).astype(np.float32)
  with torch.no_grad():
    expected = reference.encoder(torch.tensor(np.moveaxis(image, -1, 1).copy())).numpy()
  out = jax.jit(lambda x: dcae.Encoder(dims, jnp.float32).apply({"params": params}, x))(image)
  parity.assert_parity("DC-AE encoder", f"diffusers ({name})", out, golden_model.nhwc(expected))


def test_published_parameter_counts():
  preset = presets.get("1b")
  decoder = dcae.Decoder(preset.tokenizer.decoder, jnp.float32, "none")
  encoder = dcae.Encoder(preset.dcae_encoder, jnp.float32)
  count = lambda m, s: tree.count(jax.eval_shape(m.init, jax.random.key(0), jnp.zeros(s))["params"])
  assert count(decoder, (1, 2, 2, 32)) == 159_223_171
  assert count(encoder, (1, 64, 64, 3)) == 153_027_104


_CONFIG = dict(
    in_channels=3, latent_channels=8, attention_head_dim=8, encoder_block_types="ResBlock",
    decoder_block_types="ResBlock", encoder_block_out_channels=[8, 16],
    decoder_block_out_channels=[8, 16], encoder_layers_per_block=[1, 1],
    decoder_layers_per_block=[1, 1], encoder_qkv_multiscales=[[], []],
    decoder_qkv_multiscales=[[], []], upsample_block_type="interpolate",
    downsample_block_type="conv", decoder_norm_types="rms_norm", decoder_act_fns="silu",
    scaling_factor=0.5)


def test_dimensions_of_a_config_without_later_entries():
  encoder, decoder = dcae_convert.from_config(_CONFIG)
  assert (encoder.resample, encoder.norms, encoder.acts) == ("Conv", ("rms_norm",) * 2, ("silu",) * 2)
  assert (decoder.shortcut, decoder.conv_act, decoder.scaling_factor) == (True, "relu", 0.5)
  later = _CONFIG | {"decoder_in_shortcut": False, "encoder_out_shortcut": False,
                     "decoder_act_fns": ["relu", "swish"]}
  encoder, decoder = dcae_convert.from_config(later)
  assert (encoder.shortcut, decoder.shortcut, decoder.acts) == (False, False, ("relu", "swish"))


@pytest.mark.parametrize(("change", "message"), [
    ({"_class_name": "AutoencoderKL"}, "not AutoencoderDC"),
    ({"in_channels": 4}, "in_channels is 4"),
    ({"decoder_norm_types": ["rms_norm", "layer_norm"]}, "decoder_norm_types 'layer_norm'"),
    ({"decoder_act_fns": "tanh"}, "decoder_act_fns 'tanh' is unknown; known: silu"),
    ({"decoder_conv_act_fn": "tanh"}, "decoder_conv_act_fn 'tanh'"),
    ({"upsample_block_type": "bilinear"}, "known: interpolate, pixel_shuffle"),
    ({"encoder_block_types": "EViT_GLU"}, "known: ResBlock, EfficientViTBlock"),
    ({"decoder_layers_per_block": [1, 1, 1]}, "3 entries for 2 stages"),
    ({"latent_channels": 12}, "16 is no multiple of latent_channels 12")])
def test_configs_of_other_networks_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dcae_convert.from_config(_CONFIG | change)


def test_a_missing_entry_is_named():
  with pytest.raises(ValueError, match="lacks 'scaling_factor'"):
    dcae_convert.from_config({k: v for k, v in _CONFIG.items() if k != "scaling_factor"})


def test_start_is_that_of_pytorch():
  """Weights and biases uniform in ±1/√fan_in, norms 1 and 0."""
  dims = presets.get("tiny").tokenizer.decoder
  decoder = dcae.Decoder(dims, jnp.float32, "none")
  params = jax.jit(decoder.init)(jax.random.key(0), jnp.zeros((1, 1, 1, 32)))["params"]
  torch.manual_seed(0)
  reference = diffusers.AutoencoderDC(
      latent_channels=32, encoder_block_out_channels=(32, 32), encoder_layers_per_block=(1, 1),
      decoder_block_types=dims.blocks, decoder_block_out_channels=dims.channels,
      decoder_layers_per_block=dims.layers, decoder_qkv_multiscales=dims.qkv_multiscales,
      upsample_block_type=dims.resample).decoder
  expected = tree.flatten(engine.from_torch(
      _torch_dict(reference), dcae_convert.decoder_rules(dims, "", ""), None))
  flat = tree.flatten(params)
  assert set(flat) == set(expected)
  for path, value in flat.items():
    assert np.std(value) == pytest.approx(np.std(expected[path]), rel=0.35, abs=1e-6), path
    assert np.abs(value).max() == pytest.approx(np.abs(expected[path]).max(), rel=0.2), path


def test_bfloat16_and_remat_keep_the_stages(golden):
  """Norms and attention stay float32; the last convolution's output has the dtype asked for."""
  dims = golden_model.dcae_dims(golden)[1]
  run = np.load(golden / "component_dcae.npz")
  params = _recorded_params(golden)["decoder"]
  half = jax.jit(dcae.Decoder(dims, jnp.bfloat16, "full").apply)(
      {"params": params}, golden_model.nhwc(run["decode_in"]))
  full = golden_model.nhwc(run["decode_out"])
  chex.assert_type(half, jnp.bfloat16)
  half = parity.like(half.astype(jnp.float32), full)
  error = np.square(half - full).mean() / np.square(full).mean()
  assert np.sqrt(error) < 0.03
