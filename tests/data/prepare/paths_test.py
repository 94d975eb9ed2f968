"""Preparations write where the options say; a wrong source leaves nothing that refuses the right one."""

import json
import pathlib

import numpy as np
from PIL import Image
import pytest

from tests import opened
from unilip_jax.data.prepare import __main__ as prepare
from unilip_jax.data.prepare import manifest


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  (tmp_path / "home").mkdir()
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  return tmp_path / "home"


def _list(folder, name="mine.jsonl", count=3):
  folder.mkdir(exist_ok=True)
  for i in range(count):
    Image.fromarray(np.full((32, 32, 3), i, np.uint8)).save(folder / f"{i}.png")
  (folder / name).write_text("".join(json.dumps({"image": f"{i}.png", "text": "a dog"}) + "\n"
                                     for i in range(count)))


def _run(*words):
  prepare.main([*words, "--workers=1", "--quiet"])


def test_home_is_expanded_in_every_option(home, capsys):
  _list(home)
  _run("json_lines", "--source=~/mine.jsonl", "--kind=t2i", "--root=~", "--out=~/a [1]")
  row = capsys.readouterr().out.splitlines()[-1]
  assert row == f'row of a config: ("tar", "{home}/a [1]/*.tar", 1.0)'
  source = opened.source("tar", f"{home}/a [1]/*.tar", example="t2i", index="~/idx")
  assert len(source) == 3
  _run("blip3o", "--source=~/a [1]/*.tar", "--out=~/o9", "--index_dir=~/idx9")
  prepare.main(["check", "--out=~/o9"])
  assert {p.name for p in home.iterdir() if p.is_dir()} == {"a [1]", "idx", "o9", "idx9"}
  assert not list(pathlib.Path().iterdir())  # nothing in a folder called ~


@pytest.mark.parametrize(("wrong", "message"), [
    ("nowhere.jsonl", "nowhere.jsonl does not exist"),
    ("folder", "folder does not exist or is not a file"),
    ("s3://b/mine.jsonl", "s3:// is not supported")])
def test_a_wrong_source_leaves_nothing(home, wrong, message):
  pathlib.Path("folder").mkdir()
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    _run("json_lines", f"--source={wrong}", "--kind=t2i", "--out=~/out")
  assert not (home / "out").exists()


def test_a_source_without_a_usable_record_does_not_refuse_the_next(home):
  _list(home)
  (home / "wrong.jsonl").write_text(json.dumps({"photo": "0.png"}) + "\n")
  with pytest.raises(ValueError, match="no record could be used"):
    _run("json_lines", "--source=~/wrong.jsonl", "--kind=t2i", "--out=~/out")
  _run("json_lines", "--source=~/mine.jsonl", "--kind=t2i", "--out=~/out")
  assert manifest.load(home / "out")["counts"]["written"] == 3
  with pytest.raises(manifest.ManifestError, match="was prepared with other settings"):
    _run("json_lines", "--source=~/wrong.jsonl", "--kind=t2i", "--out=~/out")
