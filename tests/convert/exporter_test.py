"""Exported component folders load in transformers and diffusers and give the recorded outputs."""

import json
import re
import shlex

import diffusers
import numpy as np
import pytest
import torch
import transformers

from tests import micro, parity
from unilip_jax.common import tree
from unilip_jax.convert import cli, exporter, importer, modules, reading
from unilip_jax.data import text as text_lib
from unilip_jax.infer import __main__ as infer
from unilip_jax.models import presets
from unilip_jax.training import metrics
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import folder as folder_lib
from unilip_jax.weights import orbax_io


@pytest.fixture(scope="module")
def components(golden, tmp_path_factory):
  """The recorded components, imported and exported again."""
  root = tmp_path_factory.mktemp("components")
  roles = {"mllm": "pretrained/mllm", "dit": "pretrained/dit", "vae": "pretrained/vae"}
  importer.import_weights([importer.Location(str(golden / place), role)
                           for role, place in roles.items()], str(root / "w"))
  lines = exporter.export_weights(str(root / "w"), "components", str(root / "out"), "source")
  assert not any("not in this format" in line for line in lines)
  return root / "out"


def test_language_model_and_tower_load_in_transformers(golden, components):
  arrays = np.load(golden / "understanding_chat.npz")
  model, info = transformers.InternVLForConditionalGeneration.from_pretrained(
      components / "mllm_hf", dtype=torch.float32, output_loading_info=True)
  assert not info["missing_keys"]
  assert not info["unexpected_keys"]
  assert not info["mismatched_keys"]
  with torch.no_grad():
    logits = model.eval()(
        input_ids=torch.from_numpy(arrays["input_ids"]),
        pixel_values=torch.from_numpy(arrays["pixel_values"])).logits[:, -1]
  parity.assert_parity("exported InternVL", "golden understanding_chat", logits.numpy(),
                       arrays["internvl_logits"][:, 0])
  tokenizer = transformers.AutoTokenizer.from_pretrained(components / "mllm_hf")
  prompt = json.loads((golden / "understanding_chat_text.json").read_text())["internvl"]["query"]
  assert tokenizer(prompt)["input_ids"] == arrays["input_ids"][0].tolist()
  assert tokenizer.eos_token == text_lib.TURN_END


def test_the_transformer_loads_in_diffusers_with_its_positions(golden, components):
  arrays = np.load(golden / "component_dit.npz")
  model, info = diffusers.SanaTransformer2DModel.from_pretrained(
      components / "dit", subfolder="transformer", output_loading_info=True,
      torch_dtype=torch.float32)
  assert not info["missing_keys"]
  assert not info["unexpected_keys"]
  inputs = {name: torch.from_numpy(arrays[name]) for name in ("latents", "context", "context_mask")}
  with torch.no_grad():
    out = model(inputs["latents"], inputs["context"],
                torch.from_numpy(arrays["timesteps"]).float(),
                encoder_attention_mask=inputs["context_mask"], return_dict=False)[0]
  parity.assert_parity("exported SANA", "golden component_dit", out.numpy(), arrays["out"])
  scheduler = diffusers.DPMSolverMultistepScheduler.from_pretrained(
      components / "dit", subfolder="scheduler")
  scheduler.set_timesteps(20)
  recorded = np.load(golden / "schedulers.npz")
  np.testing.assert_array_equal(scheduler.timesteps.numpy(), recorded["dpm20_timesteps"])
  np.testing.assert_allclose(scheduler.sigmas.numpy(), recorded["dpm20_sigmas"], rtol=1e-5)


def test_the_autoencoder_loads_in_diffusers(golden, components):
  arrays = np.load(golden / "component_dcae.npz")
  model, info = diffusers.AutoencoderDC.from_pretrained(
      components / "vae", output_loading_info=True, torch_dtype=torch.float32)
  assert not info["missing_keys"]
  assert not info["unexpected_keys"]
  with torch.no_grad():
    decoded = model.decoder(torch.from_numpy(arrays["decode_in"])).numpy()
    parity.assert_parity("exported DC-AE, decoder", "golden component_dcae",
                         parity.like(decoded, arrays["decode_out"]), arrays["decode_out"])
    parity.assert_parity(
        "exported DC-AE, encoder", "golden component_dcae",
        model.encoder(torch.from_numpy(arrays["encode_in"])).numpy(), arrays["encode_out"])


