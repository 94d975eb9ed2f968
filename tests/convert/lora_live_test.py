"""Exported adapters give the recorded outputs in PEFT and diffusers themselves (pip install peft)."""

import json
import pathlib

import numpy as np
import pytest
from safetensors import torch as safetensors

from tests.golden import lora as recordings
from unilip_jax.convert import lora_export, lora_files, lora_names, sana
from unilip_jax.models import presets

pytestmark = pytest.mark.thorough
_ATOL = 2e-5  # outputs have sizes of 1 to 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  return recordings.unpack(tmp_path_factory.mktemp("lora"))


def _export(place, out, layout, dims, write):
  """Reads a recorded adapter and writes it."""
  out.mkdir()
  leaves = lora_files.read(str(place), dims)
  write(out, lora_export.layers_of(leaves, layout, dims), layout, dims)
  return out


@pytest.mark.parametrize("name", ["adapter", "adapter_patterns"])
def test_peft_reads_an_adapter_of_the_language_model(folder, tmp_path, name):
  import peft
  import torch
  import transformers

  dims = {"llm": presets.LlmDims(depth=3, width=48, heads=4, kv_heads=2, mlp=96, vocab=128)}
  out = _export(folder / "llm" / name, tmp_path / "x", lora_names.QWEN2, dims, lora_export.write_peft)
  config = transformers.Qwen2Config.from_pretrained(folder / "llm/base")
  base = transformers.Qwen2ForCausalLM(config).float().eval()
  base.load_state_dict(safetensors.load_file(folder / "llm/base/model.safetensors"))
  recorded = np.load(folder / "llm" / name / "io.npz")
  ids, mask = (torch.tensor(recorded[key]) for key in ("input_ids", "attention_mask"))
  for model in (peft.PeftModel.from_pretrained(base, out),
                peft.PeftModel.from_pretrained(base, out).merge_and_unload()):
    with torch.no_grad():
      logits = model(input_ids=ids, attention_mask=mask).logits.numpy()
    valid = recorded["attention_mask"].astype(bool)
    np.testing.assert_allclose(logits[valid], recorded["logits_adapter"][valid], atol=_ATOL)


@pytest.mark.parametrize(("name", "library"), [
    ("script_defaults", "diffusers"), ("wide", "diffusers"), ("wide", "peft"), ("peft_folder", "peft")])
def test_diffusers_and_peft_read_an_adapter_of_the_dit(folder, tmp_path, name, library):
  import diffusers
  import peft
  import torch

  config = json.loads((folder / "dit/base/config.json").read_text())
  dims = {"dit": sana.from_config(config, positions=False)}
  base = diffusers.SanaTransformer2DModel.from_config(config).float().eval()
  base.load_state_dict(safetensors.load_file(folder / "dit/base/diffusion_pytorch_model.safetensors"))
  if library == "peft":
    out = _export(folder / "dit" / name, tmp_path / "x", lora_names.SANA, dims, lora_export.write_peft)
    model = peft.PeftModel.from_pretrained(base, out)
  else:
    out = _export(folder / "dit" / name, tmp_path / "x", lora_names.SANA, dims, lora_export.write_diffusers)
    model = base
    pipeline = diffusers.SanaPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=model, scheduler=None)
    pipeline.load_lora_weights(out)
  recorded = np.load(folder / "dit" / name / "io.npz")
  latents, timestep, context, mask = (
      torch.tensor(recorded[key]) for key in ("latents", "timestep", "context", "context_mask"))
  with torch.no_grad():
    velocity = model(hidden_states=latents, timestep=timestep, encoder_hidden_states=context,
                     encoder_attention_mask=mask, return_dict=False)[0].numpy()
  np.testing.assert_allclose(velocity, recorded["out_adapter"], atol=_ATOL)
