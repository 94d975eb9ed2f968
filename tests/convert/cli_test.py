"""The command line end to end: bit-equal round trips, one message per error, no half results."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors import torch as safetensors_torch
import torch

from tests import saved
from unilip_jax.common import tree
from unilip_jax.convert import cli, exporter, hub, importer, modules
from unilip_jax.models import presets, sana
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import folder as folder_lib
from unilip_jax.weights import orbax_io


def _import(source, out, *more) -> int:
  return cli.main(["import", f"--source={source}", f"--out={out}", *more])


def _export(folder, out, *more, fmt="pth") -> int:
  return cli.main(["export", f"--checkpoint={folder}", f"--format={fmt}", f"--out={out}", *more])


def _bits(tensor: torch.Tensor) -> np.ndarray:
  return tensor.reshape(-1).clone().view(torch.uint8).numpy()


def _assert_same_file(path, wanted_path):
  exported, wanted = (torch.load(p, weights_only=True) for p in (path, wanted_path))
  assert exported.keys() == wanted.keys()
  for name, tensor in wanted.items():
    assert exported[name].dtype == tensor.dtype
    assert exported[name].shape == tensor.shape
    np.testing.assert_array_equal(_bits(exported[name]), _bits(tensor), err_msg=name)


def test_a_checkpoint_goes_through_bit_equal(golden, tmp_path, capsys):
  source = golden / "ckpt/tiny_unilip.pth"
  assert _import(source, tmp_path / "w", "--vit_heads=4") == 0
  assert _export(tmp_path / "w", tmp_path / "back.pth") == 0
  _assert_same_file(tmp_path / "back.pth", source)
  keys = json.loads((golden / "keys_unilip_pth.json").read_text())
  back = torch.load(tmp_path / "back.pth", weights_only=True)
  assert {k: list(t.shape) for k, t in back.items()} == keys
  assert "wrote" in capsys.readouterr().out
  assert sorted(p.name for p in tmp_path.iterdir()) == ["back.pth", "w"]


def test_a_bfloat16_folder_leaves_as_it_came(golden, tmp_path):
  assert _import(golden / "ckpt/unilip_hf", tmp_path / "w") == 0
  assert _export(tmp_path / "w", tmp_path / "source.pth", "--dtype=source") == 0
  assert _export(tmp_path / "w", tmp_path / "bf16.pth", "--dtype=bfloat16") == 0
  _assert_same_file(tmp_path / "source.pth", tmp_path / "bf16.pth")
  assert {t.dtype for t in torch.load(tmp_path / "bf16.pth", weights_only=True).values()} == {
      torch.bfloat16}
  assert _export(tmp_path / "w", tmp_path / "float32.pth") == 0
  _assert_same_file(tmp_path / "float32.pth", golden / "ckpt/tiny_unilip.pth")


def test_float32_weights_rounded_to_bfloat16_equal_torchs_rounding(golden, tmp_path):
  arrays, model = _tiny_tokenizer()
  saved.save(tmp_path / "w", arrays, model["modules"])
  assert _export(tmp_path / "w", tmp_path / "f.pth") == 0
  assert _export(tmp_path / "w", tmp_path / "b.pth", "--dtype=bfloat16") == 0
  full = torch.load(tmp_path / "f.pth", weights_only=True)
  half = torch.load(tmp_path / "b.pth", weights_only=True)
  for name, tensor in full.items():
    assert torch.equal(half[name], tensor.bfloat16()), name


def _tiny_tokenizer():
  """Random weights at the tiny preset, as training at `:tiny` makes them."""
  rng = np.random.default_rng(0)
  dims = dims_lib.split_tokenizer(presets.get("tiny").tokenizer)
  flat = {f"{module}/{path}": rng.standard_normal(s.shape).astype(np.float32)
          for module, d in dims.items() for path, s in modules.shapes(module, d).items()}
  return tree.unflatten(flat), {"format": 1, "modules": dims}


def test_weights_of_a_run_are_exported_and_read_back(tmp_path):
  arrays, _ = _tiny_tokenizer()
  run = tmp_path / "run"
  step = run / "checkpoints/5"
  step.mkdir(parents=True)
  orbax_io.write_tree(step / "ema", {"latent_head": arrays["latent_head"],
                                     "decoder": arrays["decoder"]})
  orbax_io.write_tree(run / "frozen", {"vision_tower": arrays["vision_tower"],
                                       "mlp1": arrays["mlp1"]})
  tokenizer = presets.get("tiny").tokenizer
  (run / "model.json").write_text(json.dumps(
      {"format": 1, "modules": {"tokenizer": presets.to_json(tokenizer)}}))
  assert _export(run, tmp_path / "run.pth", "--dtype=source") == 0
  plan = importer.plan([str(tmp_path / "run.pth")])
  back = tree.flatten({module: plan.read(module) for module in plan.dims})
  for path, array in tree.flatten(arrays).items():
    np.testing.assert_array_equal(back[path], array, err_msg=path)
  assert cli.main(["inspect", str(run)]) == 0


def _tensors(folder) -> dict[str, torch.Tensor]:
  return {name: tensor for file in sorted(pathlib.Path(folder).rglob("*.safetensors"))
          for name, tensor in safetensors_torch.load_file(file).items()}


def _assert_same_tensors(exported, wanted):
  assert exported.keys() == wanted.keys()
  for name, tensor in wanted.items():
    assert exported[name].dtype == tensor.dtype, name
    assert torch.equal(exported[name], tensor), name


def test_a_unilip_folder_goes_through_bit_equal(golden, tmp_path):
  source = golden / "ckpt/unilip_hf"
  assert _import(source, tmp_path / "w") == 0
  assert _export(tmp_path / "w", tmp_path / "back", "--dtype=source", fmt="unilip") == 0
  _assert_same_tensors(_tensors(tmp_path / "back"), _tensors(source))
  exported, original = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "back", source))
  for field in ("n_query", "connect_layer", "unilip_factor", "model_type", "image_token_id",
                "pad_token_id", "image_seq_length", "architectures"):
    assert exported[field] == original[field], field
  for part in ("text_config", "vision_config"):
    assert original[part].items() >= {k: v for k, v in exported[part].items()
                                    if k != "tie_word_embeddings"}.items()
  assert (tmp_path / "back/tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
  # What was exported is imported again, dimensions included, from its own folder alone.
  assert _import(tmp_path / "back", tmp_path / "again") == 0
  first, second = (folder_lib.read_model(tmp_path / f) for f in ("w", "again"))
  assert first["modules"] == second["modules"]
  assert first["generate"] == second["generate"]
  assert "Exported by unilip_jax" in (tmp_path / "back/README.md").read_text()


def test_components_go_through_bit_equal(golden, tmp_path, capsys):
  places = {role: str(golden / place) for role, place in (
      ("vae", "pretrained/vae"), ("unilip", "ckpt/unilip_hf"))}
  assert cli.main(["import", f"--out={tmp_path}/w", *(f"--{r}={p}" for r, p in places.items())]) == 0
  assert _export(tmp_path / "w", tmp_path / "c", "--dtype=source", fmt="components") == 0
  capsys.readouterr()
  assert _import(tmp_path / "c", tmp_path / "again") == 0
  assert "position embedding of the DiT: added" in capsys.readouterr().out
  first, second = (saved.load(tmp_path / f, dtype=None) for f in ("w", "again"))
  assert {k: v for k, v in first[1].items() if k not in ("source", "modules", "dtypes")} == {
      k: v for k, v in second[1].items() if k not in ("source", "modules", "dtypes")}
  for key in ("modules", "dtypes"):
    assert dict(first[1][key]) == dict(second[1][key])
  a, b = tree.flatten(first[0]), tree.flatten(second[0])
  assert a.keys() == b.keys()
  for path in a:
    assert a[path].dtype == b[path].dtype
    np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def test_a_decoder_without_its_encoder_goes_to_unilips_own_parts(golden, tmp_path):
  assert _import(golden / "ckpt/unilip_hf", tmp_path / "w") == 0
  assert _export(tmp_path / "w", tmp_path / "c", fmt="components") == 0
  assert not (tmp_path / "c/vae").exists()
  assert _import(tmp_path / "c", tmp_path / "again") == 0
  assert folder_lib.read_model(tmp_path / "again")["modules"]["decoder"] == folder_lib.read_model(
      tmp_path / "w")["modules"]["decoder"]


def test_exported_files_are_readable_by_whom_the_umask_allows(golden, tmp_path):
  assert _import(golden / "pretrained/vae", tmp_path / "w") == 0
  former = os.umask(0o022)
  try:
    assert _export(tmp_path / "w", tmp_path / "c", fmt="components") == 0
  finally:
    os.umask(former)
  files = [p for p in (tmp_path / "c").rglob("*") if p.is_file()]
  assert {p.stat().st_mode & 0o777 for p in files} == {0o644}
  assert any(p.suffix == ".safetensors" for p in files)


def test_large_exports_are_cut_into_files_with_an_index(golden, tmp_path):
  _import(golden / "ckpt/unilip_hf", tmp_path / "w")
  exporter.export_weights(
      str(tmp_path / "w"), "unilip", str(tmp_path / "u"), "source", shard_bytes=500_000)
  names = sorted(p.name for p in (tmp_path / "u").glob("*.safetensors"))
  assert names == [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)]
  _assert_same_tensors(_tensors(tmp_path / "u"), _tensors(golden / "ckpt/unilip_hf"))
  assert _import(tmp_path / "u", tmp_path / "again") == 0


def test_a_full_disk_leaves_no_half_folder(golden, tmp_path, monkeypatch, capsys):
  from unilip_jax.convert import exporter as module

  _import(golden / "ckpt/unilip_hf", tmp_path / "w")
  monkeypatch.setattr(module.safetensors, "save_file", _raise_no_space)
  assert _export(tmp_path / "w", tmp_path / "u", fmt="unilip") == 1
  write = orbax_io.write_tree
  monkeypatch.setattr(orbax_io, "write_tree", lambda folder, arrays: (
      _raise_no_space() if folder.name == "dit" else write(folder, arrays)))
  assert _import(golden / "ckpt/unilip_hf", tmp_path / "w2") == 1
  assert capsys.readouterr().err.count("no space left on device") == 2
  assert [p.name for p in tmp_path.iterdir()] == ["w"]


def _raise_no_space(*args, **kwargs):
  raise OSError("no space left on device")


def test_an_export_replaces_only_an_export(golden, tmp_path, capsys):
  _import(golden / "pretrained/vae", tmp_path / "w")
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine/a.txt").write_text("mine")
  for more in ((), ("--overwrite",)):
    assert _export(tmp_path / "w", tmp_path / "mine", *more, fmt="components") == 1
  assert (tmp_path / "mine/a.txt").exists()
  assert _export(tmp_path / "w", tmp_path / "c", fmt="components") == 0
  assert _export(tmp_path / "w", tmp_path / "c", "--overwrite", fmt="components") == 0
  assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "mine", "w"]


def test_export_names_the_modules_that_are_absent(golden, tmp_path, capsys):
  assert _import(golden / "pretrained/vae", tmp_path / "vae") == 0
  assert _export(tmp_path / "vae", tmp_path / "x.pth") == 1
  message = capsys.readouterr().err
  assert "lacks vision_tower, mlp1, latent_head" in message
  assert "Traceback" not in message
  assert not (tmp_path / "x.pth").exists()


def test_export_of_nothing_says_what_to_download(tmp_path, capsys):
  assert _export(tmp_path / "weights/internvl3-1b", tmp_path / "x.pth") == 1
  assert "hf://OpenGVLab/InternVL3-1B" in capsys.readouterr().err


def test_export_replaces_a_file_only_on_request(golden, tmp_path, capsys):
  _import(golden / "ckpt/unilip_hf", tmp_path / "w")
  (tmp_path / "mine.pth").write_text("mine")
  assert _export(tmp_path / "w", tmp_path / "mine.pth") == 1
  assert "--overwrite" in capsys.readouterr().err
  assert (tmp_path / "mine.pth").read_text() == "mine"
  assert _export(tmp_path / "w", tmp_path / "mine.pth", "--overwrite") == 0
  _assert_same_file(tmp_path / "mine.pth", golden / "ckpt/tiny_unilip.pth")


def test_a_failed_export_leaves_no_file(golden, tmp_path, monkeypatch):
  _import(golden / "ckpt/unilip_hf", tmp_path / "w")

  def full_disk(state, file):
    file.write(b"half")
    raise OSError("no space left on device")

  monkeypatch.setattr(torch, "save", full_disk)
  assert _export(tmp_path / "w", tmp_path / "x.pth") == 1
  assert sorted(p.name for p in tmp_path.iterdir()) == ["w"]


def test_import_refuses_a_full_folder_and_replaces_on_request(golden, tmp_path, capsys):
  assert _import(golden / "pretrained/mllm", tmp_path / "w") == 0
  assert _import(golden / "pretrained/vae", tmp_path / "w") == 1
  assert "--overwrite" in capsys.readouterr().err
  assert set(folder_lib.read_model(tmp_path / "w")["modules"]) == {"vision_tower", "mlp1", "llm"}
  assert _import(golden / "pretrained/vae", tmp_path / "w", "--overwrite") == 0
  assert set(folder_lib.read_model(tmp_path / "w")["modules"]) == {"encoder", "decoder"}


def test_a_broken_file_is_one_message_and_leaves_nothing(golden, tmp_path, capsys):
  broken = tmp_path / "model.pth"
  broken.write_bytes((golden / "ckpt/tiny_unilip.pth").read_bytes()[:1000])
  assert _import(broken, tmp_path / "w") == 1
  message = capsys.readouterr().err
  assert str(broken) in message
  assert "damaged" in message
  assert "Traceback" not in message
  assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]


@pytest.mark.parametrize(("place", "wanted"), [
    ("ckpt/unilip_hf", ["UniLIP folder", "generate, edit: enough", "gen1: missing encoder",
                        "heads=4", "142,720", "positions=True"]),
    ("pretrained/mllm", ["original layout", "chat: enough", "reconstruct: missing latent_head, decoder",
                         "llm: 192,720"]),
    ("pretrained/dit", ["SANA", "dit: 192,160", "mlp_ratio=2.5"]),
    ("pretrained/vae", ["DC-AE", "encoder: 168,376", "6×rms_norm"])])
def test_inspect_tells_kind_sizes_and_what_is_missing(golden, tmp_path, capsys, place, wanted):
  assert cli.main(["inspect", str(golden / place)]) == 0
  pytorch = capsys.readouterr().out
  for text in wanted:
    assert text in pytorch
  _import(golden / place, tmp_path / "w")
  assert cli.main(["inspect", str(tmp_path / "w")]) == 0
  exported = capsys.readouterr().out
  assert "imported weights" in exported
  assert pytorch[pytorch.index("enough for:"):] in exported


def test_inspect_compares_with_published_counts(tmp_path, capsys):
  dims = dims_lib.split_tokenizer(presets.get("1b").tokenizer)["latent_head"]
  flat = {f"latent_head/{p}": np.zeros(s.shape, np.float32)
          for p, s in modules.shapes("latent_head", dims).items()}
  saved.save(tmp_path / "w", tree.unflatten(flat), {"latent_head": dims})
  assert cli.main(["inspect", str(tmp_path / "w")]) == 0
  assert "4,859,200 parameters (published 1b: 4,859,200, equal)" in capsys.readouterr().out


def test_unknown_formats_and_commands_are_refused_by_the_parser(tmp_path, capsys):
  with pytest.raises(SystemExit) as status:
    cli.main(["export", "--checkpoint=x", "--format=onnx", "--out=y"])
  assert status.value.code == 2
  assert "choose from" in capsys.readouterr().err


def test_offered_formats_are_those_that_exist():
  parser = cli._parser()
  command = next(a for a in parser._actions if a.dest == "command").choices["export"]
  choices = next(a for a in command._actions if a.dest == "format").choices
  assert list(choices) == list(exporter.FORMATS)
  dtypes = next(a for a in command._actions if a.dest == "dtype").choices
  assert tuple(dtypes) == exporter.DTYPES


@pytest.mark.parametrize("error", [OSError("name resolution failed"), "offline"])
def test_without_a_network_the_files_are_named(monkeypatch, capsys, tmp_path, error):
  import huggingface_hub
  from huggingface_hub import errors

  def fail(*args, **kwargs):
    raise errors.LocalEntryNotFoundError("no snapshot") if error == "offline" else error

  monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
  assert _import("hf://OpenGVLab/InternVL3-1B", tmp_path / "w") == 1
  message = capsys.readouterr().err
  for text in ("hf download OpenGVLab/InternVL3-1B", "*.safetensors", "--source=PATH/InternVL3-1B"):
    assert text in message
  with pytest.raises(hub.HubError, match="organisation/name"):
    hub.download("hf://InternVL3-1B")


def test_a_hub_repository_is_imported_from_its_snapshot(golden, monkeypatch, tmp_path):
  import huggingface_hub

  requests = []
  monkeypatch.setattr(
      huggingface_hub, "snapshot_download",
      lambda name, **kwargs: requests.append((name, kwargs["revision"])) or golden / "pretrained/vae")
  assert _import("hf://mit-han-lab/dc-ae@v1", tmp_path / "w") == 0
  assert requests == [("mit-han-lab/dc-ae", "v1")]


def test_second_copies_and_text_encoders_are_downloaded_only_where_they_are_needed(
    golden, monkeypatch, tmp_path):
  import huggingface_hub

  snapshot, ignored = tmp_path / "snapshot/transformer", []

  def fetch(name, *, revision, allow_patterns, ignore_patterns):
    ignored.append(ignore_patterns)
    assert "merges.txt" in allow_patterns
    snapshot.mkdir(parents=True, exist_ok=True)
    source = golden / "pretrained/dit/transformer"
    (snapshot / "config.json").write_bytes((source / "config.json").read_bytes())
    if "*.fp16.*" not in ignore_patterns:
      (snapshot / "diffusion_pytorch_model.fp16.safetensors").write_bytes(
          (source / "diffusion_pytorch_model.safetensors").read_bytes())
    return str(snapshot.parent)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
  assert _import("hf://Efficient-Large-Model/Sana_600M_512px_diffusers", tmp_path / "w") == 0
  assert ["*.fp16.*" in patterns for patterns in ignored] == [True, False]
  assert all("text_encoder/*" in patterns for patterns in ignored)
  assert set(folder_lib.read_model(tmp_path / "w")["modules"]) == {"dit"}


def test_nothing_to_import_is_said(tmp_path, capsys):
  assert cli.main(["import", f"--out={tmp_path}/w"]) == 1
  assert "give --source, or --mllm" in capsys.readouterr().err


def test_a_check_prints_the_worst_error_of_each_module(golden, tmp_path, capsys):
  places = {"vae": "pretrained/vae", "unilip": "ckpt/unilip_hf"}
  assert cli.main(["import", f"--out={tmp_path}/w", "--check",
                   *(f"--{role}={golden / place}" for role, place in places.items())]) == 0
  printed = capsys.readouterr().out
  errors = dict(re.findall(r"^  (\w+): (\d\.\de[+-]\d\d) \(", printed, re.MULTILINE))
  assert set(errors) == {"vision_tower", "mlp1", "latent_head", "decoder", "encoder", "llm",
                         "connector", "projector", "dit"}
  assert max(map(float, errors.values())) < 1e-4
  assert "not compared: queries" in printed


def test_a_check_finds_a_wrong_module_and_names_what_is_absent(golden, tmp_path, monkeypatch, capsys):
  _import(golden / "pretrained/dit", tmp_path / "w")
  monkeypatch.setattr(sana, "_RMS_EPS", 1.0)
  capsys.readouterr()
  assert cli.main(["check", str(tmp_path / "w")]) == 1
  printed = capsys.readouterr()
  assert "TOO LARGE" in printed.out
  assert "dit differ from PyTorch by more than 0.001" in printed.err
  monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None if name == "torch" else 1)
  assert cli.main(["check", str(tmp_path / "w")]) == 1
  assert "torch is not installed: pip install torch" in capsys.readouterr().err
  monkeypatch.undo()
  monkeypatch.setattr(cli, "_REFERENCES", "benchmarks.absent")  # as after `pip install` alone
  assert cli.main(["check", str(tmp_path / "w")]) == 1
  assert "clone the repository and run the same command in its folder" in capsys.readouterr().err


def test_importing_weights_needs_no_torch_for_safetensors(golden, tmp_path):
  code = ("import sys; sys.modules['torch'] = None; from unilip_jax.convert import cli as m; "
          f"sys.exit(m.main(['import', '--source={golden}/pretrained/vae', '--out={tmp_path}/w']))")
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                        env=os.environ | {"JAX_PLATFORMS": "cpu"}, timeout=120)
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "w/model.json").exists()
