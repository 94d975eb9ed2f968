"""Samples questions about scenes with short answers, and marks replies.

No question can be answered without the image: "yes" and "no" are sampled first and with equal
probability, and so are counts among those of the scene. References fit one object only. Unless allowed,
no question names an unseen combination, even if the answer is "no".
"""

from collections.abc import Sequence
import dataclasses
import itertools
import re

import numpy as np

from unilip_jax.shapes import language
from unilip_jax.shapes import scene as scene_lib

TYPES = ("existence", "count", "colour", "shape", "position", "comparison")


@dataclasses.dataclass(frozen=True)
class Question:
  """One question.

  Attributes:
    type: of TYPES.
    text: the sentence.
    answer: "yes" or "no", "0" to "4", a colour, a shape, or a place such as "top left".
  """

  type: str
  text: str
  answer: str


def questions(
    scene: scene_lib.Scene, rng: np.random.Generator, allow_unseen: bool = False
) -> list[Question]:
  """Samples questions about a scene: one of each type that it has any of, in the order of TYPES.

  Args:
    scene: subject of the questions.
    rng: source of randomness.
    allow_unseen: whether questions and answers may be about unseen combinations.
  """
  refused = () if allow_unseen else scene_lib.UNSEEN
  blocks = [b for b in scene.blocks if (b.shape, b.colour) not in refused]
  return [q for q in (
      _existence(scene, refused, rng), _count(scene, rng),
      _attribute("colour", "shape", scene, blocks, rng),
      _attribute("shape", "colour", scene, blocks, rng), _position(scene, blocks, rng),
      _comparison(scene, blocks, rng)
  ) if q is not None]


def correct(question: Question, reply: str) -> bool:
  """Whether the first answer of the question's type that occurs in a reply is the right one.

  Case, punctuation and other words do not matter. Answers to existence and comparison are "yes" and "no";
  to a count any number, in digits or as a word up to four; a shape may be in the plural; a place is two
  words, or "centre" alone, and may be spelt "center" or with a hyphen.
  """
  words = re.findall(r"[a-z]+|\d+", reply.lower().replace("center", "centre"))
  known = _ANSWERS[question.type]
  for start in range(len(words)):
    for length in (2, 1):
      phrase = " ".join(words[start:start + length])
      if question.type == "count" and phrase.isdigit():
        return int(phrase) == int(question.answer)
      if phrase in known:
        return known[phrase] == question.answer
  return False


_ANSWERS = {
    "existence": {"yes": "yes", "no": "no"},
    "count": {word: str(n) for n, word in enumerate(language.NUMBERS)},
    "colour": {c: c for c in scene_lib.COLOURS},
    "shape": {form: s for s in scene_lib.SHAPES for form in (s, language.plural(s))},
    "position": {p: p for row in language.PLACES for p in row},
    "comparison": {"yes": "yes", "no": "no"},
}


def _existence(
    scene: scene_lib.Scene, refused: Sequence[tuple[str, str]], rng: np.random.Generator
) -> Question | None:
  pairs = [p for p in itertools.product(scene_lib.SHAPES, scene_lib.COLOURS) if p not in refused]
  blocks = scene.blocks
  forms = [
      [(f"{c} {s}", any((b.shape, b.colour) == (s, c) for b in blocks)) for s, c in pairs],
      [(s, any(b.shape == s for b in blocks)) for s in scene_lib.SHAPES],
      [(f"{c} object", any(b.colour == c for b in blocks)) for c in scene_lib.COLOURS]]
  answer = bool(rng.integers(2))
  options = [[noun for noun, there in form if there == answer] for form in forms]
  options = [o for o in options if o]
  if not options:
    return None
  noun = scene_lib.pick(scene_lib.pick(options, rng), rng)
  return Question("existence", f"Is there {language.indefinite(noun)}?", _yes(answer))


def _count(scene: scene_lib.Scene, rng: np.random.Generator) -> Question:
  counts = {"objects": len(scene.blocks), **_counts(scene)}
  number = scene_lib.pick(sorted(set(counts.values())), rng)
  nouns = scene_lib.pick([n for n, count in counts.items() if count == number], rng)
  return Question("count", f"How many {nouns} are there?", str(number))


def _attribute(
    wanted: str, known: str, scene: scene_lib.Scene, blocks: Sequence[scene_lib.Block],
    rng: np.random.Generator
) -> Question | None:
  """Asks for the colour of an object of some shape, or for the shape of an object of some colour."""
  if not blocks:
    return None
  block = scene_lib.pick(blocks, rng)
  name = language.refer(block, scene.blocks, (known,))
  return Question(wanted, f"What {wanted} is {name}?", getattr(block, wanted))


def _position(
    scene: scene_lib.Scene, blocks: Sequence[scene_lib.Block], rng: np.random.Generator
) -> Question | None:
  names = [(language.refer(b, scene.blocks, more=("size",)), b) for b in blocks]
  names = [(name, b) for name, b in names if name is not None]
  if not names:
    return None
  name, block = scene_lib.pick(names, rng)
  return Question("position", f"Where is {name}?", language.place(block.row, block.column))


def _comparison(
    scene: scene_lib.Scene, blocks: Sequence[scene_lib.Block], rng: np.random.Generator
) -> Question | None:
  """Asks whether a comparison holds: a true one, or the same with both sides exchanged."""
  counts = _counts(scene)
  shapes = [language.plural(s) for s in scene_lib.SHAPES]
  colours = [n for n in counts if n not in shapes]
  more = [("Are there more {} than {}?", a, b)
          for names in (shapes, colours) for a, b in itertools.permutations(names, 2)
          if counts[a] > counts[b]]
  relations, larger = [], []
  for a, b in itertools.permutations(blocks, 2):
    names = [language.refer(x, scene.blocks, more=("size",)) for x in (a, b)]
    if None not in names:
      relations += [(f"Is {{}} {relation} {{}}?", *names) for relation in language.relations(a, b)]
    names = [language.refer(x, scene.blocks, more=()) for x in (a, b)]
    if None not in names and (a.size, b.size) == ("large", "small"):
      larger.append(("Is {} larger than {}?", *names))
  kinds = [kind for kind in (more, relations, larger) if kind]
  if not kinds:
    return None
  template, first, second = scene_lib.pick(scene_lib.pick(kinds, rng), rng)
  answer = bool(rng.integers(2))
  pair = (first, second) if answer else (second, first)
  return Question("comparison", template.format(*pair), _yes(answer))


def _counts(scene: scene_lib.Scene) -> dict[str, int]:
  """Counts objects of each shape ("circles") and of each colour ("red objects")."""
  return {
      **{language.plural(s): sum(b.shape == s for b in scene.blocks) for s in scene_lib.SHAPES},
      **{f"{c} objects": sum(b.colour == c for b in scene.blocks) for c in scene_lib.COLOURS}}


def _yes(answer: bool) -> str:
  return "yes" if answer else "no"
