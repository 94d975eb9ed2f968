"""Recorded runs of image metrics, unpacked once, and Inception-v3 with their random weights."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.golden import metrics
from unilip_jax.common import tree
from unilip_jax.convert import inception as conversion
from unilip_jax.models import inception

REFERENCES = os.environ.get("UNILIP_REFERENCES", "")


@pytest.fixture(scope="session")
def recorded(tmp_path_factory) -> pathlib.Path:
  """Folder of the recorded runs: fid/, inception/, recon/, ..."""
  return metrics.unpack(tmp_path_factory.mktemp("metrics"))


@pytest.fixture(scope="session")
def inception_tensors(recorded) -> dict[str, np.ndarray]:
  """{PyTorch name: random weight} of the published size, without the counters of batch norm."""
  shapes = json.loads((recorded / "inception" / "keys.json").read_text())
  return {name: metrics.tensor(name, shape) for name, shape in shapes.items()
          if not name.endswith("num_batches_tracked")}


@pytest.fixture(scope="session")
def inception_network(inception_tensors):
  """Compiled float32[6, 299, 299, 3] -> (outputs, {block: output}) at the published size."""
  params = tree.unflatten({
      rule.path.removeprefix("inception/"): rule.move.to_jax(inception_tensors[rule.torch])
      for rule in conversion.rules()})
  network = inception.Inception(inception.InceptionDims())
  apply = jax.jit(lambda p, x: network.apply({"params": p}, x, mutable=["intermediates"]))

  def run(x):
    outputs, state = jax.device_get(apply(params, x))
    blocks = {name.removesuffix("_output"): value[0] for name, value in state["intermediates"].items()
              if name.endswith("_output")}
    return outputs, blocks

  return run


@pytest.fixture
def reference_programs(tmp_path):
  """Runs tests/evals/reference_programs.py next to the packages of $UNILIP_REFERENCES.

  (name of a function, {array}) -> {array}.
  """
  if not REFERENCES:
    pytest.skip("UNILIP_REFERENCES names no folder: metrics were NOT compared with the live programs "
                "(requirements-references.txt)")

  def run(function, arrays):
    np.savez(tmp_path / "in.npz", **arrays)
    script = pathlib.Path(__file__).with_name("reference_programs.py")
    done = subprocess.run(
        [sys.executable, str(script), function, str(tmp_path)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": REFERENCES}, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "out.npz") as z:
      return dict(z)

  return run
