"""Makes captions of scenes in GenEval's six categories, scenes that fit them, and benchmark prompts.

A caption names objects. A scene fits if it has exactly these objects: "three squares" needs three
squares and nothing else. Attributes that the caption does not name are free. Relations compare rows and
columns of the grid, so that of two diagonal objects one is both left of and above the other. The
background counts only if it is named.
"""

from collections.abc import Sequence
import dataclasses
import itertools
from typing import Any

import numpy as np

from unilip_jax.shapes import language, questions
from unilip_jax.shapes import scene as scene_lib

CATEGORIES = (
    "single_object", "two_objects", "counting", "colours", "position", "colour_attribution")

_ATTRIBUTES = {"shape": ("shape",), "colour": ("colour",), "size": ("size",), "place": ("row", "column")}
DEMANDS = ("clarity", "count", *_ATTRIBUTES, "relation", "background")

_PATIENCE = 500  # samples in a row without a new prompt, after which prompts repeat
_EVERYTHING = ("size", "colour", "shape", "row", "column")
_DESCRIBED = 1 / 3  # share of scenes with a full description although a category fits


@dataclasses.dataclass(frozen=True)
class Caption:
  """A sentence about a scene, and what a scene needs to fit it.

  Attributes:
    category: of CATEGORIES, or "description" for a full description.
    text: the sentence.
    spec: plain JSON, enough to score: "objects", one mapping of named attributes for each;
      "relation" of the first object to the second, or None; "background", or None.
  """

  category: str
  text: str
  spec: dict[str, Any]


def fits(caption: Caption, scene: scene_lib.Scene | None) -> bool:
  """Whether a scene fits a caption; None, the scene of an unreadable image, fits none."""
  return missed(caption, scene) is None


def missed(caption: Caption, scene: scene_lib.Scene | None) -> str | None:
  """Returns the first of DEMANDS that a scene does not meet; None if it fits.

  Each demand includes those before it: "colour" means that the shapes are right but their colours are
  not, "relation" that the objects are right but their places are not.
  """
  objects, relation, background = (
      caption.spec[k] for k in ("objects", "relation", "background"))
  if scene is None:
    return "clarity"
  if len(scene.blocks) != len(objects):
    return "count"
  orders = list(itertools.permutations(scene.blocks))
  for demand, attributes in _ATTRIBUTES.items():
    orders = [order for order in orders if all(
        getattr(b, a) == named.get(a, getattr(b, a)) for b, named in zip(order, objects)
        for a in attributes)]
    if not orders:
      return demand
  if relation and not any(relation in language.relations(*order[:2]) for order in orders):
    return "relation"
  return None if background in (None, scene.background) else "background"


def demands(caption: Caption) -> list[str]:
  """Returns those of DEMANDS that a caption makes, in their order."""
  objects, relation, background = (caption.spec[k] for k in ("objects", "relation", "background"))
  named = {demand for demand, attributes in _ATTRIBUTES.items()
           if any(a in one for one in objects for a in attributes)}
  made = {"clarity", "count", *named} | ({"relation"} if relation else set()) | (
      {"background"} if background else set())
  return [demand for demand in DEMANDS if demand in made]


def captions_of(scene: scene_lib.Scene) -> list[Caption]:
  """Returns every caption of the six categories that a scene fits, with and without its background.

  None fits scenes of three or more objects of several shapes.
  """
  blocks = scene.blocks
  if not 1 <= len(blocks) <= scene_lib.MAX_OBJECTS:
    return []
  captions = []
  for background in (None, scene.background):
    if len(blocks) == 1:
      captions.append(_caption("single_object", blocks, ("shape",), background))
      captions.append(_caption("colours", blocks, ("colour", "shape"), background))
    elif len({b.shape for b in blocks}) == 1:
      captions.append(_caption("counting", blocks, ("shape",), background))
    elif len(blocks) == 2:
      for pair in (blocks, blocks[::-1]):
        captions.append(_caption("two_objects", pair, ("shape",), background))
        captions += [_caption("position", pair, ("shape",), background, relation)
                  for relation in language.relations(*pair)]
        if pair[0].colour != pair[1].colour:
          captions.append(_caption("colour_attribution", pair, ("colour", "shape"), background))
  return captions


def caption(
    scene: scene_lib.Scene, rng: np.random.Generator, described: float = _DESCRIBED) -> Caption:
  """Samples a caption: the full description, or first a category that fits and then its caption.

  Args:
    scene: to describe.
    rng: source of randomness.
    described: probability of the description, 0 to 1; it is certain if no category fits.
  """
  fitting = captions_of(scene)
  if rng.random() < described or not fitting:
    objects = [_named(b, _EVERYTHING) for b in scene.blocks]
    spec = {"objects": objects, "relation": None, "background": scene.background}
    return Caption("description", language.describe(scene), spec)
  category = scene_lib.pick(sorted({c.category for c in fitting}), rng)
  return scene_lib.pick([c for c in fitting if c.category == category], rng)


