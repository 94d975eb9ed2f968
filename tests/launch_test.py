"""Scripts are sound before anyone waits for them."""

import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_SCRIPTS = [*sorted((_ROOT / "launch").glob("*.sh")), _ROOT / ".ci/run"]


@pytest.mark.parametrize("script", _SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse_and_pass_shellcheck(script):
  subprocess.run(["bash", "-n", str(script)], check=True)
  shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
  done = subprocess.run([str(shellcheck), str(script)], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout


def test_scripts_stop_at_the_first_error():
  for script in _SCRIPTS:
    assert "set -euo pipefail" in script.read_text(), script.name


def test_demo_says_how_to_use_it_and_refuses_unknown_options():
  demo = ["bash", str(_ROOT / "launch/demo.sh")]
  out = subprocess.run([*demo, "--help"], capture_output=True, text=True, check=True)
  assert out.stdout.startswith("usage: bash launch/demo.sh")
  refused = subprocess.run([*demo, "--step1=3"], capture_output=True, text=True, check=False)
  assert refused.returncode == 2
  assert "usage" in refused.stderr


def test_nothing_tracked_names_a_registry_or_a_path_of_one_machine():
  files = subprocess.run(["git", "ls-files"], cwd=_ROOT, capture_output=True, text=True, check=True)
  needles = ["--index" + "-url", "/wo" + "rk/main", "/ro" + "ot/"]
  for name in files.stdout.split():
    path = _ROOT / name
    if path.suffix in (".py", ".md", ".sh", ".txt", ".toml", ".json", ".jinja") and path.exists():
      text = path.read_text()
      assert not [n for n in needles if n in text], name
