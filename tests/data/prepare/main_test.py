"""The command line imports nothing heavy and reports mistakes in one message."""

import subprocess
import sys

import pytest

from unilip_jax.data import __main__ as data_command
from unilip_jax.data.prepare import __main__ as prepare
from unilip_jax.data.prepare import json_lists


def test_preparing_loads_no_accelerator_and_no_framework():
  code = ("import sys, unilip_jax.data.prepare.__main__; "
          "print(*sorted({m.split('.')[0] for m in sys.modules}))")
  loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert not set(loaded.stdout.split()) & {
      "jax", "flax", "grain", "torch", "tensorflow", "tensorflow_datasets", "apache_beam"}


@pytest.mark.parametrize(("arguments", "message"), [
    (["json_lines", "--source=a", "--out=b"], "--kind"),
    (["gpt_image_edit", "--source=a", "--out=b", "--shard=3/3"], "expected i/n with 0 ≤ i < n"),
    (["gpt_image_edit", "--source=a", "--out=b", "--workers=0"], "expected an integer of at least 1"),
    (["gpt_image_edit", "--source=a", "--out=b", "--layout=index"], "invalid choice: 'index'"),
    (["gpt_image_edit", "--source=a", "--out=b", "--work=2"], "unrecognized arguments: --work=2")])
def test_wrong_options_are_refused(arguments, message, capsys):
  with pytest.raises(SystemExit):
    prepare.main(arguments)
  assert message in capsys.readouterr().err


def test_no_or_an_unknown_command_is_answered_with_all_of_them(monkeypatch, capsys):
  names = data_command.COMMANDS
  for arguments, what in ([], "no command"), (["bogus"], "unknown command 'bogus'"):
    with pytest.raises(SystemExit, match="2"):
      data_command.main(arguments)
    assert capsys.readouterr().err == f"error: unilip data: {what}; choose {', '.join(names)}\n"
  with pytest.raises(SystemExit, match="2"):
    prepare.main(["bogus"])
  assert f"(choose from {', '.join(map(repr, names[1:]))})" in capsys.readouterr().err


@pytest.mark.parametrize("fails", [False, True])
def test_user_errors_and_failing_disks_end_with_one_message(fails, tmp_path, monkeypatch, capsys):
  def fail(path):
    raise OSError(5, f"Input/output error of {path}")

  if fails:
    (tmp_path / "x.jsonl").touch()
    monkeypatch.setattr(json_lists, "open_list", fail)
  monkeypatch.setattr(sys, "argv", ["prepare", "json_lines", f"--source={tmp_path}/x.jsonl", "--kind=t2i",
                                    f"--out={tmp_path}/out", "--workers=1", "--quiet"])
  with pytest.raises(SystemExit, match="1"):
    prepare.run_command()
  error = capsys.readouterr().err
  assert error.startswith("error: ")
  assert (f"Input/output error of {tmp_path}/x.jsonl" if fails else "x.jsonl does not exist") in error
  assert "Traceback" not in error
