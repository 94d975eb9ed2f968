"""The plug-in of lmms-eval on a fake of its interface; benchmarks/lmms_eval_tasks.py runs the real one."""

import dataclasses
import importlib
import json
import pathlib
import sys
import tomllib
import types

import numpy as np
from PIL import Image
import pytest

from unilip_jax.common import registry
from unilip_jax.scores import makers

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_NAME = "unilip_jax.scores.lmms_eval_plugin"
_LMMS = {"lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.api.model": {}, "lmms_eval.models": {},
         "lmms_eval.models.registry_v2": {}}


class _Hook:
  def __init__(self):
    self.stored = []

  def add_partial(self, kind, request, answer):
    self.stored.append((kind, request[0], answer))


class _Lmms:
  def __init__(self):
    self.cache_hook, self.task_dict = _Hook(), {}


@dataclasses.dataclass(frozen=True)
class _Manifest:
  model_id: str
  simple_class_path: str | None = None


@dataclasses.dataclass
class _Instance:
  args: tuple


class _Maker:
  """Answers with its arguments; makes images of one colour."""

  image_size, latent_shape, fingerprint, few_step = 8, (2, 2, 1), "f00", ""

  def __init__(self, path, dtype, batch_size, *, int8=False):
    self.batch_size, self.calls = batch_size, []

  def prompt_length(self, prompt, *, editing):
    return 32

  def answers(self, images, questions, **options):
    self.calls.append(options)
    return [f"{q} {[i.size for i in each]}. More" for each, q in zip(images, questions)]

  def images(self, batch, options):
    self.calls.append(len(batch.prompts))
    inputs = [0] * len(batch.prompts) if batch.inputs is None else [x.mean() for x in batch.inputs]
    return [np.full((8, 8, 3), (len(p) + x) % 256, np.uint8) for p, x in zip(batch.prompts, inputs)]


@pytest.fixture
def plugin(monkeypatch):
  for name, content in _LMMS.items():
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    vars(sys.modules[name]).update(content)
  sys.modules["lmms_eval.api.model"].lmms = _Lmms
  sys.modules["lmms_eval.models.registry_v2"].ModelManifest = _Manifest
  monkeypatch.delitem(sys.modules, _NAME, raising=False)
  monkeypatch.setattr(makers, "CheckpointMaker", _Maker)
  yield importlib.import_module(_NAME)
  sys.modules.pop(_NAME)


def _requests(model, task, texts, images, **options):
  """Requests about documents of a task whose images are `images`."""
  model.task_dict[task] = {"test": images}
  return [_Instance((text, options, lambda doc: doc, i, task, "test")) for i, text in enumerate(texts)]


def test_the_entry_point_names_a_model_of_one_class(plugin):
  project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
  target = project["entry-points"]["lmms_eval.models"]["unilip_jax"]
  manifest = registry.resolve(target)()
  assert manifest.model_id == "unilip_jax"
  module, _, name = manifest.simple_class_path.rpartition(".")
  model = getattr(importlib.import_module(module), name)
  assert issubclass(model, _Lmms)
  assert model.is_simple


def test_without_lmms_eval_the_message_names_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "lmms_eval", None)
  monkeypatch.delitem(sys.modules, _NAME, raising=False)
  with pytest.raises(ModuleNotFoundError, match="pip install lmms-eval"):
    importlib.import_module(_NAME)


def test_questions_are_answered_in_order_with_the_options_of_their_task(plugin, caplog):
  model = plugin.UniLipModel("x", batch_size="2")
  image = Image.new("LA", (5, 4))
  requests = _requests(model, "mme", ["a", "b", "c", "d"], [[image], None, [image, image], [image]],
                       max_new_tokens=9, until=["."], do_sample=False, temperature=0.7)
  requests += _requests(model, "other", ["e"], [[image]], temperature=0.5, top_p=0.9)
  answers = model.generate_until(requests)
  assert answers == ["a [(5, 4)]", "b []", "c [(5, 4), (5, 4)]", "d [(5, 4)]", "e [(5, 4)]. More"]
  greedy = {"max_new_tokens": 9, "max_tiles": 6, "temperature": 0.0, "top_p": 1.0}
  assert model._maker.calls == [greedy, greedy, {
      "max_new_tokens": 256, "max_tiles": 6, "temperature": 0.5, "top_p": 0.9}]
  assert "several images" not in caplog.text
  assert ("generate_until", "b", "b []") in model.cache_hook.stored
  assert len(model.cache_hook.stored) == 5


def test_an_edit_of_several_images_is_named_and_has_no_image(plugin, tmp_path, caplog):
  model = plugin.UniLipModel("x", mode="image", out=str(tmp_path))
  image = Image.new("L", (9, 9), 100)
  several, one = map(json.loads, model.generate_until(
      _requests(model, "edit", ["a", "b"], [[image, image], [image]])))
  assert several == {"text": "", "images": []}
  assert len(one["images"]) == 1
  assert "1 requests have several images" in caplog.text
  assert "edit/test/0" in caplog.text


def test_images_are_made_once_and_named_as_json(plugin, tmp_path):
  model = plugin.UniLipModel("x", mode="image", out=str(tmp_path))
  requests = _requests(model, "wise", ["a", "bb", "ccc"], [None, [], None])
  requests += [requests[0]]  # a repeat of a document is another image
  edits = _requests(model, "imgedit", ["a"], [[Image.new("L", (9, 9), 100)]])
  answers = [json.loads(a) for a in model.generate_until([*requests, *edits])]
  paths = [path for a in answers for path in a["images"]]
  assert len({*paths}) == 5
  assert [np.asarray(Image.open(p))[0, 0, 0] for p in paths] == [1, 2, 3, 1, 101]
  calls = list(model._maker.calls)
  assert [json.loads(a) for a in model.generate_until([*requests, *edits])] == answers
  assert model._maker.calls == calls
  assert json.loads((tmp_path / "wise").glob("*/make.json").__next__().read_text())["seed"] == 42


@pytest.mark.parametrize(("options", "message"), [
    ({"checkpoint": ""}, "needs checkpoint=PATH"), ({"mode": "both"}, "choose 'answer' or 'image'"),
    ({"device": "cuda"}, "JAX_PLATFORMS"), ({"batch_size": "auto"}, "choose a number")])
def test_arguments_that_have_no_effect_are_refused(plugin, options, message):
  with pytest.raises(ValueError, match=message):
    plugin.UniLipModel(**{"checkpoint": "x", **options})


def test_what_the_model_cannot_do_is_refused(plugin):
  model = plugin.UniLipModel("x")
  with pytest.raises(ValueError, match=r"mme/test/0: num_beams=5"):
    model.generate_until(_requests(model, "mme", ["a"], [None], num_beams=5))
  with pytest.raises(NotImplementedError, match="loglikelihood"):
    model.loglikelihood([])
