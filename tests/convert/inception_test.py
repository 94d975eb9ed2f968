"""The file of FID's Inception-v3 is imported; torchvision's weights are refused with the reason."""

import json

import numpy as np
import pytest
import torch

from tests.evals import tiny_inception
from tests.golden import metrics
from unilip_jax.common import tree
from unilip_jax.convert import importer, io
from unilip_jax.convert import inception as conversion
from unilip_jax.evals import inception as features
from unilip_jax.models import inception


def test_rules_name_every_tensor_of_the_published_file(tmp_path):
  shapes = json.loads((metrics.unpack(tmp_path) / "inception" / "keys.json").read_text())
  names = [name for rule in conversion.rules() for name in rule.names]
  assert set(names) == {name for name in shapes if not name.endswith("num_batches_tracked")}
  assert len(names) == len(set(names)) == 472


def test_imported_weights_open_with_their_dimensions(tmp_path):
  folder = tiny_inception.write(tmp_path)
  dims, abstract, stored = features.open_weights(folder, "eval.inception")
  assert dims == tiny_inception.DIMS
  tensors = tiny_inception.tensors()
  assert {path: leaf.shape for path, leaf in tree.flatten({"inception": abstract}).items()} == {
      path: leaf.shape for path, leaf in stored.shapes.items()}
  plan = importer.plan([str(tmp_path / "inception.pth")])
  flat = tree.flatten(plan.read("inception"))
  np.testing.assert_array_equal(
      flat["Mixed_6b/branch7x7_2/kernel"],
      tensors["Mixed_6b.branch7x7_2.conv.weight"].transpose(2, 3, 1, 0))
  np.testing.assert_array_equal(flat["fc_kernel"], tensors["fc.weight"].T)
  assert any("batch norm's step counter" in line for line in plan.log)


def test_published_dimensions_are_those_of_the_file():
  assert inception.dims_of_width(32, 1008) == inception.InceptionDims()
  assert inception.InceptionDims().features == 2048


@pytest.mark.parametrize("change", ["classes", "auxiliary"])
def test_torchvisions_weights_are_refused_with_the_reason(tmp_path, change):
  tensors = {name: torch.from_numpy(np.asarray(v)) for name, v in tiny_inception.tensors().items()}
  if change == "classes":
    tensors |= {"fc.weight": torch.zeros(1000, tiny_inception.FEATURES), "fc.bias": torch.zeros(1000)}
  else:
    tensors["AuxLogits.fc.weight"] = torch.zeros(2, 2)
  torch.save(tensors, tmp_path / "inception_v3_google.pth")
  with pytest.raises(io.ReadError, match=r"torchvision's ImageNet weights.*pytorch-fid"):
    importer.plan([str(tmp_path / "inception_v3_google.pth")])


def test_weights_without_the_network_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="inception"):
    features.open_weights(str(tmp_path / "inception"), "eval.inception")
