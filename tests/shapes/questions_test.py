"""Answers are true, questions cannot be answered from their words, and replies are marked by a rule."""

import collections
import re

import numpy as np
import pytest

from unilip_jax.shapes import captions, language, questions, scene

_COUNT = 400
_SINGULAR = {f"{s}es" if s == "cross" else f"{s}s": s for s in scene.SHAPES}
_UNSEEN_TEXTS = [f"{colour} {shape}" for shape, colour in scene.UNSEEN]


def _ask(split, **kwargs):
  rng = np.random.default_rng(0)
  scenes = [captions.sample_scene(0, i, split) for i in range(_COUNT)]
  return [(one, q) for one in scenes for q in questions.questions(one, rng, **kwargs)]


@pytest.fixture(scope="module")
def pairs():
  return [pair for split in scene.SPLITS for pair in _ask(split, allow_unseen=True)]


def _matching(one, phrase):
  """The objects that a phrase such as "large red circle at the top left" or "blue objects" fits."""
  words, _, place = phrase.partition(" at the ")
  words = {_SINGULAR.get(w, w) for w in words.split()} - {"object", "objects"}
  return [b for b in one.blocks
          if words <= {b.size, b.colour, b.shape}
          and (not place or language.PLACES[b.row][b.column] == place)]


def _only(one, phrase):
  (block,) = _matching(one, phrase)  # a reference fits one object
  return block


def _truth(one, text):
  """The answer, read off the scene from the words of the question."""
  yes = lambda true: "yes" if true else "no"
  if match := re.fullmatch(r"Is there an? (.+)\?", text):
    return yes(_matching(one, match[1]))
  if match := re.fullmatch(r"How many (.+) are there\?", text):
    return str(len(_matching(one, match[1])))
  if match := re.fullmatch(r"What colour is the (.+)\?", text):
    return _only(one, match[1]).colour
  if match := re.fullmatch(r"What shape is the (.+)\?", text):
    return _only(one, match[1]).shape
  if match := re.fullmatch(r"Where is the (.+)\?", text):
    block = _only(one, match[1])
    return language.PLACES[block.row][block.column]
  if match := re.fullmatch(r"Are there more (.+) than (.+)\?", text):
    a, b = (len(_matching(one, m)) for m in match.groups())
    assert a != b
    return yes(a > b)
  if match := re.fullmatch(r"Is the (.+) larger than the (.+)\?", text):
    a, b = (_only(one, m) for m in match.groups())
    assert a.size != b.size
    return yes(a.size == "large")
  first, relation, second = re.fullmatch(
      r"Is the (.+) (left of|right of|above|below) the (.+)\?", text).groups()
  a, b = _only(one, first), _only(one, second)
  across = relation in ("left of", "right of")
  difference = a.column - b.column if across else a.row - b.row
  assert difference
  return yes((difference < 0) == (relation in ("left of", "above")))


def test_answers_are_those_of_the_scene(pairs):
  for one, question in pairs:
    assert question.answer == _truth(one, question.text), (one, question)


def test_there_is_one_question_of_each_type(pairs):
  counts = collections.Counter(q.type for _, q in pairs)
  scenes = _COUNT * len(scene.SPLITS)
  assert tuple(counts) == questions.TYPES
  assert all(counts[t] == scenes for t in questions.TYPES if t != "position")
  assert counts["position"] > 0.95 * scenes


def _shares(pairs, kind, pattern=".*"):
  answers = [q.answer for _, q in pairs if q.type == kind and re.search(pattern, q.text)]
  assert len(answers) > 60
  return {a: n / len(answers) for a, n in collections.Counter(answers).items()}


@pytest.mark.parametrize(("kind", "pattern"), [
    ("existence", ".*"), ("existence", f"({'|'.join(scene.COLOURS)}) ({'|'.join(scene.SHAPES)})"),
    ("existence", "object"), ("existence", f"an? ({'|'.join(scene.SHAPES)})"),
    ("comparison", ".*"), ("comparison", "more"), ("comparison", "larger"),
    ("comparison", "left|right"), ("comparison", "above|below")])
