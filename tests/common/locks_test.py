"""A second writer is refused with the name of the first, and a killed one leaves no lock."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from unilip_jax.common import atomic_io, locks

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_HOLDER = """
import sys, time
from unilip_jax.common import atomic_io, locks
if sys.argv[1] == "workdir":
  entered = locks.workdir(sys.argv[2])
else:
  entered = atomic_io.Folder(sys.argv[2], overwrite=True, replaceable=lambda path: True)
with entered as folder:
  if folder is not None:
    (folder.path / "half").write_text("x")
  print("ready", flush=True)
  time.sleep(60)
"""


def _hold(kind, folder):
  process = subprocess.Popen([sys.executable, "-c", _HOLDER, kind, str(folder)], cwd=_ROOT,
                             stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "ready\n"
  return process


def _kill(process):
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stdout.close()


def test_a_second_command_on_a_workdir_is_refused_until_the_first_is_killed(tmp_path):
  process = _hold("workdir", tmp_path / "run")
  try:
    with pytest.raises(locks.HeldError, match=rf"run is in use by .*process {process.pid} on .* since"), \
        locks.workdir(tmp_path / "run"):
      pass
  finally:
    _kill(process)
  assert (tmp_path / "run" / locks.FILE).exists()  # and it does not lock
  with locks.workdir(tmp_path / "run"):
    with pytest.raises(locks.HeldError, match=f"process {os.getpid()} "), locks.workdir(tmp_path / "run"):
      pass
    assert (tmp_path / "run" / locks.FILE).exists()
  assert not list((tmp_path / "run").iterdir())


def test_two_writers_of_one_folder_do_not_mix_and_a_killed_one_blocks_nothing(tmp_path, caplog):
  process = _hold("folder", tmp_path / "w")
  try:
    with pytest.raises(locks.HeldError, match=r"another command is writing .*/w\.tmp"):
      atomic_io.Folder(tmp_path / "w", overwrite=False, replaceable=lambda path: True)
  finally:
    _kill(process)
  assert (tmp_path / "w.tmp/half").exists()
  _write(tmp_path / "w")
  assert "which a killed process left unfinished" in caplog.text
  assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.txt", "w"]


def _write(folder, content="new", *, overwrite=False):
  with atomic_io.Folder(folder, overwrite=overwrite, replaceable=lambda path: True) as writer:
    (writer.path / "a.txt").write_text(content)
    writer.finish()


def test_a_kill_between_the_two_renames_loses_no_folder(tmp_path, monkeypatch):
  _write(tmp_path / "w", "former")
  rename = pathlib.Path.rename

  def killed(self, target):
    if self.name == "w.tmp":
      raise KeyboardInterrupt
    return rename(self, target)

  monkeypatch.setattr(type(atomic_io.epath.Path(tmp_path)), "rename", killed)
  monkeypatch.setattr(atomic_io.Folder, "__exit__", lambda self, *_: os.close(self._lock))  # nor cleans up
  with pytest.raises(KeyboardInterrupt):
    _write(tmp_path / "w", overwrite=True)
  monkeypatch.undo()
  assert not (tmp_path / "w").exists()
  with pytest.raises(ValueError, match="--overwrite"):  # the former folder is back
    _write(tmp_path / "w")
  assert (tmp_path / "w/a.txt").read_text() == "former"
  _write(tmp_path / "w", overwrite=True)
  assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.txt", "w"]


def test_a_folder_named_old_is_left_alone(tmp_path):
  (tmp_path / "w.old").mkdir()
  (tmp_path / "w.old/mine.txt").write_text("mine")
  _write(tmp_path / "w")
  _write(tmp_path / "w", "newer", overwrite=True)
  assert (tmp_path / "w.old/mine.txt").read_text() == "mine"
  assert (tmp_path / "w/a.txt").read_text() == "newer"


def test_a_file_system_without_locks_warns(tmp_path, monkeypatch, caplog):
  def unsupported(*_):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr(locks.fcntl, "flock", unsupported)
  with locks.workdir(tmp_path):
    pass
  assert "has no locks (Operation not supported): make sure that no other command" in caplog.text
