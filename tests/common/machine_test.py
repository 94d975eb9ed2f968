"""The command and the commit of a process are stated as they can be used again."""

import subprocess
import sys

import pytest

from unilip_jax.common import machine


def _git(folder, *arguments):
  subprocess.run(["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments],
                 check=True, capture_output=True)


def test_a_commit_is_that_of_the_checkout_with_its_changes(tmp_path, monkeypatch):
  monkeypatch.setattr(machine, "_ROOT", tmp_path)
  assert machine.commit() == ""
  _git(tmp_path, "init")
  assert machine.commit() == "", "there is no commit yet"
  (tmp_path / "file").write_text("a")
  _git(tmp_path, "add", "file")
  _git(tmp_path, "commit", "-m", "first")
  (tmp_path / "new").write_text("not part of the code yet")
  found = machine.commit()
  assert len(found) == 40
  (tmp_path / "file").write_text("b")
  assert machine.commit() == f"{found} + changes"


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
  (tmp_path / ".git").mkdir()
  monkeypatch.setattr(machine, "_ROOT", tmp_path)
  monkeypatch.setenv("PATH", str(tmp_path))
  assert machine.commit() == ""


@pytest.mark.parametrize(("words", "expected"), [
    (["/a/bin/python3", "-m", "unilip_jax.main", "--workdir=my runs"],
     "python3 -m unilip_jax.main '--workdir=my runs'"),
    (["/a/bin/python3", "/a/bin/unilip", "train", "--config=x"], "unilip train --config=x")])
def test_a_command_can_be_pasted_into_a_shell(words, expected, monkeypatch):
  monkeypatch.setattr(sys, "orig_argv", words)
  assert machine.command() == expected
