"""The benchmarks of Shapes score what the verifier reads; what is missing or malformed is counted."""

import io
import re

import numpy as np
from PIL import Image
import pytest

from unilip_jax.scores import base, showing, tables
from unilip_jax.shapes import benchmarks, captions, questions, render, scoring, tars

_SCENES = [captions.sample_scene(0, i, "test") for i in range(60)]


def _write(folder, benchmark, items, pixels):
  for item, image in zip(items, pixels):
    path = folder / benchmark.output_path(item, 0)
    path.parent.mkdir(parents=True)
    Image.fromarray(image).save(path)


def test_names_and_kinds():
  found = [base.find(name) for name in scoring._BENCHMARKS]
  assert [b.name for b in found] == list(scoring._BENCHMARKS)
  assert [b.kind for b in found] == ["generation", "editing", "understanding", "reconstruction"]
  assert [b.scores_images for b in found] == [True, True, False, True]


@pytest.mark.parametrize("source", ["train:0", "tests", "test:x", "test:-1", ""])
def test_other_items_are_refused_with_examples(source):
  with pytest.raises(ValueError, match="for example test:96"):
    benchmarks.Prompts().read_items(source)


def test_images_are_scored_by_what_they_show(tmp_path):
  benchmark = benchmarks.Prompts()
  items = benchmark.read_items("test:12")
  wanted = [captions.Caption(i.category, i.prompt, i.record["spec"]) for i in items]
  scenes = [next((s for s in _SCENES if captions.fits(c, s)), _SCENES[0]) for c in wanted]
  fits = [captions.fits(c, s) for c, s in zip(wanted, scenes)]
  assert 0 < sum(fits) < 12
  _write(tmp_path, benchmark, items, map(render.render, scenes))
  score = benchmark.aggregate(str(tmp_path), items="test:12")
  assert [v.value for v in score.values] == fits
  assert (score.score, score.n, score.missing, score.malformed) == (np.mean(fits), 12, 0, 0)
  page = tmp_path / "p.html"
  showing.main(["--benchmark=shapes", "--items=test:12", f"--images={tmp_path}", f"--out={page}"])
  assert re.findall('data-status="(right|wrong)"', page.read_text()) == [
      "right" if fit else "wrong" for fit in fits]
  right = [i for i, fit in enumerate(fits) if fit]
  (tmp_path / benchmark.output_path(items[right[0]], 0)).unlink()
  (tmp_path / benchmark.output_path(items[right[1]], 0)).write_bytes(b"half an image")
  score = benchmark.aggregate(str(tmp_path), items="test:12")
  assert (score.n, score.missing, score.malformed) == (10, 1, 1)
  assert items[right[0]].id in score.messages[1]
  strict = benchmark.aggregate(str(tmp_path), items="test:12", rules="strict")
  assert (strict.score, strict.n) == ((sum(fits) - 2) / 12, 12)


def test_an_edit_counts_if_the_rest_is_unchanged(tmp_path):
  benchmark = benchmarks.Edits()
  items = benchmark.read_items("test:14")
  changes = [tars.sample_edit(0, i, "test") for i in range(14)]
  source = np.asarray(Image.open(io.BytesIO(items[3].images[0])))
  np.testing.assert_array_equal(source, render.render(changes[3].source))
  _write(tmp_path / "right", benchmark, items, [render.render(e.target) for e in changes])
  score = benchmark.aggregate(str(tmp_path / "right"), items="test:14")
  assert score.score == score.variants["success"] == 1.0
  assert set(score.categories) == {e.category for e in changes}
  _write(tmp_path / "unchanged", benchmark, items, [render.render(e.source) for e in changes])
  score = benchmark.aggregate(str(tmp_path / "unchanged"), items="test:14")
  assert (score.score, score.variants["other objects unchanged"]) == (0.0, 1.0)


def test_answers_are_scored_by_the_rules_of_their_type(tmp_path):
  benchmark = benchmarks.Questions()
  items = benchmark.read_items("unseen:9")
  answers = {item.id: f"It is {item.record['answer']}." for item in items[:6]} | {items[6].id: ""}
  benchmark.write_answers(str(tmp_path / "a.tsv"), items, answers)
  assert len(tables.read(tmp_path / "a.tsv", "answers")) == 7
  score = benchmark.aggregate(str(tmp_path / "a.tsv"), items="unseen:9")
  assert (score.score, score.n, score.missing) == (6 / 7, 7, 2)
  strict = benchmark.aggregate(str(tmp_path / "a.tsv"), items="unseen:9", rules="strict")
  assert (strict.score, strict.n) == (6 / 9, 9)
  assert set(score.categories) <= set(questions.TYPES)
