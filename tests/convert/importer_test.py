"""Imports of the recorded folders: equal trees from every layout, errors that name the cause."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from safetensors import torch as safetensors_torch
import torch

from unilip_jax import presets, tree, weights
from unilip_jax.convert import dims, importer, kinds, modules, read, rules, sources, tables_dcae

_TOKENIZER = {"vision_tower", "mlp1", "latent_head", "decoder"}


@pytest.fixture(scope="module")
def imported(golden):
  """{name: import of a recorded folder}."""
  places = {"pth": "ckpt/tiny_unilip.pth", "hf": "ckpt/unilip_hf", "mllm": "pretrained/mllm",
            "mllm_hf": "pretrained/mllm_hf", "vae": "pretrained/vae"}
  return {name: importer.convert([str(golden / place)], vit_heads=4 if name == "pth" else None)
          for name, place in places.items()}


def _assert_equal(a, b):
  a, b = tree.flatten(a), tree.flatten(b)
  assert a.keys() == b.keys()
  for path in a:
    np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def test_each_source_gives_its_modules_in_float32(imported):
  assert {name: set(i.modules) for name, i in imported.items()} == {
      "pth": _TOKENIZER, "hf": _TOKENIZER, "mllm": {"vision_tower", "mlp1"},
      "mllm_hf": {"vision_tower", "mlp1"}, "vae": {"encoder", "decoder"}}
  for result in imported.values():
    assert {leaf.dtype for leaf in tree.flatten(result.modules).values()} == {np.dtype("float32")}
  assert set(imported["pth"].dtypes.values()) == {"float32"}
  assert set(imported["mllm"].dtypes.values()) == {"bfloat16"}


def test_both_internvl_layouts_give_one_tree(imported):
  _assert_equal(imported["mllm"].modules, imported["mllm_hf"].modules)


def test_the_checkpoint_and_the_folder_of_one_tokenizer_give_one_tree(imported):
  _assert_equal(imported["pth"].modules, imported["hf"].modules)


def test_shapes_and_configs_give_the_same_dimensions(imported):
  assert imported["pth"].dims == imported["hf"].dims
  assert imported["pth"].dims["vision_tower"] == imported["mllm_hf"].dims["vision_tower"]
  model = {"modules": imported["pth"].dims}
  whole = weights.tokenizer_dims(model)
  assert whole.decoder == presets.from_json(presets.DcaeDims, imported["vae"].dims["decoder"])
  assert weights.split_tokenizer(whole) == imported["pth"].dims


def test_what_is_skipped_is_listed_with_its_reason(imported):
  log = "\n".join(imported["hf"].log)
  assert re.search(r"skipped \d+ tensors \(lm_head.*language model", log)
  assert re.search(r"skipped \d+ tensors \(model\.dit.*generation part", log)
  assert "skipped" in "\n".join(imported["mllm"].log)
  assert "skipped" not in "\n".join(imported["vae"].log)


def _copy(source: pathlib.Path, target: pathlib.Path, rename=lambda name: name, change=None):
  """A copy of a model folder with its tensors renamed or changed."""
  target.mkdir()
  for file in source.glob("*.json"):
    shutil.copy(file, target)
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
  _assert_equal(importer.convert([folder]).modules, imported["mllm"].modules)


def test_a_folder_of_shards_gives_the_same_tree(golden, imported, tmp_path):
  folder = pathlib.Path(_copy(golden / "pretrained/vae", tmp_path / "vae"))
  whole = folder / "diffusion_pytorch_model.safetensors"
  tensors = safetensors_torch.load_file(whole)
  names = sorted(tensors)
  weight_map = {}
  for part in range(2):
    file = f"diffusion_pytorch_model-{part + 1:05d}-of-00002.safetensors"
    chosen = {n: tensors[n] for n in names[part::2]}
    safetensors_torch.save_file(chosen, folder / file)
    weight_map |= dict.fromkeys(chosen, file)
  whole.unlink()
  (folder / f"{whole.name}.index.json").write_text(json.dumps({"weight_map": weight_map}))
  _assert_equal(importer.convert([str(folder)]).modules, imported["vae"].modules)


def test_several_sources_make_one_folder(golden, tmp_path):
  out = tmp_path / "start"
  importer.import_weights(
      [str(golden / "pretrained/mllm"), str(golden / "pretrained/vae")], str(out))
  arrays, model = weights.load_weights(out)
  assert set(arrays) == set(model["modules"]) == {"vision_tower", "mlp1", "encoder", "decoder"}
  assert model["dtypes"]["mlp1"] == "bfloat16"
  assert len(model["source"]) == 2


def test_one_module_from_two_sources_is_refused(golden):
  with pytest.raises(rules.ConversionError, match=r"doubled: vision_tower comes from .*mllm"):
    importer.convert([str(golden / "pretrained/mllm"), str(golden / "pretrained/mllm_hf")])


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t | {"vision_model.extra": torch.zeros(2)}, r"unknown.*\n.*vision_model\.extra"),
    (lambda t: {k: v for k, v in t.items() if k != "mlp1.3.bias"},
     r"missing.*\n.*mlp1\.3\.bias \(wanted for mlp1/fc2/bias\)"),
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
  with pytest.raises(read.ReadError, match=f"{field}={value!r}"):
    importer.convert([str(folder)])


def test_unknown_kinds_and_absent_paths_are_refused(golden, tmp_path):
  with pytest.raises(read.ReadError, match=r"no known kind.*SanaTransformer2DModel.*Known"):
    importer.convert([str(golden / "pretrained/dit/transformer")])
  with pytest.raises(read.ReadError, match="no such file or folder; a Hugging Face"):
    importer.convert([str(tmp_path / "OpenGVLab/InternVL3-1B")])
  with pytest.raises(read.ReadError, match="local path"):
    importer.convert(["gs://bucket/folder"])


def test_heads_that_shapes_do_not_tell_are_asked_for(golden):
  with pytest.raises(read.ReadError, match=r"width is 64.*--vit_heads=N"):
    importer.convert([str(golden / "ckpt/tiny_unilip.pth")])
  with pytest.raises(read.ReadError, match="vit_heads=5 does not divide"):
    importer.convert([str(golden / "ckpt/tiny_unilip.pth")], vit_heads=5)


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
  result = importer.convert([str(_loss_files(golden, tmp_path / "nets"))])
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
  with pytest.raises(rules.ConversionError, match=r"vgg16 and LPIPS' heads"):
    importer.convert([str(folder)])


@pytest.mark.parametrize("changes", [
    {}, {"upsample_block_type": "pixel_shuffle"}, {"decoder_layers_per_block": [0, 1, 2, 1, 1, 1]},
    {"decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * 3}])
def test_decoder_dimensions_from_shapes_equal_those_of_the_config(golden, changes):
  import diffusers

  config = json.loads((golden / "pretrained/vae/config.json").read_text()) | changes
  state = diffusers.AutoencoderDC.from_config(config).state_dict()
  shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
  wanted = tables_dcae.dims_from_config(config)[1]
  assert dims.decoder_from_shapes(shapes, "decoder.") == wanted
  table = tables_dcae.decoder_rules(wanted, "decoder.", "decoder/")
  params = rules.from_torch(
      {k: v.numpy() for k, v in state.items() if k.startswith("decoder.")}, table,
      {f"decoder/{p}": s for p, s in modules.shapes("decoder", presets.to_json(wanted)).items()},
      skip=[kinds.COUNTER])
  assert set(params) == {"decoder"}


def _published_parts(size: str, width: int) -> dict[str, dict]:
  preset = presets.get(size)
  assert preset.tokenizer.llm_width == width
  return weights.split_tokenizer(preset.tokenizer) | {
      "encoder": presets.to_json(preset.dcae_encoder), "lpips": presets.to_json(preset.vgg),
      "convnext": presets.to_json(preset.convnext)}


@pytest.mark.parametrize(("size", "width"), [("1b", 896), ("3b", 1536)])
def test_published_dimensions_have_the_published_counts(size, width):
  for module, module_dims in _published_parts(size, width).items():
    count = sum(s.size for s in modules.shapes(module, module_dims).values())
    assert modules.published_count(module, module_dims)[1] == count, module


def test_every_published_name_and_shape_of_the_tokenizer_is_read(golden):
  patterns = json.loads((golden / "keys_real_1b_patterns.json").read_text())["patterns"]
  tokenizer = presets.get("1b").tokenizer
  _, reading = kinds.read_source(sources.Source(
      pathlib.Path("/none"), {"model_type": "unilip_internvl", "vision_config": {
          "num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16,
          "intermediate_size": 4096, "patch_size": 14, "image_size": 448}},
      _Shapes(_expand(patterns))), None)
  assert {p.module: p.dims for p in reading.parts} == weights.split_tokenizer(tokenizer)
  names = {n for part in reading.parts for n in rules.torch_names(part.rules)}
  skipped = rules.unused(_expand(patterns), [r for p in reading.parts for r in p.rules],
                         reading.skip)
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
