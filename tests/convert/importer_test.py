"""Imports of the recorded folders: equal trees from every layout, errors that name the cause."""

import dataclasses
import json
import pathlib
import re
import shutil
import sys
from typing import Any

import numpy as np
import pytest
from safetensors import torch as safetensors_torch
import torch

from tests import golden_model, saved
from unilip_jax.common import tree
from unilip_jax.convert import (
  cli,
  dcae,
  engine,
  exporter,
  formats,
  importer,
  inspector,
  modules,
  reading,
)
from unilip_jax.convert import io as io_lib
from unilip_jax.models import presets, unilip
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import folder as folder_lib

_TOKENIZER = {"vision_tower", "mlp1", "latent_head", "decoder"}
_MLLM = {"vision_tower", "mlp1", "llm"}
_WHOLE = set(unilip.MODULES)
_HEADS = reading.Options(vit_heads=4)


@dataclasses.dataclass(frozen=True)
class _Imported:
  modules: dict[str, Any]
  dims: dict[str, Any]
  dtypes: dict[str, str]
  log: list[str]


def _convert(locations, options=reading.DEFAULTS):
  """An import in memory, in float32."""
  plan = importer.plan(locations, options)
  return _Imported({m: plan.read(m) for m in plan.dims}, plan.dims, plan.dtypes, plan.log)


@pytest.fixture(scope="module")
def imported(golden):
  """{name: import of a recorded folder}."""
  places = {"pth": "ckpt/tiny_unilip.pth", "hf": "ckpt/unilip_hf", "mllm": "pretrained/mllm",
            "mllm_hf": "pretrained/mllm_hf", "vae": "pretrained/vae", "dit": "pretrained/dit"}
  return {name: _convert([str(golden / place)], _HEADS) for name, place in places.items()}


def _assert_equal(a, b):
  a, b = tree.flatten(a), tree.flatten(b)
  assert a.keys() == b.keys()
  for path in a:
    np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def test_each_source_gives_its_modules_in_float32(imported):
  assert {name: set(i.modules) for name, i in imported.items()} == {
      "pth": _TOKENIZER, "hf": _WHOLE, "mllm": _MLLM, "mllm_hf": _MLLM, "dit": {"dit"},
      "vae": {"encoder", "decoder"}}
  for result in imported.values():
    assert {leaf.dtype for leaf in tree.flatten(result.modules).values()} == {np.dtype("float32")}
  assert set(imported["pth"].dtypes.values()) == {"float32"}
  assert set(imported["mllm"].dtypes.values()) == {"bfloat16"}


def test_both_internvl_layouts_give_one_tree(imported):
  _assert_equal(imported["mllm"].modules, imported["mllm_hf"].modules)


def test_the_checkpoint_and_the_folder_of_one_tokenizer_give_one_tree(imported):
  folder = imported["hf"].modules
  _assert_equal(imported["pth"].modules, {name: folder[name] for name in _TOKENIZER})


def test_shapes_and_configs_give_the_same_dimensions(imported):
  assert imported["pth"].dims == {n: d for n, d in imported["hf"].dims.items() if n in _TOKENIZER}
  assert imported["pth"].dims["vision_tower"] == imported["mllm_hf"].dims["vision_tower"]
  model = {"modules": imported["pth"].dims}
  complete = dims_lib.tokenizer_dims(model)
  assert complete.decoder == presets.from_json(presets.DcaeDims, imported["vae"].dims["decoder"])
  assert dims_lib.split_tokenizer(complete) == imported["pth"].dims


def test_whole_folders_give_the_recorded_dimensions(golden, imported):
  recorded = golden_model.unilip_dims(golden)
  plan = importer.plan([str(golden / "ckpt/unilip_hf")])
  assert dims_lib.unilip_dims({"modules": plan.dims, "generate": plan.generate}) == recorded
  assert imported["mllm"].dims["llm"] == presets.to_json(recorded.llm) | {"vocab": 263}
  assert imported["dit"].dims["dit"] == presets.to_json(recorded.dit)


