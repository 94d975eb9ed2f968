"""The commands and clients that docs/serving.md prints work as printed, on another port."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from tests.serve import fakes
from unilip_jax.serve import __main__ as command
from unilip_jax.serve import api_errors

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_TEXT = (_ROOT / "docs/serving.md").read_text()
_BLOCKS = re.findall(r"<!-- test: (\w+)[^>]*-->\n```(\w+)\n(.*?)```", _TEXT, re.DOTALL)
_ADDRESS = "http://127.0.0.1:8000"


def test_every_block_has_a_marker():
  assert len(_BLOCKS) == _TEXT.count("```") / 2
  assert {kind for kind, _, _ in _BLOCKS} == {"parse", "client"}


@pytest.mark.parametrize("language", ["python", "bash"])
def test_clients_run_as_printed(language, tmp_path):
  block, = (text for kind, lang, text in _BLOCKS if (kind, lang) == ("client", language))
  with fakes.running() as running:
    block = block.replace(_ADDRESS, running.url)
    words = [sys.executable, "-c", block] if language == "python" else ["bash", "-euc", block]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
  assert done.returncode == 0, done.stderr
  if language == "python":
    assert done.stdout == "What colour is the cross? 28x28"
  else:
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_commands_are_accepted():
  for kind, language, text in _BLOCKS:
    for line in text.splitlines() if (kind, language) == ("parse", "bash") else ():
      program = next(p for p in ("unilip serve", "bash launch/serve.sh") if p in line)
      command._parser().parse_args(shlex.split(line.partition(program)[2]))


def test_every_code_of_an_error_is_explained():
  source = "".join(p.read_text() for p in (_ROOT / "unilip_jax/serve").glob("*.py") if p.name != "page.py")
  codes = set(re.findall(r'ApiError\(\s*\d+, "(\w+)"', source))
  assert len(codes) > 10
  fields = {code for code in codes if code.startswith("invalid_") and code != "invalid_api_key"}
  assert not {code for code in codes - fields if f"`{code}`" not in _TEXT}
  assert api_errors.queue_full(1).code in codes


def test_every_option_that_is_named_exists():
  known = {word for action in command._parser()._actions for word in action.option_strings}
  named = set(re.findall(r"--[a-z_]+", _TEXT)) - {"--model", "--serve", "--model_args"}
  assert named <= known
