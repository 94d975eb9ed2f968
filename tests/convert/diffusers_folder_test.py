"""The exported folder runs in diffusers: its images are the recorded official ones, and UniLIP's own."""

import json
import pathlib
import re
import shlex

import diffusers
from diffusers.models.autoencoders import autoencoder_dc
from diffusers.utils import dynamic_modules_utils
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import tokenizers
import torch
import transformers

from tests import golden_model, parity
from unilip_jax import UniLIP
from unilip_jax.convert import cli, diffusers_folder, engine, exporter, importer, modules, sana
from unilip_jax.data import text as text_lib
from unilip_jax.models import presets, unilip
from unilip_jax.ops import image as image_ops
from unilip_jax.weights import dims as dims_lib

_DOCUMENT = pathlib.Path(__file__).parents[2] / "docs/diffusers.md"


@pytest.fixture(scope="module", autouse=True)
def _code(tmp_path_factory):
  """The folder into which diffusers copies the code that it runs; one thread, as networks are small."""
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    yield
  torch.set_num_threads(threads)


def _load(folder, **options):
  pipe = diffusers.DiffusionPipeline.from_pretrained(
      folder, custom_pipeline=f"{folder}/pipeline_unilip.py", trust_remote_code=True, **options)
  pipe.set_progress_bar_config(disable=True)
  return pipe


@pytest.fixture(scope="module")
def included(tmp_path_factory):
  """The included weights as a folder."""
  folder = tmp_path_factory.mktemp("included") / "out"
  assert cli.main(["export", "--checkpoint=shapes:gen3", "--format=diffusers", f"--out={folder}"]) == 0
  return folder


@pytest.fixture(scope="module")
def pipe(included):
  return _load(included)


@pytest.fixture(scope="module")
def official(golden, tmp_path_factory):
  root = tmp_path_factory.mktemp("official")
  importer.import_weights([str(golden / "ckpt/unilip_hf")], str(root / "w"))
  exporter.export_weights(str(root / "w"), "diffusers", str(root / "out"))
  return root / "out"


def test_images_equal_the_official_ones(golden, official):
  pipe = _load(official)
  steps = []
  for kind, prompt in (("t2i_leftpad", "a birthday cake"), ("edit_leftpad", "make it red")):
    arrays = np.load(golden / f"generate_{kind}.npz")
    image = None
    if kind.startswith("edit"):
      unit = image_ops.unit_from_imagenet(golden_model.nhwc(arrays["pixel_values"])[0])
      image = Image.fromarray(np.asarray(image_ops.pixels_from_unit(unit)))
    steps.clear()
    result, = pipe(
        prompt, image=image, latents=torch.from_numpy(arrays["initial_latents"]), output_type="np",
        return_dict=False, callback_on_step_end=lambda pipe, i, time, x: steps.append(x["latents"]) or x)
    parity.assert_recorded("exported diffusers folder, latents", f"golden generate_{kind}",
                           torch.cat(steps).numpy(), arrays["latents_per_step"], rtol=1e-3)
    np.testing.assert_allclose(parity.like(result[0], arrays["image"]), arrays["image"], atol=1 / 255)


def test_images_equal_those_of_unilip(pipe):
  model = UniLIP.load("shapes:gen3", dtype="float32", compilation_cache="")
  latents = np.random.default_rng(0).standard_normal((1, 4, 4, 32)).astype(np.float32)
  noise = torch.from_numpy(np.moveaxis(latents, -1, 1).copy())
  prompt, instruction = "a red circle left of a blue square", "make the red circle green"
  ours = model.generate([prompt], latents=latents)
  theirs = pipe(prompt, latents=noise).images
  np.testing.assert_allclose(np.int32(ours[0]), np.int32(theirs[0]), atol=1)
  wide = ours[0].resize((200, 150))  # an image of another shape
  ours = model.edit([wide], [instruction], latents=latents)
  theirs = pipe(instruction, image=wide, latents=noise).images
  np.testing.assert_allclose(np.int32(ours[0]), np.int32(theirs[0]), atol=1)