def test_yes_and_no_are_even_for_every_form(pairs, kind, pattern):
  assert 0.4 < _shares(pairs, kind, pattern)["yes"] < 0.6


def test_the_words_of_a_comparison_do_not_give_it_away(pairs):
  texts = [q.text for _, q in pairs if q.type == "comparison"]
  assert not any(" at the " in t for t in texts)
  assert not any(re.search("(small|large) ", t) for t in texts if " larger than " in t)
  assert not any(" at the " in q.text for _, q in pairs if q.type == "position")


def test_no_count_is_always_right(pairs):
  shares = _shares(pairs, "count")
  assert set(shares) == {"0", "1", "2", "3", "4"}
  assert max(shares.values()) < 0.5
  assert max(_shares(pairs, "count", "circles").values()) < 0.7


@pytest.mark.parametrize(("kind", "count"), [("colour", 6), ("shape", 4), ("position", 9)])
def test_every_answer_occurs(pairs, kind, count):
  shares = _shares(pairs, kind)
  assert len(shares) == count
  assert max(shares.values()) < 2.5 / count


@pytest.mark.parametrize("split", scene.SPLITS)
def test_unseen_combinations_are_never_mentioned(split):
  pairs = _ask(split)
  assert len(pairs) > 4 * _COUNT
  for one, question in pairs:
    assert not any(t in question.text for t in _UNSEEN_TEXTS)
    assert question.answer == _truth(one, question.text)
    if question.type in ("colour", "shape"):
      block = _only(one, re.search(r"is the (.+)\?", question.text)[1])
      assert (block.shape, block.colour) not in scene.UNSEEN


def test_unseen_combinations_are_asked_about_where_allowed():
  pairs = _ask("unseen", allow_unseen=True)
  mentions = [q for _, q in pairs if any(t in q.text for t in _UNSEEN_TEXTS)]
  assert {"existence", "position", "comparison"} <= {q.type for q in mentions}


def test_objects_that_look_the_same_are_not_asked_where_they_are():
  alike = tuple(scene.Block(0, c, "circle", "red", "small") for c in range(3))
  rng = np.random.default_rng(0)
  kinds = {q.type for _ in range(20) for q in questions.questions(scene.Scene(alike, "grey"), rng)}
  assert kinds == set(questions.TYPES) - {"position"}


def test_an_empty_scene_allows_questions_that_are_answered_with_none():
  empty = scene.Scene((), "white")
  rng = np.random.default_rng(0)
  for question in (q for _ in range(20) for q in questions.questions(empty, rng)):
    assert question.answer in ("no", "0")


@pytest.mark.parametrize(("kind", "answer", "right", "wrong"), [
    ("existence", "yes", ["yes", "Yes.", "YES, there is a red circle", "I think yes"],
     ["no", "No, yes", "", "yesterday", "maybe"]),
    ("comparison", "no", ["No!", "no, it is not"], ["yes", "yes, no", "none"]),
    ("count", "3", ["3", "three", "There are three circles.", "3, not 4"],
     ["4", "four, three", "13", "33", "many"]),
    ("count", "0", ["0", "zero"], ["10", "3"]),
    ("colour", "red", ["Red", "It is red, not blue.", "red red"], ["blue", "blue or red", "reddish"]),
    ("shape", "cross", ["cross", "a cross", "Crosses"], ["circle", "a circle or a cross", "across"]),
    ("position", "top left", ["top left", "Top-left.", "at the top left of the picture"],
     ["top right", "left", "top", "bottom left, top left"]),
    ("position", "centre", ["centre", "the center", "In the centre."],
     ["top centre", "bottom center", "middle left"]),
    ("position", "top centre", ["top centre", "top-center"], ["centre", "bottom centre"])])
def test_the_first_answer_in_a_reply_counts(kind, answer, right, wrong):
  question = questions.Question(kind, "?", answer)
  for reply in right:
    assert questions.correct(question, reply), reply
  for reply in wrong:
    assert not questions.correct(question, reply), reply


def test_every_true_answer_is_marked_right(pairs):
  for _, question in pairs:
    assert questions.correct(question, question.answer)
