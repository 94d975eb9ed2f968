"""Apache Beam, where it is installed, writes the same bytes; without it the message is clear.

Beam needs an older Pillow than this project's tested set, so it usually has an environment of its own
(requirements-beam.txt): UNILIP_BEAM_PYTHON names its python.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from tests.data.prepare import small_datasets
from unilip_jax.data.prepare import __main__ as prepare

_ROOT = pathlib.Path(__file__).resolve().parents[3]
_HERE = importlib.util.find_spec("apache_beam") is not None


@pytest.fixture
def python():
  """Path of a Python that has Beam."""
  path = sys.executable if _HERE else os.environ.get("UNILIP_BEAM_PYTHON")
  if not path:
    pytest.skip("Apache Beam is not installed here, and UNILIP_BEAM_PYTHON names no python that has it: "
                "the pipeline was NOT tested (pip install -r requirements-beam.txt elsewhere)")
  return path


def _beam(python, arguments, out, options="--runner=DirectRunner"):
  return subprocess.run(
      [python, "-m", "unilip_jax.data.prepare", *arguments, f"--out={out}", "--records_per_shard=4",
       f"--beam={options}"], cwd=_ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("options", [
    "--runner=DirectRunner",
    "--runner=DirectRunner --direct_running_mode=multi_processing --direct_num_workers=2"])
def test_beam_writes_the_same_bytes(python, options, tmp_path):
  root = small_datasets.gpt_image_edit(tmp_path / "source")
  (root / "gpt-edit/hqedit/input/00003.png").write_bytes(b"broken")
  arguments = ["gpt_image_edit", f"--source={root}"]
  prepare.main([*arguments, f"--out={tmp_path}/here", "--records_per_shard=4", "--workers=1", "--quiet"])
  done = _beam(python, arguments, tmp_path / "beam", options)
  assert done.returncode == 0, done.stderr[-2000:]
  assert small_datasets.tree(tmp_path / "beam") == small_datasets.tree(tmp_path / "here")


def test_a_failing_pipeline_reports_the_reason_and_continues_afterwards(python, tmp_path):
  root = small_datasets.gpt_image_edit(tmp_path / "source", count=4)
  arguments = ["gpt_image_edit", f"--source={root}"]
  image = root / "gpt-edit/hqedit/input/00002.png"
  original = image.read_bytes()
  image.unlink()
  image.symlink_to("/proc/self/mem")  # a regular file that cannot be read
  done = _beam(python, arguments, tmp_path / "beam")
  assert done.returncode == 1
  assert "training_json/hqedit.json[2]: [Errno 5] Input/output error. Fix it" in done.stderr
  image.unlink()
  image.write_bytes(original)
  assert _beam(python, arguments, tmp_path / "beam").returncode == 0
  prepare.main(["check", f"--out={tmp_path}/beam"])


@pytest.mark.skipif(_HERE, reason="Apache Beam is installed")
def test_without_beam_the_error_says_how_to_get_it(tmp_path):
  source = small_datasets.json_lines(tmp_path, "t2i")
  with pytest.raises(ValueError, match=r"--beam needs Apache Beam: pip install -r requirements-beam.txt"):
    prepare.main(["json_lines", f"--source={source}", "--kind=t2i", f"--out={tmp_path}/out",
                  "--beam=--runner=DirectRunner"])
