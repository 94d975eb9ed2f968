"""Scripts parse, pass shellcheck, and refuse unknown options."""

import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SCRIPTS = [*sorted((_ROOT / "launch").glob("*.sh")), _ROOT / ".ci/run"]


@pytest.mark.parametrize("script", _SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse_and_pass_shellcheck(script):
  subprocess.run(["bash", "-n", str(script)], check=True)
  shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
  done = subprocess.run([str(shellcheck), "-x", str(script)], cwd=_ROOT, capture_output=True, text=True,
                        check=False)
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
  short = subprocess.run([*demo, "--steps=1,2"], capture_output=True, text=True, check=False)
  assert short.returncode == 2
  assert "six numbers" in short.stderr


@pytest.mark.parametrize(("words", "message"), [
    (["demo.sh", "--serve", "--full"], "--serve serves rl_nft"),
    (["serve.sh"], "usage: bash launch/serve.sh")])
def test_serving_says_what_it_needs(words, message):
  done = subprocess.run(["bash", str(_ROOT / "launch" / words[0]), *words[1:]], capture_output=True,
                        text=True, check=False)
  assert done.returncode == 2
  assert message in done.stderr


def test_demo_says_which_folder_of_images_is_missing(tmp_path):
  (tmp_path / "train").mkdir()
  demo = ["bash", str(_ROOT / "launch/demo.sh"), "--images=."]
  done = subprocess.run(demo, cwd=tmp_path, capture_output=True, text=True, check=False)
  assert done.returncode == 2
  assert f"{tmp_path}/./test" in done.stderr  # relative to the caller's folder
  demo[-1] = "--images=photos"  # any such name is a folder, not the sample photographs
  done = subprocess.run(demo, cwd=tmp_path, capture_output=True, text=True, check=False)
  assert done.returncode == 2
  assert f"no folder {tmp_path}/photos/train" in done.stderr


def test_demo_counts_its_stages_and_the_minutes_left(tmp_path):
  (tmp_path / "launch").mkdir()
  (tmp_path / ".venv/bin").mkdir(parents=True)
  (tmp_path / "launch/demo.sh").write_text((_ROOT / "launch/demo.sh").read_text())
  (tmp_path / "launch/setup.sh").write_text("")
  (tmp_path / ".venv/bin/python").write_text("#!/bin/sh\n")
  (tmp_path / ".venv/bin/python").chmod(0o755)
  done = subprocess.run(["bash", "launch/demo.sh", "--workdir=w"], cwd=tmp_path, capture_output=True,
                        text=True, check=True)
  lines = [line for line in done.stdout.splitlines() if line.startswith("== stage ")]
  assert [line.split(";")[0] for line in lines] == [
      f"== stage {k} of 7: {name}" for k, name in enumerate(
          ("stage1", "stage2", "gen1", "gen2", "gen3", "rl_nft", "showcase"), 1)]
  minutes = [int(re.search(r"about (\d+) minutes left", line)[1]) for line in lines]
  assert minutes == sorted(minutes, reverse=True)
  assert 8 <= minutes[0] <= 12  # the complete demo takes about ten


def test_setup_says_how_much_it_installs(tmp_path):
  (tmp_path / "launch").mkdir()
  (tmp_path / ".venv/bin").mkdir(parents=True)
  for name in ("launch/setup.sh", "pyproject.toml", "requirements.txt", "requirements-dev.txt"):
    (tmp_path / name).write_text((_ROOT / name).read_text())
  (tmp_path / ".venv/bin/python").write_text('#!/bin/sh\n[ "$1" != -c ] || exit 1\necho "$@"\n')
  (tmp_path / ".venv/bin/python").chmod(0o755)
  setup = lambda: subprocess.run(
      ["bash", "launch/setup.sh"], cwd=tmp_path, capture_output=True, text=True, check=True)
  done = setup()
  assert "about 1 GB on disk" in done.stdout
  assert "--quiet" not in done.stdout  # pip prints each package
  assert setup().stdout == ""


@pytest.mark.parametrize(("absent", "quiet"), [(False, True), (True, False)])
def test_setup_lists_no_packages_that_are_installed(tmp_path, absent, quiet):
  (tmp_path / "launch").mkdir()
  (tmp_path / ".venv/bin").mkdir(parents=True)
  for name in ("launch/setup.sh", "pyproject.toml"):
    (tmp_path / name).write_text((_ROOT / name).read_text())
  (tmp_path / "requirements.txt").write_text(
      f"# pins\njax=={importlib.metadata.version('jax')}  # why\n"
      f"etils[epath]=={importlib.metadata.version('etils')}\n" + "no-such-package==1.0\n" * absent)
  (tmp_path / ".venv/bin/python").write_text(
      f'#!/bin/sh\n[ "$1" != -c ] || exec {sys.executable} "$@"\necho "$@"\n')
  (tmp_path / ".venv/bin/python").chmod(0o755)
  done = subprocess.run(
      ["bash", "launch/setup.sh"], cwd=tmp_path, capture_output=True, text=True, check=True)
  assert ("--quiet" in done.stdout) is quiet


def test_setup_refuses_what_it_does_not_know():
  setup = ["bash", str(_ROOT / "launch/setup.sh")]
  done = subprocess.run([*setup, "--all"], capture_output=True, text=True, check=False)
  assert (done.returncode, done.stderr[:6]) == (2, "usage:")
  done = subprocess.run(setup, env={**os.environ, "ACCELERATOR": "abacus"}, capture_output=True,
                        text=True, check=False)
  assert done.returncode == 2
  assert "choose cpu, tpu or cuda" in done.stderr


def test_requirements_are_exact():
  for name in ("requirements.txt", "requirements-dev.txt"):
    for line in (_ROOT / name).read_text().splitlines():
      if line and not line.startswith(("#", "-r ")):
        assert re.fullmatch(r"[\w.-]+(\[[\w,]+\])?==[\w.]+( +#.*)?", line), f"{name}: {line}"


def test_nothing_tracked_names_a_registry_or_a_path_of_one_machine():
  listed = subprocess.run(["git", "ls-files", "-z"], cwd=_ROOT, capture_output=True, text=True,
                          check=False)
  if listed.returncode:
    pytest.skip("no git checkout")
  # In parts, so that this file is not reported.
  needles = ["--index" + "-url", "--find" + "-links", "py" + "pi.org", "python" + "hosted",
             "/wo" + "rk/", "/ro" + "ot/"]
  found = []
  for name in filter(None, listed.stdout.split("\0")):
    path = _ROOT / name
    if path.is_file() and path.suffix not in (".png", ".jpg", ".npz", ".safetensors", ".xz"):
      text = path.read_text()
      found += [f"{name}: {needle}" for needle in needles if needle in text]
  assert not found
