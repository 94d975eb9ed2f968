"""ComfyUI's nodes run as ComfyUI runs them: found by their mappings, called with the inputs of a graph."""

import importlib.util
import json
import pathlib
import shutil
import sys
import types

import numpy as np
import pytest
import torch

from tests.serve import fakes
from unilip_jax.convert import cli

_KEY = "a secret"


@pytest.fixture(scope="module")
def export(tmp_path_factory):
  """A folder of small noise images: the included weights, as an export writes them."""
  folder = tmp_path_factory.mktemp("export") / "unilip"
  assert cli.main(["export", "--checkpoint=shapes:gen3", "--format=diffusers", f"--out={folder}"]) == 0
  return folder


@pytest.fixture
def comfy(export, tmp_path, monkeypatch):
  """The nodes, in a small replacement for ComfyUI that counts progress and can be interrupted."""
  threads = torch.get_num_threads()
  torch.set_num_threads(1)  # networks are small
  roots, state = {}, types.SimpleNamespace(bars=[], interrupted=False, models=tmp_path / "models")

  class ProgressBar:
    def __init__(self, total):
      self.total, self.done = total, 0
      state.bars.append(self)

    def update(self, count):
      self.done += count

  def check():
    if state.interrupted:
      raise InterruptedError

  places = types.SimpleNamespace(
      models_dir=str(state.models), get_folder_paths=lambda kind: roots[kind],
      add_model_folder_path=lambda kind, path: roots.setdefault(kind, []).append(path))
  cpu = lambda: torch.device("cpu")
  management = types.SimpleNamespace(
      get_torch_device=cpu, unet_offload_device=cpu, throw_exception_if_processing_interrupted=check)
  package = types.SimpleNamespace(
      model_management=management, utils=types.SimpleNamespace(ProgressBar=ProgressBar))
  for name, module in {"folder_paths": places, "comfy": package, "comfy.model_management": management,
                       "comfy.utils": package.utils}.items():
    monkeypatch.setitem(sys.modules, name, module)
  monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "code"))
  nodes = tmp_path / "custom_nodes" / "comfyui_unilip"
  shutil.copytree(export / "comfyui_unilip", nodes)
  name = str(nodes).replace(".", "_x_")
  spec = importlib.util.spec_from_file_location(name, nodes / "__init__.py")
  state.module = importlib.util.module_from_spec(spec)
  monkeypatch.setitem(sys.modules, name, state.module)
  spec.loader.exec_module(state.module)
  yield state
  torch.set_num_threads(threads)


class _SaveImage:
  """A node of ComfyUI's own."""

  FUNCTION, RETURN_TYPES = "save", ()

  @classmethod
  def INPUT_TYPES(cls):
    return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING",)}}

  def save(self, images, filename_prefix):
    return (images,)


def _run(nodes, graph):
  """Checks a graph's inputs as ComfyUI does, and runs it; returns {node: results}."""
  nodes, results = {**nodes, "SaveImage": _SaveImage}, {}
  for key, node in graph.items():  # in an order in which inputs come first
    kind, values = nodes[node["class_type"]], {}
    wanted = kind.INPUT_TYPES()["required"]
    assert node["inputs"].keys() == wanted.keys()
    for name, value in node["inputs"].items():
      type_, *options = wanted[name]
      options = options[0] if options else {}
      if isinstance(value, list):
        source, index = value
        assert nodes[graph[source]["class_type"]].RETURN_TYPES[index] == type_
        value = results[source][index]
      elif isinstance(type_, list):
        assert value in type_
      else:
        assert isinstance(value, {"STRING": str, "INT": int, "FLOAT": float}[type_])
        assert options.get("min", value) <= value <= options.get("max", value)
      values[name] = value
    results[key] = getattr(kind(), kind.FUNCTION)(**values)
  return results


def _install(export, comfy):
  shutil.copytree(export, comfy.models / "unilip" / "unilip")
  (comfy.models / "unilip" / "another").mkdir()


