"""The command line refuses what cannot work with one clear message, at once."""

import os
import pathlib
import subprocess
import sys

import pytest

from unilip_jax import main
from unilip_jax.common import errors

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def _main(*args):
  env = os.environ | {"JAX_PLATFORMS": "cpu"}
  env.pop("UNILIP_TRACEBACK", None)
  return subprocess.run([sys.executable, "-m", "unilip_jax.main", *args], capture_output=True,
                        text=True, cwd=_ROOT, env=env, timeout=120, check=False)


@pytest.mark.parametrize(("args", "message"), [
    (["--config=configs/stage2.py:tiny", "--config.btch_size=3"],
     "--config.btch_size: no such field in configs/stage2.py; the nearest is --config.batch_size"),
    (["--config=configs/stage9.py:tiny"], "no such file configs/stage9.py"),
    (["--config=configs/stage2.py:7b"], "unknown size '7b'; choose tiny, 1b or 3b"),
    (["--config=configs/stage1.py:tiny", "--config.image_size=50"],
     "image_size=50 is not a multiple of 28"),
    (["--config=configs/stage1.py:tiny", "--config.mesh.fsdp=3"], "mesh.fsdp=3 does not divide"),
    (["--config=configs/stage1.py:1b"], "hf://OpenGVLab/InternVL3-1B"),
    (["--config=configs/stage1.py:tiny", "--coordinator=localhost:1"],
     "--coordinator without --process_count, --process_index"),
])
def test_mistakes_get_a_message_and_no_stack_trace(tmp_path, args, message):
  done = _main(*args, f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 1
  assert message in done.stderr
  assert "Traceback" not in done.stderr


def test_what_differs_between_hosts_by_nature_is_not_compared():
  argv = ["--config=c", "--process_index=3", "--coordinator", "h:1", "--process_count=4", "--workdir=w"]
  assert main._common_arguments(argv) == ["--config=c", "--process_count=4", "--workdir=w"]


def test_a_run_that_was_stopped_asks_to_be_run_again(tmp_path):
  code = ("import sys; from unilip_jax import main, preemption\n"
          "main._work = lambda config: setattr(preemption, '_stopped', True)\n"
          f"main.run(['main', '--config=configs/stage1.py:tiny', '--workdir={tmp_path}'])")
  done = subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True, text=True,
                        timeout=120, check=False)
  assert done.returncode == errors.AGAIN, done.stderr
