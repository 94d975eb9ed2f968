"""Pods get the batch that pays by their plan, with the rates that follow; the recipe's is one flag away."""

import json
import pathlib
import subprocess

import pytest

from launch import pod_batches
from unilip_jax.configs import stage448

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PODS = json.loads(pod_batches.FILE.read_text())
_CASES = [(stage, topology) for stage, pods in _PODS.items() for topology in pods]
_QUEUE = ("bash launch/tpu_queue.sh run --name=a --project=p --zone=z --config=configs/stage448.py:1b "
          "--workdir=gs://b/w --dry_run ")


def _shell(command):
  return subprocess.run(
      ["bash", "-c", command], cwd=_ROOT, env={"PATH": "/usr/bin:/bin", "HOME": "/nowhere"},
      capture_output=True, text=True, check=False)


def test_the_file_is_what_plans_and_rule_say():
  assert pod_batches.from_plans() == _PODS, "python -m launch.pod_batches writes it again"
  document = pod_batches.DOCUMENT.read_text()
  assert pod_batches.with_table(document, _PODS) == document, "python -m launch.pod_batches writes it again"


@pytest.mark.parametrize(("stage", "topology"), _CASES)
def test_a_larger_batch_has_eight_images_a_chip_and_pays(stage, topology):
  chips = {"v5e:16x16": 256, "v6e:8x8": 64, "v5p:4x4x4": 64}[topology]
  pod = _PODS[stage][topology]
  assert pod["fields"]["batch_size"] == 8 * chips
  official, larger = pod["images_per_second"]
  assert larger >= 1.2 * official


def test_stage_448_has_eight_images_a_chip_on_256_chips():
  assert _PODS["stage448:1b"]["v5e:16x16"]["fields"]["batch_size"] == 2048
  assert stage448.get_config("1b").batch_size == 128  # the config keeps the recipe's


@pytest.mark.parametrize(("arguments", "batch"), [
    ("--topology=v5e:16x16", "2048"),
    ("--topology=v5e:16x16 -- --config.batch_size=256", "256"),
    ("--topology=v5e:16x16*2 -- --config.batch_size=512", "512")])
def test_scripts_give_the_batch_of_the_topology(arguments, batch):
  done = _shell(_QUEUE + arguments)
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("--config.batch_size=") == 1
  assert f"--config.batch_size={batch} " in done.stdout
  assert ("--config.optimizer.lr=0.0004 " in done.stdout) == (batch == "2048")


def test_the_recipes_batch_is_one_flag_away():
  done = _shell(_QUEUE.replace("stage448", "gen2") + "--topology=v5e:4x4 --batch=recipe")
  assert done.returncode == 0, done.stderr
  assert "batch_size" not in done.stdout


@pytest.mark.parametrize(("arguments", "message"), [
    ("", "--topology=... is needed: the batch of configs/stage448.py:1b depends on it"),
    ("--topology=v5e:16x16 --batch=big", "--batch=big: choose pod or recipe")])
def test_a_batch_that_is_not_known_is_refused(arguments, message):
  done = _shell(_QUEUE + arguments)
  assert done.returncode == 2
  assert message in done.stderr


def test_the_reproduction_takes_the_batch_of_a_topology():
  command = "bash launch/train_1b.sh --dry_run --only=stage448,gen2"
  plain, pod = _shell(command), _shell(f"{command} --topology=v5e:16x16")
  assert plain.returncode == pod.returncode == 0, plain.stderr + pod.stderr
  assert "batch_size" not in plain.stdout
  assert pod.stdout.count("--config.batch_size=2048 ") == 1  # of stage 448
