"""User errors of every kind end a command with one message; bugs keep their stack trace."""

import errno
import json
import pickle
import tarfile
import zipfile

from PIL import Image
import pytest
import safetensors

from unilip_jax.common import errors


def _raising(error):
  def main():
    raise error
  return main


def _printed(capsys, error):
  with pytest.raises(SystemExit) as stop:
    errors.run_command(_raising(error))
  return stop.value.code, capsys.readouterr().err


def test_a_foreign_error_names_file_and_remedy(capsys):
  full = OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.jsonl")
  assert _printed(capsys, full) == (1, (
      "error: runs/a/metrics.jsonl: the disk is full: free space, then run the same command again\n"
      "(set UNILIP_TRACEBACK=1 for the stack trace)\n"))
  assert "x.npz: it does not exist" in _printed(capsys, FileNotFoundError(errno.ENOENT, "No", "x.npz"))[1]
  assert "a -> b: no permission" in _printed(capsys, PermissionError(errno.EACCES, "No", "a", None, "b"))[1]
  assert "read timed out" in _printed(capsys, OSError("read timed out"))[1]


@pytest.mark.parametrize("error", [
    OverflowError("int too big"), EOFError(), zipfile.BadZipFile("bad"), tarfile.ReadError("bad"),
    pickle.UnpicklingError("bad"), json.JSONDecodeError("bad", "", 0), safetensors.SafetensorError("bad"),
    Image.DecompressionBombError("bad"), RuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
    RuntimeError("Unable to initialize backend 'tpu': none"), ImportError("libcudnn.so.9: cannot open")])
def test_errors_of_bad_input_and_of_the_machine_have_no_stack_trace(capsys, error):
  code, text = _printed(capsys, error)
  assert code == 1
  assert text.startswith("error: ")
  assert len(text.split("error: ")[1].splitlines()[0]) > 2  # never an empty message
  assert "Traceback" not in text


def test_a_missing_package_is_named_with_its_command(capsys):
  error = ModuleNotFoundError("No module named 'torch'", name="torch.nn")
  assert "needs the package torch, which is not installed: pip install torch" in _printed(capsys, error)[1]


@pytest.mark.parametrize("error", [
    KeyError("x"), TypeError("x"), AttributeError("x"), RuntimeError("x"), AssertionError(),
    ModuleNotFoundError("No module", name="unilip_jax.nothing"),
    ImportError("cannot import name", name="unilip_jax.data")])
def test_a_bug_keeps_its_stack_trace(error):
  with pytest.raises(type(error)):
    errors.run_command(_raising(error))
  assert "Traceback" in errors.explain(error) or type(error).__name__ in errors.explain(error)
  assert not errors.explain(error).startswith("error:")


def test_the_stack_trace_of_a_user_error_can_be_asked_for(monkeypatch):
  monkeypatch.setenv("UNILIP_TRACEBACK", "1")
  assert errors.explain(ValueError("x")) == "ValueError: x\n"


def test_exit_status(capsys):
  assert _printed(capsys, errors.TryAgainError("gone"))[0] == errors.AGAIN
  with pytest.raises(SystemExit) as stop:
    errors.run_command(_raising(KeyboardInterrupt()))
  assert stop.value.code == 130
  assert capsys.readouterr().err == "stopped\n"
