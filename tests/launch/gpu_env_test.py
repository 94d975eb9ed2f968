"""GPU nodes get the memory that plans count with, and XLA flags that this JAX knows; what is set stays."""

import os
import pathlib
import re
import subprocess
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _sourced(**env):
  done = subprocess.run(
      ["sh", "-euc", '. launch/gpu.env; echo "$XLA_PYTHON_CLIENT_MEM_FRACTION"; echo "$XLA_FLAGS"'],
      cwd=_ROOT, env={"PATH": "/usr/bin:/bin"} | env, capture_output=True, text=True, check=True)
  return done.stdout.splitlines()


def test_the_fraction_is_that_of_the_plans_and_what_is_set_stays():
  own = "--xla_gpu_enable_latency_hiding_scheduler=false"
  default = "--xla_gpu_enable_latency_hiding_scheduler=true"
  assert _sourced() == ["0.9", default]
  assert _sourced(XLA_PYTHON_CLIENT_MEM_FRACTION="0.5", XLA_FLAGS=own) == ["0.5", f"{default} {own}"]


def test_this_jax_knows_every_flag_and_the_later_one_counts():
  flags = re.findall(r"--xla_\w+=\w+", (_ROOT / "launch/README.md").read_text())
  assert len(flags) == 8
  count = "--xla_force_host_platform_device_count="
  done = subprocess.run(  # XLA ends at a flag that it does not know
      [sys.executable, "-c", "import jax; print(jax.device_count())"], check=False,
      env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join([*flags, f"{count}2", f"{count}3"])},
      capture_output=True, text=True)
  assert done.stdout.split() == ["3"], done.stderr


def test_every_script_for_gpus_sets_them():
  for script in ("gpu_ssh.sh", "gpu_slurm_job.sh"):
    assert ". launch/gpu.env" in (_ROOT / "launch" / script).read_text()
