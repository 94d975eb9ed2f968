"""Functions for forked children whose environment makes gs:// the test's own server."""

import asyncio
import json
import sys
import types

import chex
from etils import epath
from gcsfs import retry
import jax
import numpy as np

from tests.campaigns import runs
from unilip_jax.common import buckets, errors
from unilip_jax.convert import exporter
from unilip_jax.data import files
from unilip_jax.training import metrics
from unilip_jax.weights import orbax_io


def compare_runs(first: str, second: str, step: int) -> None:
  """Compares the checkpoints of two workdirs bit for bit, and their losses."""
  for item in ("params", "ema", "optimizer"):
    left, right = (orbax_io.read_tree(f"{w}/checkpoints/{step}/{item}") for w in (first, second))
    chex.assert_trees_all_equal(left, right)
  positions = [json.loads((epath.Path(w) / f"checkpoints/{step}/data/metadata").read_text())
               for w in (first, second)]
  assert positions[0] == positions[1]
  losses = [{r["step"]: r["train/loss"] for r in metrics.read(w) if "train/loss" in r}
            for w in (first, second)]
  assert losses[0] == losses[1], losses
  assert sorted(losses[0]) == list(range(1, step + 1))


def export(checkpoints: list[str], outs: list[str]) -> None:
  """Writes the .pth of each checkpoint."""
  runs.micro.install()
  for checkpoint, out in zip(checkpoints, outs):
    exporter.export_weights(checkpoint, "pth", out)


def check(*arguments: str) -> None:
  """Runs `unilip check`."""
  from unilip_jax.plan import inputs  # late: it defines flags

  sys.argv = ["unilip check", *arguments]
  inputs.run()


def write_tree(path: str) -> None:
  """Writes arrays to read in `survive`."""
  orbax_io.write_tree(path, {"a": {str(i): np.arange(1000.0) + i for i in range(3)}})


def survive(data: str, arrays: str) -> None:
  """Reads through a proxy with faults that end: the results are those without."""
  _impatient(silence=0.4)
  assert files.read_range(data, 3, 7) == b"3456789"
  assert epath.Path(data).read_bytes() == b"0123456789abcdef"
  epath.Path(data).with_name("copy").write_bytes(b"x" * 100)
  assert epath.Path(data).with_name("copy").read_bytes() == b"x" * 100
  assert sorted(p.name for p in epath.Path(data).parent.iterdir()) == ["copy", "object"]
  chex.assert_trees_all_equal(
      orbax_io.read_tree(arrays), {"a": {str(i): np.arange(1000.0) + i for i in range(3)}})


def give_up(data: str) -> None:
  """Reads through a proxy whose faults last: every access is an error that names the object."""
  _impatient(silence=0.1)
  path = epath.Path(data)
  actions = {
      "read_range": lambda: files.read_range(data, 3, 7), "read": path.read_bytes,
      "write": lambda: path.write_bytes(b"x"), "exists": path.exists, "is_file": path.is_file,
      "is_dir": path.is_dir, "iterdir": lambda: list(path.parent.iterdir()),
      "walk": lambda: list(path.parent.walk())}
  for name, action in actions.items():
    try:
      result = action()
    except errors.TryAgainError as error:
      message = str(error)
      assert "gs://bucket" in message, (name, message)
      assert "run the same command again" in message, (name, message)
    else:
      raise AssertionError(f"{name} answered {result!r} though the storage fails")


def _impatient(silence: float) -> None:
  """Shortens gcsfs' pauses between tries, and the time until a silent request is sent again."""
  buckets.SILENCE_SECONDS = silence
  retry.asyncio = types.SimpleNamespace(sleep=lambda seconds: asyncio.sleep(seconds / 100))
  jax.config.update("jax_platforms", "cpu")
