"""A run is bound to its tokenizer: it keeps the file, and no other is taken without a word."""

import json
import logging
import os
import pathlib
import shutil

import pytest

from tests import micro
from unilip_jax.configs import base
from unilip_jax.data import text as text_lib
from unilip_jax.weights import language

_TOKENIZER = pathlib.Path(text_lib.tokenizer_file("shapes"))
_OTHER = _TOKENIZER.read_text() + "\n"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir(tmp_path / "elsewhere")


def _write(path, text=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text or _TOKENIZER.read_text())
  return path


def _config(tokenizer, **fields):
  config = micro.text_config("gen2", **fields)
  config.text.tokenizer = str(tokenizer)
  return config


def _run(folder, config, **entries):
  """A run as train writes it, without weights."""
  folder.mkdir(parents=True)
  language.keep_tokenizer(config, folder)
  (folder / "config.json").write_text(json.dumps({
      "text": {"tokenizer": config.text.tokenizer, "system": "be kind"}, **entries}))
  return folder


def _earlier_run(folder, tokenizer):
  run = _run(folder, _config("shapes"))
  (run / "tokenizer.json").unlink()
  (run / "config.json").write_text(json.dumps({"text": {"tokenizer": tokenizer, "system": ""}}))
  return run


def test_a_moved_run_brings_its_tokenizer(tmp_path, monkeypatch):
  _write(tmp_path / "train/weights/tokenizer.json")
  monkeypatch.chdir(tmp_path / "train")
  config = _config("weights/tokenizer.json")
  digest = language.bind_tokenizer(config, "run")
  run = _run(tmp_path / "train/run", config, tokenizer_sha256=digest)
  monkeypatch.chdir(tmp_path / "elsewhere")
  moved = shutil.move(run, tmp_path / "moved")
  shutil.rmtree(tmp_path / "train")
  _write(tmp_path / "elsewhere/weights/tokenizer.json", _OTHER)  # another of the same name is not taken
  for path in (str(moved), f"{moved}/checkpoints/7", "../moved"):
    file, system = language.language_of(path, {})
    assert pathlib.Path(file).read_bytes() == _TOKENIZER.read_bytes()
    assert system == "be kind"


def test_a_tokenizer_that_was_exchanged_is_refused(tmp_path):
  run = _run(tmp_path / "run", _config("shapes"), tokenizer_sha256="0" * 64)
  with pytest.raises(ValueError, match=r"tokenizer\.json is not the tokenizer that .*run was trained with"):
    language.language_of(str(run), {})


def test_a_run_of_an_earlier_version_finds_the_file_that_it_names(tmp_path, caplog):
  run = _earlier_run(tmp_path / "train/run", "weights/tokenizer.json")
  wanted = _write(tmp_path / "train/weights/tokenizer.json")
  with caplog.at_level(logging.WARNING):
    assert language.language_of(str(run), {}) == (str(wanted), "")
  assert "keeps no tokenizer" in caplog.text
  assert str(wanted) in caplog.text


def test_of_two_that_differ_none_is_taken(tmp_path):
  run = _earlier_run(tmp_path / "train/run", "weights/tokenizer.json")
  _write(tmp_path / "train/weights/tokenizer.json")
  _write(tmp_path / "elsewhere/weights/tokenizer.json", _OTHER)
  with pytest.raises(ValueError, match=r"ambiguous.*train/weights.*copy the one"):
    language.language_of(str(run), {})


def test_a_missing_one_is_answered_with_run_file_and_places(tmp_path):
  run = _earlier_run(tmp_path / "train/run", "weights/tokenizer.json")
  with pytest.raises(FileNotFoundError) as error:
    language.language_of(str(run), {})
  for part in (str(run), "config.json names weights/tokenizer.json", f"{tmp_path}/train/weights",
               f"{tmp_path}/elsewhere/weights", f"to {run}/tokenizer.json"):
    assert part in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"text": {"tokenizer": 3}}'])
def test_a_damaged_config_names_its_file(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match=r"config\.json is damaged"):
    language.language_of(str(tmp_path), {})


def test_imported_folders_and_folders_without_either(tmp_path):
  assert language.language_of(str(tmp_path), {}) is None
  file = _write(tmp_path / "tokenizer.json")
  assert language.language_of(str(tmp_path), {}) == (str(file), base.SYSTEM)


def test_a_run_goes_on_with_its_own_tokenizer_alone(tmp_path, caplog):
  original = _write(tmp_path / "weights/tokenizer.json")
  config = _config(original)
  digest = language.bind_tokenizer(config, tmp_path / "run")
  run = _run(tmp_path / "run", config, tokenizer_sha256=digest)
  other = _config(_write(tmp_path / "other.json", _OTHER))
  assert language.bind_tokenizer(other, run) != digest  # a start that failed, without a checkpoint
  (run / "checkpoints/1").mkdir(parents=True)
  assert language.bind_tokenizer(config, run) == digest
  with pytest.raises(ValueError, match=r"differs from .*run/tokenizer\.json, with which"):
    language.bind_tokenizer(other, run)
  with pytest.raises(ValueError, match=r"differs from .*run/tokenizer\.json, with which"):
    language.bind_tokenizer(_config(tmp_path / "other.json", resume=str(run)), tmp_path / "new")
  with caplog.at_level(logging.WARNING):
    language.bind_tokenizer(
        _config(tmp_path / "other.json", init_from=f"shapes:sana,{run}"), tmp_path / "new")
  assert "whose weights this run starts from" in caplog.text
  original.unlink()
  config = _config(original)
  assert language.bind_tokenizer(config, run) == digest
  assert config.text.tokenizer == os.fspath(run / "tokenizer.json")
  with pytest.raises(FileNotFoundError, match="there is no tokenizer"):
    language.bind_tokenizer(_config(original), tmp_path / "new")


def test_reconstruction_needs_no_tokenizer(tmp_path):
  config = micro.config("stage1")
  config.text.tokenizer = "nowhere.json"
  assert language.bind_tokenizer(config, tmp_path) == ""
  language.keep_tokenizer(config, tmp_path)
  assert not list(tmp_path.glob("*.json"))


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"t\.json is no tokenizer\.json"):
    text_lib.Text(str(_write(tmp_path / "t.json", "{}")))