def test_the_example_runs_as_a_graph(export, comfy):
  _install(export, comfy)
  graph = json.loads((export / "comfyui_unilip/example_workflows/unilip.json").read_text())
  for key in "23":
    assert graph[key]["inputs"]["steps"] == 20
    graph[key]["inputs"]["steps"] = 8  # enough for the colour of a circle
  results = _run(comfy.module.NODE_CLASS_MAPPINGS, graph)
  image, edited = results["2"][0], results["3"][0]
  for tensor in (image, edited):
    assert tensor.dtype == torch.float32
    assert tensor.shape == (1, 112, 112, 3)
    assert 0 <= tensor.min() < tensor.max() <= 1
  red, green = ((image[0, ..., i] - image[0, ..., 1 - i] > 0.3).sum() for i in (0, 1))
  assert red > 50 > green  # pixels of the circle
  red, green = ((edited[0, ..., i] - edited[0, ..., 1 - i] > 0.2).sum() for i in (0, 1))
  assert green > 50 > red
  assert [(bar.done, bar.total) for bar in comfy.bars] == [(8, 8)] * 2
  assert comfy.module.NODE_DISPLAY_NAME_MAPPINGS.keys() == comfy.module.NODE_CLASS_MAPPINGS.keys()


def test_seeds_of_a_batch_count_up_and_batches_are_edited_image_by_image(export, comfy):
  _install(export, comfy)
  nodes = {name: kind() for name, kind in comfy.module.NODE_CLASS_MAPPINGS.items()}
  model, = nodes["UniLIPLoad"].load("unilip", "bfloat16")
  options = dict(steps=1, guidance=1.0)
  largest = 2**64 - 1
  batch, = nodes["UniLIPGenerate"].generate(model, "a red circle", 2, largest, **options)
  second, = nodes["UniLIPGenerate"].generate(model, "a red circle", 1, 0, **options)
  torch.testing.assert_close(batch[1:], second, atol=0.1, rtol=0)
  edited, = nodes["UniLIPEdit"].edit(
      model, torch.rand(3, 40, 60, 4), "remove the circle", largest, **options)
  assert edited.shape == (3, 112, 112, 3)
  comfy.interrupted = True
  with pytest.raises(InterruptedError):
    nodes["UniLIPGenerate"].generate(model, "a red circle", 1, 0, **options)


def test_only_folders_of_this_pipeline_are_offered(export, comfy):
  assert comfy.module.UniLIPLoad.INPUT_TYPES()["required"]["folder"] == ([],)  # no folder of models yet
  _install(export, comfy)
  other = comfy.models / "unilip" / "sana"
  other.mkdir()
  (other / "model_index.json").write_text('{"_class_name": "SanaPipeline"}')
  assert comfy.module.UniLIPLoad.INPUT_TYPES()["required"]["folder"] == (["unilip"],)


def test_a_server_samples_instead(comfy, monkeypatch):
  graph = {
      "1": {"class_type": "UniLIPServer", "inputs": {"url": ""}},
      "2": {"class_type": "UniLIPGenerate", "inputs": {
          "model": ["1", 0], "prompt": "a cat", "batch_size": 2, "seed": 5, "steps": 20, "guidance": 4.5}},
      "3": {"class_type": "UniLIPEdit", "inputs": {
          "model": ["1", 0], "image": ["2", 0], "instruction": "a dog", "seed": 1, "steps": 20,
          "guidance": 4.5}}}
  with fakes.running(key=_KEY) as running:
    monkeypatch.setenv("UNILIP_API_KEY", _KEY)
    for url in (running.url, f"{running.url}/v1/"):
      graph["1"]["inputs"]["url"] = url
      results = _run(comfy.module.NODE_CLASS_MAPPINGS, graph)
      pixels = lambda tensor: np.rint(tensor.numpy() * 255).astype(np.uint8)
      expected = np.stack([fakes.image_of("a cat", seed) for seed in (5, 6)])
      np.testing.assert_array_equal(pixels(results["2"][0]), expected)
      np.testing.assert_array_equal(pixels(results["3"][0]), 255 - expected)
    monkeypatch.delenv("UNILIP_API_KEY")
    with pytest.raises(RuntimeError, match="answered 401"):
      _run(comfy.module.NODE_CLASS_MAPPINGS, graph)


def test_a_servers_address_is_one(comfy):
  with pytest.raises(ValueError, match=r"url is 'file:///etc/passwd'; give the server's"):
    comfy.module.UniLIPServer().connect("file:///etc/passwd")


def test_nodes_import_what_comfyui_has():
  """ComfyUI reads the package without diffusers: a server needs none."""
  folder = pathlib.Path(importlib.util.find_spec("unilip_jax.convert").submodule_search_locations[0])
  lines = (folder / "templates/comfyui_unilip/__init__.py").read_text().splitlines()
  names = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
  assert names - set(sys.stdlib_module_names) == {"comfy", "folder_paths", "numpy", "PIL", "torch"}
