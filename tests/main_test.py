"""The command line refuses mistakes with one clear message, and ends with a known exit status."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests import cpu_devices
from unilip_jax.common import errors, locks
from unilip_jax.multihost import flags as multihost_flags

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def _python(*args, cwd=_ROOT, **env):
  env = cpu_devices.environment() | env
  env.pop("UNILIP_TRACEBACK", None)
  return subprocess.run([sys.executable, *args], capture_output=True, text=True, cwd=cwd, env=env,
                        timeout=120, check=False)


def _main(*args, **kw):
  return _python("-m", "unilip_jax.main", *args, **kw)


@pytest.mark.parametrize(("args", "message"), [
    (["--config=configs/stage2.py:tiny", "--config.btch_size=3"],
     "--config.btch_size: no such field; the nearest is --config.batch_size"),
    (["--config=configs/stage2.py:tiny", "--config.accumulate=2"],
     "--config.accumulate: it is called --config.grad_accum_steps now"),
    (["--config=configs/gen1.py:tiny", "--config.text.image_slots", "4"],
     "--config.text.image_slots: it is gone: it follows from image_size"),
    (["--config=configs/stage9.py:tiny"],
     "no such file configs/stage9.py; the nearest is configs/stage2.py. Installed are configs/"),
    (["--config=configs/stage2.py:7b"], "unknown size '7b'; choose tiny, 1b, 3b"),
    (["--confg=configs/stage2.py:tiny"], "unknown flag --confg; the nearest is --config; "),
    ([], "Flag --config must have a value"),
    (["--config=configs/stage1.py:tiny", "now"], "unexpected arguments: ['now']"),
    (["--config=configs/stage1.py:tiny", "--mode=test"], "--mode=test"),
    (["--config=configs/stage1.py:tiny", "--config.image_size=50"],
     "image_size=50 is not a multiple of 28"),
    (["--config=configs/stage1.py:tiny", "--config.mesh.fsdp=3"], "mesh.fsdp=3 does not divide"),
    (["--config=configs/stage1.py:1b"], "hf://OpenGVLab/InternVL3-1B"),
    (["--config=configs/stage1.py:tiny", "--coordinator=localhost:1"],
     "--coordinator without --process_count, --process_index"),
    (["--config=configs/stage1.py:tiny", "--mode=plan", "--topology=v9:1"], "the nearest is"),
])
def test_mistakes_get_a_message_and_no_stack_trace(tmp_path, args, message):
  done = _main(*args, f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 1
  assert message in done.stderr
  assert "Traceback" not in done.stderr


def test_an_unknown_file_is_answered_with_the_stages_alone():
  done = _main("--config=configs/base.py:tiny", "--config=configs/renamed.py:tiny", "--workdir=w")
  names = done.stderr.split("Installed are ")[1].splitlines()[0].split(", ")
  assert {"configs/stage1.py", "configs/gen3.py"} < set(names)
  assert not {"configs/base.py", "configs/flag.py", "configs/renamed.py"} & set(names)


def test_help_lists_every_rooms_flags_without_jax():
  done = _python("-X", "importtime", "-m", "unilip_jax.main", "--help")
  imports = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
  assert "absl.app" in imports
  assert not {"jax", "flax", "orbax", "numpy"} & imports
  assert done.stdout.startswith("The command of training")
  for flag in ("--config:", "--workdir:", "--mode:", "--topology:", "--process_index:"):
    assert flag in done.stdout


@pytest.mark.parametrize("config", [
    ["--config", "configs/stage1.py:tiny"], ["--config=stage1.py:tiny"],
    [f"--config={_ROOT}/unilip_jax/configs/stage1.py:tiny"], ["--config=own.py:tiny"]])
def test_stage_files_are_found_from_any_folder(tmp_path, config):
  (tmp_path / "own.py").write_text("from unilip_jax.configs.stage1 import get_config\n")
  done = _main(*config, "--workdir=run", "--config.btch_size=2", cwd=tmp_path)
  assert "the nearest is --config.batch_size" in done.stderr  # of a config that was loaded


def test_commands_work_from_any_folder_and_finish_with_0(tmp_path):
  done = _main("--config=configs/stage1.py:tiny", "--workdir=run", "--mode=plan", "--topology=h100:1",
               "--config.batch_size=2", cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  plan = json.loads((tmp_path / "run/plan.json").read_text())
  assert (plan["stage"], plan["size"], plan["batch_size"]) == ("stage1", "tiny", 2)


def test_arguments_that_may_differ_between_hosts_are_not_compared():
  argv = ["--config=c", "--process_index=3", "--coordinator", "h:1", "--process_count=4", "--workdir=w"]
  assert multihost_flags.common_arguments(argv) == ["--config=c", "--process_count=4", "--workdir=w"]


def test_a_run_that_was_stopped_asks_to_be_run_again(tmp_path):
  code = ("import sys; from unilip_jax import main; from unilip_jax.multihost import preemption\n"
          "main._run = lambda config: setattr(preemption, '_stopped', True)\n"
          f"sys.argv = ['main', '--config=configs/stage1.py:tiny', '--workdir={tmp_path}']\n"
          "main.run()")
  assert _python("-c", code).returncode == errors.AGAIN


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_second_command_on_a_workdir_is_refused_with_the_first_ones_pid(tmp_path, mode):
  with locks.workdir(tmp_path):
    before = sorted(tmp_path.iterdir())
    done = _main("--config=configs/stage1.py:tiny", f"--workdir={tmp_path}", f"--mode={mode}")
    assert sorted(tmp_path.iterdir()) == before
  assert done.returncode == 1
  assert f"error: {tmp_path} is in use by another command (process {os.getpid()} on " in done.stderr
  assert "Traceback" not in done.stderr


def test_a_bug_keeps_its_stack_trace(tmp_path):
  code = ("import sys; from unilip_jax import main\n"
          "main._run = lambda config: {}['x']\n"
          f"sys.argv = ['main', '--config=configs/stage1.py:tiny', '--workdir={tmp_path}']\n"
          "main.run()")
  done = _python("-c", code)
  assert done.returncode == 1
  assert "Traceback" in done.stderr