def test_what_is_skipped_or_assumed_is_listed_with_its_reason(golden, imported, tmp_path):
  assert "position embedding of the DiT: added (UniLIP was trained with" in "\n".join(
      imported["hf"].log)
  assert not any("skipped" in line for result in imported.values() for line in result.log)
  folder = _copy(golden / "pretrained/mllm", tmp_path / "old", change=lambda t: t | {
      "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(6)})
  assert "skipped 1 tensors" in "\n".join(_convert([folder]).log)


@pytest.mark.parametrize(("version", "scale", "option", "added"), [
    ("0.32.2", None, None, True), ("0.33.1", None, None, False), ("0.33.1", 1.0, None, True),
    (None, None, None, False), ("0.33.1", None, True, True), ("0.32.2", None, False, False)])
def test_positions_of_a_plain_sana_follow_its_era_or_the_option(
    golden, tmp_path, version, scale, option, added):
  folder = pathlib.Path(_copy(golden / "pretrained/dit/transformer", tmp_path / "dit"))
  config = json.loads((folder / "config.json").read_text())
  config |= {"_diffusers_version": version, "interpolation_scale": scale}
  (folder / "config.json").write_text(json.dumps(config))
  plan = importer.plan([str(folder)], reading.Options(dit_positions=option))
  assert plan.dims["dit"]["positions"] is added
  assert f"position embedding of the DiT: {'added' if added else 'none'}" in "\n".join(plan.log)


@pytest.mark.parametrize("stored", [True, False], ids=["stored twice", "stored once"])
@pytest.mark.parametrize("level", ["text_config", "top"])
def test_a_tied_head_is_not_read_again(golden, tmp_path, level, stored):
  def change(tensors):
    name = "language_model.lm_head.weight"
    if stored:
      return tensors | {name: tensors["language_model.model.embed_tokens.weight"].clone()}
    return {k: v for k, v in tensors.items() if k != name}

  folder = pathlib.Path(_copy(golden / "pretrained/mllm_hf", tmp_path / "tied", change=change))
  config = json.loads((folder / "config.json").read_text())
  (config["text_config"] if level == "text_config" else config)["tie_word_embeddings"] = True
  (folder / "config.json").write_text(json.dumps(config))
  result = _convert([str(folder)])
  assert result.dims["llm"]["tied"] is True
  assert "head" not in result.modules["llm"]
  assert any("output head of a tied model" in line for line in result.log) is stored


@pytest.mark.parametrize("stored", [True, False])
def test_where_both_levels_of_a_config_disagree_the_tensors_tell(golden, tmp_path, stored):
  """transformers 5 ties InternVL by default, whatever its language model's config contains."""
  folder = pathlib.Path(_copy(golden / "pretrained/mllm_hf", tmp_path / "both", change=lambda t: {
      k: v for k, v in t.items() if stored or "lm_head" not in k}))
  config = json.loads((folder / "config.json").read_text())
  config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"] = True, False
  (folder / "config.json").write_text(json.dumps(config))
  assert importer.plan([str(folder)]).dims["llm"]["tied"] is not stored


def test_an_untied_model_without_its_head_is_refused(golden, tmp_path):
  folder = _copy(golden / "pretrained/mllm", tmp_path / "headless", change=lambda t: {
      k: v for k, v in t.items() if "lm_head" not in k})
  config = json.loads((pathlib.Path(folder) / "config.json").read_text())
  assert config["tie_word_embeddings"] is config["llm_config"]["tie_word_embeddings"] is False
  with pytest.raises(engine.ConversionError, match=r"missing.*\n.*lm_head\.weight \(needed for llm/head"):
    _convert([folder])


@pytest.mark.parametrize(("field", "value"), [
    ("model_type", "internlm2"), ("hidden_act", "gelu"), ("rms_norm_eps", 1e-5),
    ("rope_scaling", {"rope_type": "yarn"}), ("head_dim", 8)])
def test_other_language_models_are_refused_by_field(golden, tmp_path, field, value):
  folder = pathlib.Path(_copy(golden / "pretrained/mllm", tmp_path / "other"))
  config = json.loads((folder / "config.json").read_text())
  config["llm_config"][field] = value
  (folder / "config.json").write_text(json.dumps(config))
  with pytest.raises(io_lib.ReadError, match="language model: "):
    _convert([str(folder)])
  config["llm_config"] |= {field: {"type": "dynamic", "factor": 2.0}} if field == "rope_scaling" else {}
  (folder / "config.json").write_text(json.dumps(config))
  if field == "rope_scaling":
    assert importer.plan([str(folder)]).dims["llm"]["rope_theta"] == 1e6


def _copy(source: pathlib.Path, target: pathlib.Path, rename=lambda name: name, change=None,
          config=None):
  """A copy of a model folder with its tensors renamed or changed, or its config replaced."""
  target.mkdir()
  for file in source.glob("*.json"):
    shutil.copyfile(file, target / file.name)
  if config is not None:
    (target / "config.json").write_text(json.dumps(config))
  weight_file = next(source.glob("*.safetensors"))
  tensors = {rename(k): v for k, v in safetensors_torch.load_file(weight_file).items()}
  safetensors_torch.save_file((change or (lambda t: t))(tensors), target / weight_file.name)
  return str(target)


def test_new_transformers_names_give_the_same_tree(golden, imported, tmp_path):
  def rename(name):
    name = name.replace("language_model.lm_head.", "lm_head.")
    name = name.replace("language_model.model.", "language_model.")
    return name if name.startswith("lm_head.") else f"model.{name}"

  folder = _copy(golden / "pretrained/mllm_hf", tmp_path / "new", rename)
  _assert_equal(_convert([folder]).modules, imported["mllm"].modules)


def test_a_folder_of_shards_gives_the_same_tree(golden, imported, tmp_path):
  folder = pathlib.Path(_copy(golden / "pretrained/vae", tmp_path / "vae"))
  complete = folder / "diffusion_pytorch_model.safetensors"
  tensors = safetensors_torch.load_file(complete)
  names = sorted(tensors)
  weight_map = {}
  for part in range(2):
    file = f"diffusion_pytorch_model-{part + 1:05d}-of-00002.safetensors"
    chosen = {n: tensors[n] for n in names[part::2]}
    safetensors_torch.save_file(chosen, folder / file)
    weight_map |= dict.fromkeys(chosen, file)
  complete.unlink()
  (folder / f"{complete.name}.index.json").write_text(json.dumps({"weight_map": weight_map}))
  _assert_equal(_convert([str(folder)]).modules, imported["vae"].modules)


def test_several_sources_make_one_folder(golden, tmp_path):
  out = tmp_path / "start"
  importer.import_weights(
      [str(golden / "pretrained/mllm"), str(golden / "pretrained/vae")], str(out))
  arrays, model = saved.load(out)
  assert set(arrays) == set(model["modules"]) == _MLLM | {"encoder", "decoder"}
  assert model["dtypes"]["mlp1"] == "bfloat16"
  assert len(model["source"]) == 2


def test_of_a_module_in_two_sources_the_later_wins_and_the_log_says_so(golden, imported, tmp_path):
  other = _copy(golden / "pretrained/mllm_hf", tmp_path / "other", change=lambda t: {
      k: v + 1 for k, v in t.items()})
  result = _convert([other, str(golden / "pretrained/mllm")])
  _assert_equal(result.modules, imported["mllm"].modules)
  assert f"  mlp1: imported from here, no longer from {other}" in result.log
  result = _convert([str(golden / "pretrained/mllm"), other])
  assert not np.array_equal(result.modules["llm"]["head"], imported["mllm"].modules["llm"]["head"])


def test_components_compose_in_a_fixed_order(golden, imported):
  places = {"unilip": "ckpt/tiny_unilip.pth", "vae": "pretrained/vae", "dit": "pretrained/dit",
            "mllm": "pretrained/mllm_hf"}
  roles = [importer.Location(str(golden / places[role]), role) for role in importer.ROLES]
  result = _convert(roles, _HEADS)
  assert set(result.modules) == _TOKENIZER | {"llm", "dit", "encoder"}
  # The .pth holds a tower of its own, and wins.
  for module, origin in (("vision_tower", "pth"), ("decoder", "pth"), ("encoder", "vae"),
                         ("llm", "mllm"), ("dit", "dit")):
    _assert_equal(result.modules[module], imported[origin].modules[module])
  same = _convert([location.place for location in roles], _HEADS)
  _assert_equal(same.modules, result.modules)
  with pytest.raises(engine.ConversionError, match=r"--dit=.*vae holds none of dit"):
    importer.plan([importer.Location(str(golden / "pretrained/vae"), "dit")])


@pytest.mark.parametrize("dtype", importer.DTYPES)
def test_the_folder_has_the_dtype_that_was_chosen(golden, imported, tmp_path, dtype):
  out = tmp_path / "w"
  importer.import_weights([str(golden / "ckpt/unilip_hf")], str(out), dtype=dtype)
  wanted = "bfloat16" if dtype == "source" else dtype
  stored = folder_lib.open_folder(out)
  assert {leaf.dtype.name for leaf in stored.shapes.values()} == {wanted}
  _assert_equal(saved.load(out)[0], imported["hf"].modules)  # exact in bfloat16
  assert stored.model["generate"] == {"factor": 10.6, "condition": "both"}
  recorded = (golden / "ckpt/unilip_hf/tokenizer.json").read_text()
  assert (out / "tokenizer.json").read_text() == recorded


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t | {"vision_model.extra": torch.zeros(2)}, r"unknown.*\n.*vision_model\.extra"),
    (lambda t: {k: v for k, v in t.items() if k != "mlp1.3.bias"},
     r"missing.*\n.*mlp1\.3\.bias \(needed for mlp1/fc2/bias\)"),
    (lambda t: t | {"mlp1.3.bias": torch.zeros(7)},
     r"mlp1\.3\.bias \(7,\).*mlp1/fc2/bias.*\(48,\)"),
    (lambda t: t | {"mlp1.0.bias": torch.zeros(256, dtype=torch.float64)},
     r"mlp1\.0\.bias.*float64"),
    (lambda t: {k: v for k, v in t.items() if not k.startswith("mlp1.1.weight")},
     r"lack 'mlp1\.1\.weight'")])
