"""Understanding, generation and editing on the Blocks world, scored by program.

Protocols:

  scenes     reconstructions of rendered scenes, read by the verifier: exact where all of it comes back
  questions  greedy answers to questions about rendered scenes, right or wrong per type
  t2i        images from prompts in GenEval's six categories, read by the verifier; missed_<what> is the
             share of images in which this is the first thing amiss (captions.DEMANDS)
  edits      edited images per category: success, and what was not asked for preserved

Of "test::wishes" in place of "test" the last two are asked for as people do (blocks/wishes.py).
Every example depends on (split, index) alone; results are exact over the asked number of examples.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
import ml_collections
import numpy as np
from PIL import Image

from unilip_jax import preemption, sharding
from unilip_jax.blocks import captions, edits, questions, render, scene, verify, wishes, write
from unilip_jax.data import text as text_lib
from unilip_jax.sampling import images as image_sampling

PROTOCOLS = {"scenes": "preview", "questions": "answer", "t2i": "sample", "edits": "sample"}  # needs
_COUNT = 240  # examples where eval.max_examples is 0
_ANSWER_TOKENS = 6
_SEED = 0

Score = tuple[str, str | None, float]  # metric, group if it is told by group, value


def make_evaluator(
    config: ml_collections.ConfigDict, row: tuple[str, str, str, str], *, task: Any,
    mesh: jax.sharding.Mesh
) -> Callable[[Any], dict[str, float]]:
  """An evaluator of one protocol on one split.

  Args:
    config: uses eval.batch_size, eval.max_examples, text.* and sample.*.
    row: (name, protocol, "blocks", split or "<split>::wishes") of config.eval.sets.
    task: Reconstruct for "scenes", Understand for "questions", Generate for the others.
    mesh: the devices.

  Returns:
    fn(params) -> {"<name>/<metric>": mean, "<name>/<metric>/<group>": mean of a category or type,
    "<name>/count": examples}.

  Raises:
    ValueError: for a task that cannot do this, or another kind of data.
  """
  name, protocol, kind, path = row
  split, _, variant = path.partition("::")
  if kind != "blocks" or split not in scene.SPLITS:
    raise ValueError(f"eval.sets {name}: {protocol} wants ('blocks', {' | '.join(scene.SPLITS)})")
  options = {}
  if variant:
    if variant != "wishes" or PROTOCOLS[protocol] != "sample":
      raise ValueError(f"eval.sets {name}: {path!r}; t2i and edits take '<split>::wishes', others a split")
    options["as_wishes"] = True
  if not hasattr(task, PROTOCOLS[protocol]) or (protocol == "scenes" and hasattr(task, "sample")):
    raise ValueError(f"eval.sets {name}: stage {config.stage} cannot be scored by {protocol!r}")
  sharding.check_batch_size(config.eval.batch_size, mesh, "eval.batch_size")
  count = config.eval.max_examples or _COUNT
  run = {"scenes": _scenes, "questions": _questions, "t2i": _t2i, "edits": _edits}[protocol](
      config, task, mesh, split, count, **options)

  def evaluate(params: Any) -> dict[str, float]:
    return _means(name, list(run(params)), count)

  return evaluate


def _means(name: str, scores: Sequence[Score], count: int) -> dict[str, float]:
  groups: dict[str, list[float]] = {}
  for metric, group, value in scores:
    groups.setdefault(f"{name}/{metric}", []).append(value)
    if group is not None:
      groups.setdefault(f"{name}/{metric}/{group}", []).append(value)
  means = {key: math.fsum(values) / len(values) for key, values in groups.items()}
  return means | {f"{name}/count": float(count)}


def _batches(items: Sequence[Any], size: int) -> Iterator[tuple[int, list[Any], int]]:
  """(index of the first, items padded to `size` by repeating the last, number of real ones)."""
  for start in range(0, len(items), size):
    preemption.safe_point()
    part = list(items[start:start + size])
    yield start, part + [part[-1]] * (size - len(part)), len(part)


def _stack(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  return {key: np.stack([r[key] for r in rows]) for key in rows[0]}


def _scenes(config, task, mesh, split, count):
  preview = jax.jit(sharding.under(mesh, task.preview), out_shardings=sharding.replicated(mesh))

  def run(params):
    asked = [captions.sample_scene(_SEED, i, split) for i in range(count)]
    size = (config.image_size,) * 2
    for _, part, real in _batches(asked, config.eval.batch_size):
      pixels = np.stack([np.asarray(Image.fromarray(render.render(one)).resize(
          size, Image.Resampling.BICUBIC)) for one in part])
      made = preview(params, {"image": sharding.put(pixels, sharding.batch(mesh))})["reconstruction"]
      for one, image in zip(part[:real], np.asarray(made)):
        objects = f"{len(one.blocks)} object{'s' * (len(one.blocks) > 1)}"
        yield "exact", objects, float(verify.verify(image) == one)

  return run


def _question_row(text, config, picture, question) -> dict[str, np.ndarray]:
  asked = text.chat([text_lib.Turn(question.text)], 1, config.text.image_slots,
                    system=config.text.system)
  ids = text.encode(asked)
  tokens = np.full(config.text.chat_length, text.pad, np.int32)
  tokens[:len(ids)] = ids
  return {"cond_image": picture[None], "tokens": tokens,
          "token_mask": np.arange(len(tokens)) < len(ids)}


def _questions(config, task, mesh, split, count):
  text = text_lib.Text(config.text.tokenizer)
  whole = sharding.replicated(mesh)
  answer = jax.jit(
      sharding.under(mesh, lambda params, batch: task.answer(
          params, batch, max_new_tokens=_ANSWER_TOKENS, stop=text.turn_end)), out_shardings=whole)

  def run(params):
    asked, index = [], 0
    while len(asked) < count:
      one = captions.sample_scene(_SEED, index, split)
      rng = np.random.default_rng((_SEED, index, 5))
      asked += [(one, q) for q in questions.questions(one, rng, allow_held_out=split == "heldout")]
      index += 1
    for _, part, real in _batches(asked[:count], config.eval.batch_size):
      batch = _stack([_question_row(text, config, render.render(one), q) for one, q in part])
      tokens, lengths = jax.device_get(answer(params, sharding.put(
          batch, jax.tree.map(lambda _: sharding.batch(mesh), batch))))
      for (_, question), ids, length in zip(part[:real], tokens, lengths):
        reply = text.decode(ids[:length])
        yield "accuracy", question.type, float(questions.correct(question, reply))

  return run


def _sampler(config, task, mesh):
  """fn(params, positive, negative, index of the first) -> uint8[B, R, R, 3]."""
  options = dict(config.sample)
  shape = task.latent_shape(config.eval.batch_size)

  def sample(params, positive, negative, first, seed):
    start = image_sampling.noise(seed, first, shape)
    return task.sample(params, positive, negative, start, **options)

  compiled = jax.jit(sharding.under(mesh, sample), out_shardings=sharding.replicated(mesh))
  put = lambda batch: sharding.put(batch, jax.tree.map(lambda _: sharding.batch(mesh), batch))
  return lambda params, positive, negative, first: np.asarray(
      compiled(params, put(positive), put(negative), np.int32(first), np.uint32(config.eval.seed)))


def _t2i(config, task, mesh, split, count, as_wishes=False):
  text = text_lib.Text(config.text.tokenizer)
  sample = _sampler(config, task, mesh)
  layout = lambda prompt: text.generation(prompt, config.text.t2i_length)

  def run(params):
    asked = captions.prompts_in_turn(count, _SEED, split)
    if as_wishes:
      asked = [dataclasses.replace(c, text=wishes.wish(c.text, wishes.PROMPTS, i))
               for i, c in enumerate(asked)]
    for first, part, real in _batches(asked, config.eval.batch_size):
      made = sample(params, text_lib.stacked([layout(c.text) for c in part]),
                    text_lib.stacked([layout(None)] * len(part)), first)
      for caption, image in zip(part[:real], made):
        missed = captions.missed(caption, verify.verify(image))
        yield "score", caption.category, float(missed is None)
        for demand in captions.DEMANDS:
          yield f"missed_{demand}", None, float(missed == demand)

  return run


def _edits(config, task, mesh, split, count, as_wishes=False):
  text = text_lib.Text(config.text.tokenizer)
  sample = _sampler(config, task, mesh)
  layout = lambda prompt: text.editing(prompt, config.text.image_slots, config.text.edit_length)

  def run(params):
    asked = [write.sample_edit(_SEED, i, split, as_wish=as_wishes) for i in range(count)]
    for first, part, real in _batches(asked, config.eval.batch_size):
      before = {"cond_image": np.stack([render.render(e.source)[None] for e in part])}
      made = sample(params, before | text_lib.stacked([layout(e.instruction) for e in part]),
                    text_lib.stacked([layout(None)] * len(part)), first)
      for one, image in zip(part[:real], made):
        success, preserved = edits.score(one, verify.verify(image))
        yield "success", one.category, float(success)
        if preserved is not None:
          yield "preserved", one.category, float(preserved)
          yield "success_and_preserved", one.category, float(success and preserved)

  return run
