"""The showcase writes every example with its mark, and the README's figure draws all of them."""

import json

import numpy as np
from PIL import Image
import pytest

from experiments import readme_figure, showcase
from unilip_jax.report import runs
from unilip_jax.shapes import captions, language, paraphrases, render, tars


class _PerfectModel:
  """Answers from the scenes of the test split instead of from images."""

  def __init__(self, each):
    self._each = each

  def reconstruct(self, image, *, output):
    assert output == "array"
    return image

  def chat(self, images, questions, *, max_new_tokens):
    del images, max_new_tokens
    return ["zebra"] * (self._each - 1) + [
        language.describe(captions.sample_scene(0, self._each - 1, "test"))]

  def generate(self, prompts, **options):
    self.prompts, self.options = prompts, options
    wanted = captions.prompts_in_turn(self._each, 0, "test")
    return [render.render(next(s for i in range(10_000) if captions.fits(
        caption, s := captions.sample_scene(0, i, "test")))) for caption in wanted]

  def edit(self, images, instructions, **options):
    self.instructions = instructions
    return [render.render(tars.sample_edit(0, i, "test").target) for i in range(len(images))]


@pytest.fixture
def model(monkeypatch):
  perfect = _PerfectModel(4)
  monkeypatch.setattr(showcase.UniLIP, "load", lambda path, dtype, batch_size: perfect)
  return perfect


def test_every_example_is_written_with_its_mark_and_shown_by_the_report(tmp_path, model):
  path = showcase.write("shapes:gen3", tmp_path, 4, 2.0, 5, paraphrased=True)
  content = json.loads(path.read_text())
  marks = {a: [e["right"] for e in content["entries"] if e["ability"] == a] for a in showcase.ABILITIES}
  assert marks == {"reconstruct": [True] * 4, "chat": [False] * 3 + [True], "generate": [True] * 4,
                   "edit": [True] * 4}
  assert model.options == {"guidance": 2.0, "steps": 5, "seed": 0, "output": "array"}
  assert (content["guidance"], content["checkpoint"]) == (2.0, "shapes:gen3")
  plain = [c.text for c in captions.prompts_in_turn(4, 0, "test")]
  assert model.prompts[::2] == plain[::2]
  assert model.prompts[1] == paraphrases.paraphrase(plain[1], paraphrases.PROMPTS, 0)
  image = np.asarray(Image.open(path.parent / content["entries"][0]["images"][0]["file"]))
  np.testing.assert_array_equal(image, render.render(captions.sample_scene(0, 0, "test")))
  (tmp_path / "results.json").write_text('{"metrics": {}}')
  entries = runs.read(str(tmp_path), "x", "red").showcase
  assert {ability: len(of) for ability, of in entries.items()} == dict.fromkeys(showcase.ABILITIES, 4)


def test_images_of_other_weights_are_shown_with_their_marks(tmp_path, model):
  path = showcase.write("runs/rl", tmp_path, 4, 1.0, 4, compare="shapes:gen3")
  assert model.options == {"guidance": 2.0, "steps": 20, "seed": 0, "output": "array"}
  for entry in json.loads(path.read_text())["entries"]:
    labels = [image["label"] for image in entry["images"]]
    assert (labels[-1] == "shapes_gen3") == (entry["ability"] in ("generate", "edit"))
    if labels[-1] == "shapes_gen3":
      assert entry["said"] == "last image: shapes:gen3, correct"
      assert all((path.parent / image["file"]).exists() for image in entry["images"])


def test_the_figure_of_the_readme_draws_every_example(tmp_path, model):
  entries = list(showcase.examples(model, 4, {"seed": 0}))
  page = readme_figure.figure(entries, "the title")
  titles = [axes.get_title() for axes in page.axes if axes.get_images()]
  assert len(titles) == len(entries) == 16
  assert sum("✗" in title for title in titles) == 3
  with (tmp_path / "figure.png").open("wb") as f:
    readme_figure.save(page, f)
  assert Image.open(tmp_path / "figure.png").size == (1000, 1060)