def test_weights_that_do_not_fit_are_refused_by_name(golden, tmp_path, change, message):
  folder = _copy(golden / "pretrained/mllm", tmp_path / "bad", change=change)
  with pytest.raises(ValueError, match=message) as error:
    importer.import_weights([folder], str(tmp_path / "out"))
  assert folder in str(error.value)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("field", "value"), [
    ("qk_normalization", True), ("norm_type", "rms_norm"), ("hidden_act", "silu")])
def test_other_vision_towers_are_refused_by_field(golden, tmp_path, field, value):
  folder = pathlib.Path(_copy(golden / "pretrained/mllm", tmp_path / "other"))
  config = json.loads((folder / "config.json").read_text())
  config["vision_config"][field] = value
  (folder / "config.json").write_text(json.dumps(config))
  with pytest.raises(io_lib.ReadError, match=f"{field}={value!r}"):
    _convert([str(folder)])


def test_unknown_kinds_and_absent_paths_are_refused(golden, tmp_path):
  with pytest.raises(io_lib.ReadError, match=r"no known format.*FluxTransformer2DModel.*Known"):
    _convert([_copy(golden / "pretrained/dit/transformer", tmp_path / "flux", config={
        "_class_name": "FluxTransformer2DModel"})])
  with pytest.raises(io_lib.ReadError, match="no such file or folder; a Hugging Face"):
    _convert([str(tmp_path / "OpenGVLab/InternVL3-1B")])
  with pytest.raises(io_lib.ReadError, match="local path"):
    _convert(["gs://bucket/folder"])


