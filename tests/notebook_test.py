"""The notebook is the quickstart, and its own LoRA trains; tests/readme_test.py runs the other cells."""

import json
import os
import re
import subprocess
import sys

from PIL import Image
import pytest

from experiments import notebook
from tests import cpu_devices

_CELLS = json.loads(notebook.TARGET.read_text())["cells"]


def _code(heading: str) -> list[str]:
  """Returns the code cells below a heading."""
  cells, inside = [], False
  for cell in _CELLS:
    text = "".join(cell["source"])
    if cell["cell_type"] == "code":
      cells += [text] if inside else []
    else:
      for line in re.findall(r"^## (.+)", text, re.MULTILINE):
        inside = line == heading
  return cells


def test_it_is_the_quickstart():
  assert notebook.TARGET.read_text() == notebook.make(notebook.SOURCE.read_text()), (
      "run: python -m experiments.notebook")


def test_cells_have_what_the_format_requires():
  content = json.loads(notebook.TARGET.read_text())
  assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
  assert len({cell["id"] for cell in _CELLS}) == len(_CELLS)
  for cell in _CELLS:
    more = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
    assert cell.keys() == {"cell_type", "id", "metadata", "source"} | more
    assert "test:" not in "".join(cell["source"])
  printed = [output["text"] for cell in _CELLS for output in cell.get("outputs", ())]
  assert printed[0][0].startswith("UniLIP of shapes:gen3")


@pytest.fixture
def folder(tmp_path):
  """A folder with the command `unilip`, as of an installed package."""
  command = tmp_path / "bin" / "unilip"
  command.parent.mkdir()
  command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m unilip_jax.common.cli "$@"\n')
  command.chmod(0o755)
  return tmp_path


def _run(folder, cell):
  magic, _, script = cell.partition("\n")
  words = ["bash", "-euo", "pipefail", "-c", script] if magic == "%%bash" else [sys.executable, "-c", cell]
  path = f"{folder / 'bin'}:{os.environ['PATH']}"
  done = subprocess.run(words, cwd=folder, env=cpu_devices.environment() | {"PATH": path}, check=False,
                        capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def test_the_images_are_read_with_their_captions(folder):
  images, commands = _code("Your own LoRA")
  _run(folder, images)
  look = commands.splitlines()[1]
  assert look.startswith("unilip data look ")
  printed = _run(folder, f"%%bash\n{look}")
  assert "48 images, 48 captions of the same name" in printed
  assert "left out" not in printed


@pytest.mark.slow
def test_an_own_lora_trains_and_generates(folder):
  images, commands = _code("Your own LoRA")
  short = commands.replace("total_steps=200", "total_steps=2").replace("--guidance", "--steps=2 --guidance")
  assert "total_steps=2 " in short
  _run(folder, images)
  _run(folder, short)
  assert (folder / "runs/indigo/checkpoints/2").is_dir()
  sizes = [Image.open(folder / f"samples/indigo/{i:04d}.png").size for i in range(4)]
  assert sizes == [(112, 112)] * 4