def test_rows_of_a_batch_do_not_depend_on_each_other(pipe):
  noise = torch.randn(4, 32, 4, 4, generator=torch.Generator().manual_seed(0))
  options = dict(num_inference_steps=2, output_type="latent")
  prompts = ["a red circle", "two green triangles above a yellow cross"]
  together = pipe(prompts, num_images_per_prompt=2, latents=noise, **options).images
  alone = torch.cat([pipe(prompts[i // 2], latents=noise[i:i + 1], **options).images for i in range(4)])
  torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
  images = [Image.new("L", (50, 30), 90), Image.new("RGB", (112, 112), "red")]
  together = pipe(prompts, image=images, latents=noise[:2], guidance_scale=1, **options).images
  alone = torch.cat([pipe(prompts[i], image=images[i], latents=noise[i:i + 1], guidance_scale=1,
                          **options).images for i in range(2)])
  torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prompt", [
    "a red circle", "  two\nlines  ", "a <|im_end|> red <IMG_<img>CONTEXT> circle", "café <ref>x</ref>"])
def test_prompts_are_laid_out_as_in_training(pipe, prompt):
  text = text_lib.Text("shapes")
  for tokens, editing in ((text.generation(prompt, 256), False), (text.editing(prompt, 16, 256), True)):
    assert pipe.tokens(prompt, editing=editing) == tokens[0][tokens[1]].tolist()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"prompt": ""}, "no text of its own"), ({"prompt": "<img>"}, "no text of its own"),
    ({"prompt": "circle " * 2000}, "at most 1008 fit"), ({"height": 512}, "makes 112 pixels squares"),
    ({"image": [Image.new("RGB", (9, 9))] * 2}, "2 images, but 1 prompts"),
    ({"image": Image.new("I;16", (9, 9))}, "image is I;16"), ({"image": np.zeros((9, 9, 3))}, "images"),
    ({"num_inference_steps": 0}, "num_inference_steps=0"), ({"guidance_scale": -1}, "guidance_scale=-1"),
    ({"output_type": "jpg"}, "choose pil"), ({"latents": torch.zeros(1, 4, 4, 32)}, r"\[1, 32, 4, 4\]")])
def test_what_the_model_does_not_have_is_refused(pipe, arguments, message):
  with pytest.raises(ValueError, match=message):
    pipe(**{"prompt": "a red circle", **arguments})


def test_the_code_is_not_run_unasked(included):
  with pytest.raises(ValueError, match="trust_remote_code=True"):
    diffusers.DiffusionPipeline.from_pretrained(included, custom_pipeline="pipeline_unilip")


def test_the_card_loads_the_folder_and_tells_scores(included, monkeypatch):
  card = (included / "README.md").read_text()
  assert re.search(r"^\| \S+ \| 0\.\d{4} \|$", card, re.MULTILINE)
  block, = re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
  monkeypatch.chdir(included)
  names = {}
  exec(compile(block, "README.md", "exec"), names)
  assert names["image"].size == (112, 112)


def test_the_document_prints_what_runs(included):
  text = _DOCUMENT.read_text()
  blocks = dict(re.findall(r"<!-- test: (\w+)[^>]*-->\n```\w+\n(.*?)```", text, re.DOTALL))
  assert text.count("```") == 2 * len(blocks)
  assert blocks["card"] in (included / "README.md").read_text()
  command, folder = blocks["parse"].splitlines()
  arguments = vars(cli._parser().parse_args(shlex.split(command)[2:]))
  assert {name: arguments[name] for name in ("command", "checkpoint", "format", "lora")} == {
      "command": "export", "checkpoint": "shapes:gen3", "format": "diffusers", "lora": False}
  assert folder == f"cd {arguments['out']}"
  section = text.partition("## The code")[2].partition("## What")[0]
  named = re.findall(r"`(\w+/|\w+\.(?:py|md|json))`", section)
  for name in {*named} - {"results.json", "unilip_connector.py", "unilip_decoder.py"}:
    assert (included / name).exists(), name


def test_a_card_without_scores_says_so(official):
  assert "None are stored with these weights." in (official / "README.md").read_text()


@pytest.mark.parametrize("condition", ["queries", "hidden"])
def test_a_context_of_one_part_is_that_of_jax(golden, official, condition):
  connector, rng = _load(official).connector, np.random.default_rng(0)
  connector.register_to_config(condition=condition)
  model = unilip.Unilip(golden_model.unilip_dims(golden), jnp.float32)
  params = golden_model.unilip_params(golden)
  states = rng.standard_normal((2, 7 + connector.config.queries, 48)).astype(np.float32)
  mask = np.ones(states.shape[:2], np.bool_)
  mask[0, 5:7] = False  # pads of a shorter prompt
  with torch.no_grad():
    context, valid = connector(torch.from_numpy(states), torch.from_numpy(mask))
  part = slice(7, None) if condition == "queries" else slice(7)

  @jax.jit
  def compute(params):
    stack, _ = model.connector.apply({"params": params["connector"]}, states[:, part], mask[:, part])
    return model.projector.apply({"params": params["projector"]}, stack)

  np.testing.assert_array_equal(valid.numpy(), mask[:, part])
  parity.assert_parity("exported connector", "JAX", context[valid].numpy(),
                       np.asarray(compute(params))[mask[:, part]])