def test_heads_that_shapes_do_not_tell_are_asked_for(golden):
  with pytest.raises(io_lib.ReadError, match=r"width is 64.*--vit_heads=N"):
    _convert([str(golden / "ckpt/tiny_unilip.pth")])
  with pytest.raises(io_lib.ReadError, match="vit_heads=5 does not divide"):
    _convert([str(golden / "ckpt/tiny_unilip.pth")], reading.Options(vit_heads=5))


def _loss_files(golden, folder: pathlib.Path) -> pathlib.Path:
  """The recorded narrow loss networks as the files people download."""
  folder.mkdir()
  tensors = safetensors_torch.load_file(golden / "ckpt/tiny_loss_nets.safetensors")
  vgg, heads, convnext = {}, {}, {}
  for name, tensor in tensors.items():
    if name.startswith("perceptual_loss.convnext."):
      convnext[name.removeprefix("perceptual_loss.convnext.")] = tensor.float()
    elif name.startswith("perceptual_loss.lpips.lin"):
      heads[name.removeprefix("perceptual_loss.lpips.")] = tensor.float()
    elif name.startswith("perceptual_loss.lpips.net."):
      vgg["features." + re.sub(r".*slice\d\.", "", name)] = tensor.float()
  vgg["classifier.0.weight"] = torch.zeros(3, 3)
  torch.save(vgg, folder / "vgg16-0.pth", _use_new_zipfile_serialization=False)  # as published
  torch.save(heads, folder / "vgg.pth")
  torch.save(convnext, folder / "convnext_small-0.pth")
  return folder


