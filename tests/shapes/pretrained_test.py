"""The included weights complete one another and stay small; runs are published among them."""

import json

import ml_dtypes
import numpy as np
import pytest

from experiments import publish
from tests import micro, saved
from unilip_jax.configs import base, renamed
from unilip_jax.shapes import pretrained
from unilip_jax.training import metrics

_LIMIT = 30e6  # bytes of all included weights: they are in every clone and every wheel


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "weights")
  return tmp_path / "weights"


def _rounded(value):
  return np.float32(ml_dtypes.bfloat16(value))


def test_weights_come_back_rounded_to_bfloat16(folder):
  arrays = {"decoder": {"conv": {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}}}
  pretrained.save("one", arrays, {"decoder": {"width": 4}}, (), {"origin": {"seed": 3}})
  modules, about = saved.load("shapes:one")
  kernel = modules["decoder"]["conv"]["kernel"]
  assert kernel.dtype == np.float32
  np.testing.assert_allclose(kernel, arrays["decoder"]["conv"]["kernel"], rtol=2**-8)
  assert about["modules"] == {"decoder": {"width": 4}}
  assert about["origin"] == {"seed": 3}
  assert pretrained.names() == ["one"]


def test_modules_of_later_names_replace_those_of_earlier_ones(folder):
  tree = lambda value: {"x": np.full((2,), value, np.float32)}
  pretrained.save("a", {"llm": tree(1.0), "vision_tower": tree(1.0)}, {"llm": 1}, (), {})
  pretrained.save("b", {"vision_tower": tree(2.0)}, {"vision_tower": 2}, ("a",), {})
  pretrained.save("c", {"dit": tree(3.0)}, {"dit": 3}, ("b",), {})
  modules, about = pretrained.load("c")
  assert {name: m["x"][0] for name, m in modules.items()} == {
      "llm": 1.0, "vision_tower": 2.0, "dit": 3.0}
  assert about["modules"] == {"llm": 1, "vision_tower": 2, "dit": 3}


def test_damaged_weights_are_named(folder):
  pretrained.save("one", {"decoder": {"x": np.arange(8.0)}}, {}, (), {})
  file = folder / "one.safetensors"
  content = file.read_bytes()
  for damaged in (content[:-1], b"", content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]):
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"{file}: .*, not .*\ninstall the package again"):
      saved.load("shapes:one")
  file.unlink()
  with pytest.raises(ValueError, match=f"{file}: .*absent"):
    saved.load("shapes:one")
  file.write_bytes(content)
  saved.load("shapes:one")
  (folder / "one.json").write_text("{")
  with pytest.raises(ValueError, match=r"one\.json is damaged: .*install the package again"):
    saved.load("shapes:one")


def test_an_unknown_name_is_refused_with_the_known_ones(folder):
  pretrained.save("stage1", {"decoder": {"x": np.zeros(1)}}, {}, (), {})
  with pytest.raises(FileNotFoundError, match=r"shapes:stage9.*shapes:stage1"):
    saved.load("shapes:stage9")


@pytest.fixture
def run(tmp_path, monkeypatch):
  """The workdir of two steps of stage 1."""
  from unilip_jax import train

  micro.install(monkeypatch)
  images = micro.write_images(tmp_path / "images", 8)
  train.train(micro.config("stage1", images, total_steps=2, eval__every_steps=2),
              str(tmp_path / "run"))
  return tmp_path / "run"


@pytest.mark.slow
def test_a_run_publishes_what_it_trained_and_its_origin(folder, run):
  publish.main([f"--run={run}", "--name=stage1"])
  modules, about = pretrained.load("stage1")
  assert set(modules) == {"latent_head", "decoder"}  # the vision tower is frozen
  assert set(about["modules"]) == {"latent_head", "decoder"}
  trained, _ = saved.load(str(run))
  np.testing.assert_array_equal(
      modules["decoder"]["conv_in"]["bias"],
      [_rounded(x) for x in trained["decoder"]["conv_in"]["bias"]])
  origin = about["origin"]
  assert (origin["steps"], origin["seed"], origin["started_from"]) == (2, 0, "random weights")
  last = metrics.read(run)[-1]
  assert origin["scores"]["images/psnr"] == pytest.approx(last["eval/images/psnr"], abs=1e-4)
  assert origin["curve"][-1]["step"] == 2
  assert origin["curve"][-1]["images/psnr"] == origin["scores"]["images/psnr"]
  assert origin["config"]["stage"] == "stage1"
  with pytest.raises(ValueError, match="did not train llm"):
    publish.main([f"--run={run}", "--name=x", "--modules=llm"])
  with pytest.raises(FileNotFoundError, match="shapes:nothing"):
    publish.main([f"--run={run}", "--name=x", "--over=nothing"])
  pretrained.save("base", {"llm": {"x": np.zeros(1)}}, {}, (), {})
  pretrained.save("part", {"decoder": {"x": np.zeros(1)}, "dit": {"x": np.ones(1)}}, {"dit": 3}, ("base",),
               {"origin": {"steps": 9}})
  publish.main([f"--run={run}", "--name=part", "--modules=decoder", "--update"])
  updated, about = pretrained.load("part")
  assert set(updated) == {"llm", "decoder", "dit"}, "what was there before stays"
  np.testing.assert_array_equal(
      updated["decoder"]["conv_in"]["bias"], modules["decoder"]["conv_in"]["bias"])
  assert about["over"] == ["base"]
  assert set(about["modules"]) == {"dit", "decoder"}
  assert about["origin"]["before"] == {"steps": 9}
  assert about["origin"]["trained"] == ["decoder"]
  with pytest.raises(FileNotFoundError, match="shapes:absent"):
    publish.main([f"--run={run}", "--name=absent", "--update"])


def test_all_included_weights_stay_below_the_limit():
  files = list(pretrained.FOLDER.glob("*"))
  assert sum(len(f.read_bytes()) for f in files) < _LIMIT
  for name in pretrained.names():
    assert (pretrained.FOLDER / f"{name}.safetensors").exists()
    assert json.loads((pretrained.FOLDER / f"{name}.json").read_text())["origin"]["machine"]


@pytest.mark.parametrize("name", pretrained.names())
def test_configs_of_origins_have_known_fields_after_translation(name):
  known, origin = base.get_config(), pretrained.read_about(name)["origin"]
  while origin:
    assert [field for field in renamed.translate(origin["config"]) if field not in known] == []
    origin = origin.get("before")