def sample_scene(
    seed: int, index: int, split: str, sizes: Sequence[str] = scene_lib.SIZES, plain: bool = True
) -> scene_lib.Scene:
  """Samples a category first and then a scene that fits it, so that every category is frequent.

  Args:
    seed: of the data set.
    index: of the scene, from 0.
    split: of scene.SPLITS.
    sizes: of the objects, of scene.SIZES.
    plain: whether one scene in seven is sampled without a category, with 1 to 4 objects.

  Returns:
    The scene: a pure function of the arguments.

  Raises:
    ValueError: for another split or an unknown size.
  """
  scene_lib.check(split, sizes)
  rng = np.random.default_rng((seed, scene_lib.SPLITS.index(split), index, 1))
  return _sample(scene_lib.pick((*CATEGORIES, "plain") if plain else CATEGORIES, rng), split, sizes, rng)


def prompts(category: str, count: int, seed: int, split: str) -> list[Caption]:
  """Samples benchmark prompts: captions of a category, each of a scene of the split.

  Args:
    category: of CATEGORIES.
    count: number of prompts; a smaller number gives the first ones of a larger.
    seed: of the samples.
    split: of scene.SPLITS; in "unseen" a caption that names colours names an unseen combination.

  Returns:
    Different prompts until further samples bring no new ones, then the same again: a category has few
    short sentences.

  Raises:
    ValueError: for another category or split.
  """
  if category not in CATEGORIES:
    raise ValueError(f"unknown category {category!r}; choose {', '.join(CATEGORIES)}")
  scene_lib.check(split)
  rng = np.random.default_rng(
      (seed, scene_lib.SPLITS.index(split), CATEGORIES.index(category), 2))
  by_text: dict[str, Caption] = {}
  misses = 0
  while len(by_text) < count and misses < _PATIENCE:
    scene = _sample(category, split, scene_lib.SIZES, rng)
    one = scene_lib.pick([c for c in captions_of(scene) if c.category == category], rng)
    misses = misses + 1 if one.text in by_text else 0
    by_text.setdefault(one.text, one)
  return list(itertools.islice(itertools.cycle(by_text.values()), count))


def prompts_in_turn(count: int, seed: int, split: str) -> list[Caption]:
  """Returns `count` prompts that alternate between the six categories.

  Raises:
    ValueError: for an unknown split.
  """
  each = -(-count // len(CATEGORIES))
  groups = zip(*(prompts(category, each, seed, split) for category in CATEGORIES))
  return [caption for group in groups for caption in group][:count]


def questions_in_turn(
    count: int, seed: int, split: str) -> list[tuple[scene_lib.Scene, questions.Question]]:
  """Returns `count` questions, each with its scene: those of the first scene, of the second, …"""
  pairs, index = [], 0
  while len(pairs) < count:
    one = sample_scene(seed, index, split)
    rng = np.random.default_rng((seed, index, 5))
    pairs += [(one, q) for q in questions.questions(one, rng, allow_unseen=split == "unseen")]
    index += 1
  return pairs[:count]


def _caption(
    category: str, blocks: Sequence[scene_lib.Block], named: Sequence[str],
    background: str | None, relation: str | None = None
) -> Caption:
  nouns = [language.noun(b, named) for b in blocks]
  if category == "counting":
    text = f"{language.NUMBERS[len(blocks)]} {language.plural(nouns[0])}"
  else:
    text = f" {relation or 'and'} ".join(language.indefinite(n) for n in nouns)
  if background is not None:
    text += f" on a {background} background"
  objects = [_named(b, named) for b in blocks]
  return Caption(
      category, text, {"objects": objects, "relation": relation, "background": background})


def _named(block: scene_lib.Block, named: Sequence[str]) -> dict[str, str]:
  return {a: getattr(block, a) for a in named}


def _sample(
    category: str, split: str, sizes: Sequence[str], rng: np.random.Generator
) -> scene_lib.Scene:
  """Samples a scene of a split that fits a category; "plain" leaves everything free."""
  while True:
    if category in ("single_object", "colours"):
      count = 1
    elif category in ("two_objects", "position", "colour_attribution"):
      count = 2
    else:
      count = int(rng.integers(2 if category == "counting" else 1, scene_lib.MAX_OBJECTS + 1))
    if category == "counting":
      shapes = [scene_lib.pick(scene_lib.SHAPES, rng)] * count
    elif count == 2 and category != "plain":
      shapes = [scene_lib.SHAPES[i] for i in rng.permutation(len(scene_lib.SHAPES))[:2]]
    else:
      shapes = [scene_lib.pick(scene_lib.SHAPES, rng) for _ in range(count)]
    if category == "colour_attribution":
      colours = [scene_lib.COLOURS[i] for i in rng.permutation(len(scene_lib.COLOURS))[:2]]
    else:
      colours = [scene_lib.pick(scene_lib.COLOURS, rng) for _ in range(count)]
    cells = np.sort(rng.permutation(scene_lib.GRID**2)[:count])
    blocks = tuple(
        scene_lib.Block(*divmod(int(cell), scene_lib.GRID), shape, colour, scene_lib.pick(sizes, rng))
        for cell, shape, colour in zip(cells, shapes, colours))
    scene = scene_lib.Scene(blocks, scene_lib.pick(scene_lib.BACKGROUNDS, rng))
    if scene.split == split:
      return scene
