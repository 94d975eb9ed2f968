"""Tars have complete samples in the layout of the real data, are written once, and never mix settings."""

import io
import json
import tarfile

import numpy as np
from PIL import Image
import pytest

from unilip_jax.shapes import captions, edits, language, paraphrases, render, scene, tars


def _member(path, name):
  with tarfile.open(path) as tar:
    return tar.extractfile(name).read()


def _small_tars(monkeypatch):
  monkeypatch.setattr(tars, "_PER_TAR", 4)


def test_a_sample_is_an_image_a_caption_its_scene_and_turns(tmp_path):
  paths = tars.ensure_tars(tmp_path, "test", count=5, workers=1)
  with tarfile.open(paths[0]) as tar:
    names = tar.getnames()
  assert names[:3] == ["test0000000.jpg", "test0000000.txt", "test0000000.json"]
  assert len(names) == 15
  values = json.loads(_member(paths[0], "test0000003.json"))
  one = scene.Scene.from_json(values)
  assert one == captions.sample_scene(0, 3, "test")
  fitting = [*(c.text for c in captions.captions_of(one)), language.describe(one)]
  assert _member(paths[0], "test0000003.txt").decode() in fitting
  image = np.asarray(Image.open(io.BytesIO(_member(paths[0], "test0000003.jpg"))), int)
  assert np.abs(image - render.render(one)).mean() < 2  # JPEG, quality 95


def test_turns_are_the_description_alone_or_questions_in_any_order():
  firsts, described = set(), 0
  for i in range(60):
    values = json.loads(tars.scene_sample(0, i, "train", scene.SIZES)["json"])
    turns = values["turns"]
    if turns[0][0] == "describe the image.":
      described += 1
      assert turns == [["describe the image.", language.describe(scene.Scene.from_json(values))]]
    else:
      firsts.add(turns[0][0].split()[0])
      assert 1 <= len(turns) <= 6
      assert all(question.endswith("?") and answer for question, answer in turns)
  assert 5 < described < 25
  assert len(firsts) > 3


def test_an_edit_is_two_images_an_instruction_and_both_scenes(tmp_path):
  paths = tars.ensure_tars(tmp_path, "train", count=7, with_edits=True, workers=1)
  categories = set()
  for i in range(7):
    values = json.loads(_member(paths[0], f"train{i:07d}.json"))
    categories.add(values["category"])
    scenes = [scene.Scene.from_json(values[k]) for k in ("source", "target")]
    assert scenes[0] != scenes[1]
    assert {s.split for s in scenes} == {"train"}
    assert _member(paths[0], f"train{i:07d}.txt").decode() == tars.sample_edit(
        0, i, "train").instruction
    for name, one in zip(("input", "output"), scenes):
      image = np.asarray(Image.open(io.BytesIO(_member(paths[0], f"train{i:07d}.{name}.jpg"))), int)
      assert np.abs(image - render.render(one)).mean() < 2
  assert categories == set(edits.EDITS)


def test_paraphrased_texts_contain_captions_and_instructions():
  for i in range(60):
    members = tars.scene_sample(0, i, "train", scene.SIZES, paraphrased=True)
    one = scene.Scene.from_json(json.loads(members["json"]))
    texts = [paraphrases.paraphrase(c.text, paraphrases.PROMPTS, i) for c in captions.captions_of(one)]
    assert members["txt"].decode() in texts
    plain, other = (tars.sample_edit(0, i, "train", paraphrased=p) for p in (False, True))
    assert (other.source, other.target, other.category) == (plain.source, plain.target, plain.category)
    assert plain.instruction in other.instruction != plain.instruction


def test_a_second_call_writes_nothing(tmp_path, monkeypatch):
  paths = tars.ensure_tars(tmp_path, "test", count=5, workers=1)

  def refuse(*_):
    raise AssertionError("wrote again")

  monkeypatch.setattr(tars, "_write_tar", refuse)
  assert tars.ensure_tars(tmp_path, "test", count=5, workers=1) == paths


def test_a_call_after_an_interruption_writes_the_missing_tars(tmp_path, monkeypatch):
  _small_tars(monkeypatch)
  paths = tars.ensure_tars(tmp_path / "a", "test", count=10, workers=1)
  wanted = [p.read_bytes() for p in paths]
  (paths[0].parent / "manifest.json").unlink()  # it is written last
  paths[1].unlink()
  before = paths[0].stat().mtime
  assert tars.ensure_tars(tmp_path / "a", "test", count=10, workers=1) == paths
  assert [p.read_bytes() for p in paths] == wanted
  assert paths[0].stat().mtime == before


def test_tars_are_written_atomically(tmp_path, monkeypatch):
  calls = []

  def fail_late(one, canvas):
    calls.append(one)
    if len(calls) > 2:
      raise KeyboardInterrupt
    return np.zeros((8, 8, 3), np.uint8)

  monkeypatch.setattr(render, "render", fail_late)
  with pytest.raises(KeyboardInterrupt):
    tars.ensure_tars(tmp_path, "test", count=5, workers=1)
  assert not list(tmp_path.rglob("*.tar"))
  assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    "other",
    [{"seed": 7}, {"sizes": ("large",)}, {"count": 8}, {"with_edits": True}, {"paraphrased": True},
     {"canvases": ("wide", "tall")}])
def test_tars_of_other_settings_are_never_read(tmp_path, monkeypatch, other):
  _small_tars(monkeypatch)
  first = tars.ensure_tars(tmp_path, "test", count=4, workers=1)
  (first[0].parent / "manifest.json").unlink()  # as if interrupted
  settings = {"count": 4, **other}
  paths = tars.ensure_tars(tmp_path, "test", workers=1, **settings)
  assert not set(paths) & set(first)
  assert len(list(paths[0].parent.glob("*.tar"))) == len(paths)  # a pattern finds these alone
  sample = tars.edit_sample if "with_edits" in other else tars.scene_sample
  wanted = sample(settings.get("seed", 0), 0, "test", settings.get("sizes", scene.SIZES),
                  settings.get("paraphrased", False))
  assert _member(paths[0], "test0000000.txt") == wanted["txt"]


def test_processes_write_what_one_process_writes(tmp_path, monkeypatch):
  _small_tars(monkeypatch)
  one = tars.ensure_tars(tmp_path / "one", "train", count=8, workers=1)
  two = tars.ensure_tars(tmp_path / "two", "train", count=8, workers=2)
  assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


def test_what_cannot_be_written_is_refused(tmp_path):
  with pytest.raises(ValueError, match="val"):
    tars.ensure_tars(tmp_path, "val")
  with pytest.raises(ValueError, match="unseen"):
    tars.ensure_tars(tmp_path, "heldout")
  with pytest.raises(ValueError, match="at least 1"):
    tars.ensure_tars(tmp_path, "test", count=0)
