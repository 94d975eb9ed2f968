"""The command line: nothing heavy is loaded, mistakes are answered in one message."""

import subprocess
import sys

import pytest

from unilip_jax.data.prepare import __main__ as prepare


def test_preparing_loads_no_accelerator_and_no_framework():
  code = ("import sys, unilip_jax.data.prepare.__main__; "
          "print(*sorted({m.split('.')[0] for m in sys.modules}))")
  loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert not set(loaded.stdout.split()) & {
      "jax", "flax", "grain", "torch", "tensorflow", "tensorflow_datasets", "apache_beam"}


@pytest.mark.parametrize(("arguments", "message"), [
    (["json_lines", "--source=a", "--out=b"], "--kind"),
    (["gpt_image_edit", "--source=a", "--out=b", "--shard=3/3"], "i/n with 0 ≤ i < n is wanted"),
    (["gpt_image_edit", "--source=a", "--out=b", "--workers=0"], "a whole number from 1 is wanted"),
    (["gpt_image_edit", "--source=a", "--out=b", "--layout=index"], "invalid choice: 'index'"),
    (["gpt_image_edit", "--source=a", "--out=b", "--work=2"], "unrecognized arguments: --work=2")])
def test_wrong_options_are_refused(arguments, message, capsys):
  with pytest.raises(SystemExit):
    prepare.main(arguments)
  assert message in capsys.readouterr().err