def _dims(dims: presets.UnilipDims):
  """{module: JSON-ready dimensions} of the complete model."""
  return dims_lib.split_tokenizer(dims.tokenizer) | {
      "llm": presets.to_json(dims.llm), "connector": presets.to_json(dims.connector),
      "dit": presets.to_json(dims.dit),
      "queries": {"count": dims.connector.queries, "width": dims.llm.width},
      "projector": {"in_width": dims.llm.width, "width": dims.dit.caption_width}}


def test_what_is_not_a_generator_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"holds a model that generates.*not queries, connector"):
    exporter.export_weights("shapes:stage2", "diffusers", str(tmp_path / "out"))
  assert not (tmp_path / "out").exists()


def _networks(files):
  """{folder: the network of its config.json, without memory}."""
  configs = {file.folder: file.configs["config.json"] for file in files}
  layers = configs["connector"]["layers"]
  with torch.device("meta"):
    stack = transformers.Qwen2Model(transformers.Qwen2Config(**layers))
    del stack.embed_tokens
    connector = torch.nn.ModuleDict({
        "llm_connector": stack,
        "projector": torch.nn.Linear(layers["hidden_size"], configs["connector"]["caption_width"])})
    connector.register_parameter("latent_queries", torch.nn.Parameter(
        torch.zeros(1, configs["connector"]["queries"], layers["hidden_size"])))
    return {
        "mllm": transformers.InternVLForConditionalGeneration(
            transformers.InternVLConfig(**configs["mllm"])),
        "connector": connector,
        "transformer": diffusers.SanaTransformer2DModel.from_config(configs["transformer"]),
        "vae": torch.nn.ModuleDict({"decoder": autoencoder_dc.Decoder(**configs["vae"]["layers"])})}


def _older(name):
  """Names of transformers 5 as those of release 4, in which the files are written."""
  if name.startswith("lm_head"):
    return f"language_model.{name}"
  return name.removeprefix("model.").replace("language_model.", "language_model.model.")


@pytest.mark.parametrize("size", ["1b", pytest.param("3b", marks=pytest.mark.thorough)])
def test_published_sizes_have_the_networks_of_their_config(size):
  preset = presets.get(size)
  dims = _dims(preset.unilip)
  text = tokenizers.Tokenizer.from_str(text_lib.tokenizer_file("shapes").read_text())
  files = diffusers_folder.files(
      set(unilip.MODULES), {name: modules.parse_dims(name, d) for name, d in dims.items()},
      {"factor": preset.factor, "condition": "both"}, text)
  for file, (folder, network) in zip(files, _networks(files).items(), strict=True):
    assert file.folder == folder
    shapes = {_older(k) if folder == "mllm" else k: tuple(v.shape) for k, v in network.state_dict().items()
              if not k.endswith("rotary_emb.inv_freq")}
    rules = [rule for table in file.tables.values() for rule in table]
    expected = {f"{name}/{path}": leaf for name in file.tables
                for path, leaf in modules.shapes(name, dims[name], dims["llm"]).items()}
    empty = {name: np.broadcast_to(np.int8(0), shape) for name, shape in shapes.items()}
    engine.check(empty, rules, expected)
    for rule in rules:
      parts = [rule.move.to_jax(empty[name]).shape for name in rule.layers[0]]
      joined = (*parts[0][:-1], sum(part[-1] for part in parts)) if len(parts) > 1 else parts[0]
      assert ((rule.count,) if rule.count else ()) + joined == expected[rule.path].shape, rule.path
      assert all(shapes[a] == shapes[b] for layer in rule.layers for a, b in zip(layer, rule.layers[0]))
  mllm, connector, dit, vae = (file.configs["config.json"] for file in files)
  assert (connector["queries"], connector["condition"]) == (256, "both")
  assert mllm["image_seq_length"] == 256
  assert mllm["vision_config"]["image_size"] == [448, 448]
  assert dit["sample_size"] == 16
  assert vae["scaling_factor"] == preset.factor
  assert files[2].configs["../scheduler/scheduler_config.json"] == sana.SCHEDULER


def test_the_folder_names_its_code_and_components(included):
  index = json.loads((included / "model_index.json").read_text())
  for name, (library, _) in ((k, v) for k, v in index.items() if isinstance(v, list)):
    place = included if name == "_class_name" else included / name
    assert library in ("transformers", "diffusers") or (place / f"{library}.py").is_file()