def test_perceptual_networks_come_from_one_folder_of_files(golden, tmp_path):
  result = _convert([str(_loss_files(golden, tmp_path / "nets"))])
  assert set(result.modules) == {"lpips", "convnext"}
  wanted = safetensors_torch.load_file(golden / "ckpt/tiny_loss_nets.safetensors")
  first = wanted["perceptual_loss.lpips.net.slice1.0.weight"].float().numpy()
  np.testing.assert_array_equal(
      result.modules["lpips"]["vgg"]["slice0_conv0"]["kernel"], first.transpose(2, 3, 1, 0))
  assert result.dims["convnext"]["depths"] == (1, 1, 2, 1)
  assert result.dims["lpips"]["convs"] == (2, 2, 3, 3, 3)
  assert "skipped 1 tensors (classifier.0.weight" in "\n".join(result.log)


@pytest.mark.parametrize("lost", ["vgg.pth", "vgg16-0.pth"])
def test_half_of_lpips_is_refused_with_what_it_lacks(golden, tmp_path, lost):
  folder = _loss_files(golden, tmp_path / "nets")
  (folder / lost).unlink()
  with pytest.raises(engine.ConversionError, match=r"vgg16 and LPIPS' heads"):
    _convert([str(folder)])


@pytest.mark.parametrize("changes", [
    {}, {"upsample_block_type": "pixel_shuffle"}, {"decoder_layers_per_block": [0, 1, 2, 1, 1, 1]},
    {"decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * 3}])
def test_decoder_dimensions_from_shapes_equal_those_of_the_config(golden, changes):
  import diffusers

  config = json.loads((golden / "pretrained/vae/config.json").read_text()) | changes
  state = diffusers.AutoencoderDC.from_config(config).state_dict()
  shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
  wanted = dcae.from_config(config)[1]
  assert dcae.decoder_from_shapes(shapes, "decoder.") == wanted
  table = dcae.decoder_rules(wanted, "decoder.", "decoder/")
  params = engine.from_torch(
      {k: v.numpy() for k, v in state.items() if k.startswith("decoder.")}, table,
      {f"decoder/{p}": s for p, s in modules.shapes("decoder", presets.to_json(wanted)).items()},
      skip=[reading.COUNTER])
  assert set(params) == {"decoder"}


# Parameters of UniLIP, arXiv 2507.23278, and the networks it builds on; the LLM with UniLIP's 151 677 rows,
# without its head.
_SAME = {"vision_tower": 304_012_288, "decoder": 159_223_171, "encoder": 153_027_104,
         "lpips": 14_716_160, "convnext": 50_223_688}
_PUBLISHED = {
    "1b": _SAME | {"mlp1": 4_482_816, "latent_head": 4_859_200, "llm": 493_800_704,
                   "connector": 89_475_200, "queries": 229_376, "projector": 2_066_688,
                   "dit": 591_747_872},
    "3b": _SAME | {"mlp1": 8_662_016, "latent_head": 14_227_520, "llm": 1_543_316_480,
                   "connector": 280_788_480, "queries": 393_216, "projector": 3_541_248,
                   "dit": 1_604_462_752},
}


@pytest.mark.parametrize("size", ["1b", "3b"])
def test_published_dimensions_have_the_published_counts(size):
  parts = inspector.preset_dims(size)
  assert set(parts) == set(_PUBLISHED[size]) == _WHOLE | {"encoder", "lpips", "convnext"}
  for module, module_dims in parts.items():
    shapes = {p: s.shape for p, s in modules.shapes(module, module_dims, parts["llm"]).items()}
    count = modules.count(module, module_dims, shapes)
    head = module_dims["vocab"] * module_dims["width"] if module == "llm" else 0
    assert count == _PUBLISHED[size][module] + head, module
    # The CLIP tower and DC-AE are the same at both sizes.
    published = inspector.published_count(module, module_dims, parts["llm"])
    assert published in (("1b", count), (size, count)), module
  # InternVL3's own vocabulary has three rows less, in embedding and head.
  small = parts["llm"] | {"vocab": 151_674}
  shapes = {p: s.shape for p, s in modules.shapes("llm", small).items()}
  assert inspector.published_count("llm", small) == (size, modules.count("llm", small, shapes))
  body = modules.count("llm", small, shapes) - small["vocab"] * small["width"]
  assert body == {"1b": 493_798_016, "3b": 1_543_311_872}[size]
  assert inspector.published_count("llm", small | {"depth": 3}) is None


_CONFIG_1B = {
    "model_type": "unilip_internvl", "vision_config": {
        "num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16,
        "intermediate_size": 4096, "patch_size": 14, "image_size": 448},
    "dit_path": "Efficient-Large-Model/Sana_600M_512px_diffusers", "unilip_factor": 10.6,
    "connect_layer": 6, "n_query": 256, "text_config": {
        "num_hidden_layers": 24, "hidden_size": 896, "num_attention_heads": 14,
        "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151_677}}


def test_every_published_name_and_shape_is_read(golden):
  """Without the DiT's config.json, which a hub id in `dit_path` does not lead to."""
  patterns = json.loads((golden / "keys_real_1b_patterns.json").read_text())["patterns"]
  _, result = formats.read_source(
      io_lib.Source(pathlib.Path("/none"), _CONFIG_1B, _Shapes(_expand(patterns))), reading.Options())
  published = {m: d for m, d in inspector.preset_dims("1b").items() if m in _WHOLE}
  assert {p.module: p.dims for p in result.parts} == published
  names = {n for part in result.parts for n in engine.torch_names(part.rules)}
  skipped = engine.unused(_expand(patterns), [r for p in result.parts for r in p.rules],
                          result.skip)
  assert not skipped
  assert names | {n for group in skipped.values() for n in group} == set(_expand(patterns))


class _Shapes(dict):
  @property
  def shapes(self):
    return self


def _expand(patterns) -> dict[str, tuple[int, ...]]:
  """{name: shape} of patterns whose numbers are written N."""
  names = {}
  for pattern, entry in patterns.items():
    for i in range(entry["count"]):
      names[pattern.replace(".N.", f".{i}.", 1)] = tuple(entry["shape"])
  return names


def _without_torch(monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)


def test_a_pickle_without_torch_is_refused_before_anything_is_read(golden, monkeypatch):
  _without_torch(monkeypatch)
  monkeypatch.setattr(io_lib, "find", lambda place: pytest.fail("read"))
  with pytest.raises(io_lib.ReadError, match=r"tiny_unilip.pth: reading .pth needs PyTorch \(pip install"):
    importer.plan([str(golden / "pretrained/mllm"), str(golden / "ckpt/tiny_unilip.pth")])


def test_exporting_a_pickle_without_torch_is_refused_before_anything_is_read(monkeypatch, capsys):
  _without_torch(monkeypatch)
  monkeypatch.setattr(exporter.sources, "open_weights", lambda path: pytest.fail("read"))
  assert cli.main(["export", "--checkpoint=shapes:stage1", "--format=pth", "--out=t.pth"]) == 1
  assert capsys.readouterr().err.startswith(
      "error: t.pth: writing .pth needs PyTorch (pip install torch)")


def test_unknown_formats_and_dtypes_are_refused_before_anything_is_read(monkeypatch):
  monkeypatch.setattr(io_lib, "find", lambda place: pytest.fail("read"))
  monkeypatch.setattr(exporter.sources, "open_weights", lambda path: pytest.fail("read"))
  for call, message in (
      (lambda: importer.import_weights(["x"], "out", dtype="fp16"), "dtype='fp16': choose 'source' or"),
      (lambda: exporter.export_weights("x", "pth", "out", "float16"), "dtype='float16'"),
      (lambda: exporter.export_weights("x", "onnx", "out"), "format='onnx': choose 'unilip' or 'pth'")):
    with pytest.raises(ValueError, match=message):
      call()


@pytest.mark.parametrize("role", ["source", "unilip"])
def test_two_files_of_one_module_in_a_folder_are_refused_with_the_choice(golden, tmp_path, role):
  for name in ("1b_unilip.pth", "2b_unilip.pth"):
    shutil.copyfile(golden / "ckpt/tiny_unilip.pth", tmp_path / name)
  place = str(tmp_path) if role == "source" else importer.Location(str(tmp_path), role)
  with pytest.raises(engine.ConversionError) as error:
    importer.plan([place], _HEADS)
  message = str(error.value)
  assert "1b_unilip.pth and 2b_unilip.pth both hold vision_tower" in message
  assert f"choose --{role}={tmp_path}/1b_unilip.pth or --{role}={tmp_path}/2b_unilip.pth" in message
  files = [str(tmp_path / name) for name in ("2b_unilip.pth", "1b_unilip.pth")]  # a choice: the last wins
  assert "1b_unilip.pth" in str(importer.plan(files, _HEADS).shares["decoder"][0].source.path)


def test_weight_files_that_are_not_read_are_named(golden, tmp_path):
  folder = pathlib.Path(_copy(golden / "pretrained/vae", tmp_path / "vae"))
  assert "not read" not in "\n".join(importer.plan([str(folder)]).log)
  (folder / "other_model.bin").write_bytes(b"")
  line = "  not read: other_model.bin; give a file alone to choose it"
  assert line in importer.plan([str(folder)]).log
  assert line in inspector.describe(str(folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_and_infinite_weights_are_named(golden, tmp_path, dtype):
  def damage(tensors):
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    tensors["mlp1.1.weight"][0, :3] = float("nan")
    tensors["mlp1.3.bias"][1] = float("-inf")
    return tensors

  folder = _copy(golden / "pretrained/mllm", tmp_path / "nan", change=damage)
  with pytest.raises(engine.ConversionError) as error:
    importer.import_weights([folder], str(tmp_path / "out"))
  assert re.search(r"mlp1\.1\.weight: 3 of \d+ values are NaN or infinite", str(error.value))
  assert re.search(r"mlp1\.3\.bias: 1 of \d+ values are NaN or infinite", str(error.value))
  assert not (tmp_path / "out").exists()


def test_an_assumed_position_grid_is_logged(golden):
  patterns = json.loads((golden / "keys_real_1b_patterns.json").read_text())["patterns"]
  source = io_lib.Source(pathlib.Path("/none"), _CONFIG_1B, _Shapes(_expand(patterns)))
  notes = formats.read_source(source, reading.Options())[1].notes
  wanted = "36 heads and a position grid of 16×16 are assumed, since dit_path='Efficient-Large-Model/Sana"
  assert any(wanted in note for note in notes)
