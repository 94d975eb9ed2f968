"""The experiment with a new colour: its images show and name it, commands parse, perfect images score 1."""

import importlib
import tarfile

import pytest

from experiments import new_colour
from unilip_jax.common import json_file
from unilip_jax.configs import flag
from unilip_jax.shapes import captions, render, scene


@pytest.fixture(autouse=True)
def _colour(monkeypatch):
  monkeypatch.setattr(scene, "COLOURS", scene.COLOURS)
  monkeypatch.setattr(render, "RGB", dict(render.RGB))
  new_colour.add_colour()


def test_the_images_are_fifty_and_their_captions_name_the_colour(tmp_path):
  new_colour.write_images(tmp_path / "x.tar")
  with tarfile.open(tmp_path / "x.tar") as tar:
    texts = [tar.extractfile(m).read().decode() for m in tar if m.name.endswith(".txt")]
    assert len(tar.getmembers()) == 2 * new_colour.IMAGES == 2 * len(texts)
  assert all(new_colour.COLOUR in text for text in texts)
  prompts = [c.text for c in new_colour.new_prompts()]
  assert len(set(prompts)) == new_colour._NEW
  assert all(new_colour.COLOUR in text for text in prompts)


class _PerfectModel:
  """Draws a scene that fits each prompt."""

  def generate(self, prompts, guidance, output):
    del guidance
    old = captions.prompts_in_turn(new_colour._OLD, 0, "test")
    known = {c.text: c for c in (*new_colour.new_prompts(), *old)}
    scenes = {}
    for index in range(4000):
      for one in (captions.sample_scene(0, index, "test"), new_colour.sample(index, "test")[0]):
        scenes.update({c.text: one for c in captions.captions_of(one) if c.text in known})
    return [render.render(scenes[text]) for text in prompts]


def test_perfect_images_score_one():
  assert new_colour.score(_PerfectModel()) == {"new": 1.0, "old": 1.0}


@pytest.mark.parametrize("method", new_colour.METHODS)
def test_commands_name_fields_that_exist(method, tmp_path):
  stage = importlib.import_module(f"unilip_jax.configs.{new_colour.METHODS[method][0]}")
  words = new_colour.command(method, tmp_path, 7)
  flag._check_fields(words, list(flag._fields(stage.get_config("tiny"))))
  assert "--config.total_steps=7" in words


def test_a_folder_of_other_settings_is_refused(tmp_path):
  json_file.write(tmp_path / new_colour.FILE, {
      "colour": [new_colour.COLOUR, *new_colour.RGB], "images": new_colour.IMAGES,
      "prior_images": new_colour.PRIOR, "single": False, "steps": 7})
  with pytest.raises(ValueError, match="was begun with steps=7, not 8"):
    new_colour.run(tmp_path, 8, methods=())