@pytest.mark.parametrize("positions", [True, False])
def test_exported_positions_mean_the_same_when_they_come_back(golden, tmp_path, positions):
  option = f"--dit_positions={'on' if positions else 'off'}"
  for command in (["import", f"--source={golden}/pretrained/dit", f"--out={tmp_path}/w", option],
                  ["export", f"--checkpoint={tmp_path}/w", "--format=components",
                   f"--out={tmp_path}/c"],
                  ["import", f"--source={tmp_path}/c/dit", f"--out={tmp_path}/again"]):
    assert cli.main(command) == 0
  assert folder_lib.read_model(tmp_path / "again")["modules"]["dit"]["positions"] is positions


def test_the_card_of_a_run_tells_config_and_scores(tmp_path):
  run, config = tmp_path / "run", micro.config("stage1")
  dims = dims_lib.split_tokenizer(presets.get("tiny").tokenizer)
  config.data.own, config.data.own_prompt = "photos/mine", "a photo of sks"
  head = tree.unflatten({path: np.zeros(s.shape, np.float32)
                         for path, s in modules.shapes("latent_head", dims["latent_head"]).items()})
  (run / "checkpoints/5").mkdir(parents=True)
  orbax_io.write_tree(run / "checkpoints/5/ema", {"latent_head": head})
  (run / "model.json").write_text(json.dumps({"format": 1, "modules": dims}))
  (run / "config.json").write_text(json.dumps(
      config.to_dict() | {"started_from": "random weights", "total_steps": 4321}))
  (run / metrics.FILE).write_text('{"step": 4, "time": 1.0}\n{"step": 5, "time": 3.0}\n')
  (run / "results.json").write_text(json.dumps({"step": 5, "metrics": {"images/psnr": 21.75}}))
  exporter.export_weights(str(run), "components", str(tmp_path / "out"), "bfloat16")
  card = (tmp_path / "out/README.md").read_text()
  for text in ("| images/psnr | 21.7500 |", "results.json, step 5", '"total_steps": 4321',
               "configs/stage1.py:tiny --config.data.own=mine '--config.data.own_prompt=a photo of sks'",
               "| unilip | latent_head | ", "bfloat16", str(5)):
    assert text in card
  assert str(tmp_path) not in card


def _blocks(card):
  """[(language, text)] of the code blocks of a model card."""
  return re.findall(r"^```(\w*)\n(.*?)^```", card.read_text(), re.MULTILINE | re.DOTALL)


def _run(block):
  """Runs a block of commands in this process, or a block of Python."""
  language, text = block
  if language == "python":
    exec(compile(text, "README.md", "exec"), {})
    return
  for line in text.splitlines():
    python, option, module, *arguments = shlex.split(line)
    assert (python, option) == ("python", "-m")
    if module == "unilip_jax.convert":
      assert cli.main(arguments) == 0
    else:
      assert module == "unilip_jax.infer"
      infer.main(arguments)


def test_the_code_of_a_published_folders_card_runs(golden, tmp_path, monkeypatch):
  importer.import_weights([str(golden / "ckpt/unilip_hf")], str(tmp_path / "w"))
  exporter.export_weights(str(tmp_path / "w"), "unilip", str(tmp_path / "out"))
  monkeypatch.chdir(tmp_path / "out")
  blocks = _blocks(tmp_path / "out/README.md")
  assert len(blocks) == 1
  _run(blocks[0])
  assert (tmp_path / "samples/0000.png").exists()


@pytest.mark.parametrize("places", [
    {"mllm": "pretrained/mllm", "dit": "pretrained/dit", "vae": "pretrained/vae"},
    {"unilip": "ckpt/unilip_hf"}, {"unilip": "ckpt/tiny_unilip.pth"}])
def test_the_code_of_a_card_of_components_runs(golden, tmp_path, monkeypatch, places):
  """Without an encoder there is no `vae`, and a tokenizer alone has nothing that a library loads."""
  importer.import_weights([importer.Location(str(golden / place), role) for role, place in places.items()],
                          str(tmp_path / "w"), options=reading.Options(vit_heads=4))
  exporter.export_weights(str(tmp_path / "w"), "components", str(tmp_path / "out"))
  monkeypatch.chdir(tmp_path / "out")
  blocks = _blocks(tmp_path / "out/README.md")
  assert len(blocks) == (1 if "pth" in str(places) else 2)
  for block in blocks:
    _run(block)
  assert folder_lib.read_model(tmp_path / "weights")["modules"]
