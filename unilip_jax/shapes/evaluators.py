"""Scores reconstruction, understanding, generation and editing on the Shapes world automatically.

Protocols:

  scenes     reconstructions of rendered scenes: exact if the verifier reads the same scene
  questions  greedy answers to questions about rendered scenes: accuracy, also per type
  t2i        images from prompts in GenEval's six categories: score, the share that fits its prompt, also
             per category; missed_<demand>, the share whose first fault is this one (captions.DEMANDS)
  edits      edited images: success, preserved (other objects unchanged) and both, also per category
  same       images rebuilt by an edit that changes nothing: exact, the share in which the verifier reads
             the same scene, and kept, the share of objects in place, both also per number of objects

With the option `paraphrased` the texts of t2i and edits are paraphrased (paraphrases.py); with `canvases`,
("wide",) or ("tall",), their images and those of scenes are of that shape (render.CANVASES). Examples
depend on (split, index) alone; means are exact over the number of examples.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
import numpy as np
from PIL import Image

from unilip_jax.data import realignment
from unilip_jax.data import text as text_lib
from unilip_jax.evals import answering, base
from unilip_jax.multihost import preemption
from unilip_jax.sampling import sampler
from unilip_jax.shapes import captions, edits, paraphrases, questions, render, scene, tars, verify
from unilip_jax.sharding import activations
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.tasks import base as tasks_base

PROTOCOLS = {  # {protocol: class that the task must be of}
    "scenes": tasks_base.ReconstructsImages,
    "questions": tasks_base.AnswersQuestions,
    "t2i": tasks_base.GeneratesImages,
    "edits": tasks_base.GeneratesImages,
    "same": tasks_base.GeneratesImages}
_COUNT = 240  # examples where eval.max_examples is 0
_ANSWER_TOKENS = 6
_SEED = 0

Score = tuple[str, str | None, float]  # metric, group or None, value


def make_evaluator(row: base.Row, context: base.Context) -> base.Evaluator:
  """Makes an evaluator of one protocol on one split.

  Args:
    row: its protocol is a key of PROTOCOLS, its source a split of "shapes", for "t2i" and "edits" with
      or without the options `paraphrased` and `canvases`; "scenes" takes `canvases` too, one for each row.
    context: its config's eval.batch_size, eval.max_examples, text.* and sample.* are used. The LLM of
      eval.llm answers the "questions" of a task that only reconstructs.

  Raises:
    ValueError: for a task that cannot do this, or another kind of data.
    FileNotFoundError: if `eval.llm` has no LLM.
  """
  config, task, mesh = context.config, context.task, context.mesh
  split, options = row.source.path, dict(row.source.options)
  if row.source.kind != "shapes" or split not in scene.SPLITS:
    raise ValueError(f"eval.sets {row.name}: {row.protocol} needs ('shapes', {' | '.join(scene.SPLITS)})")
  known = {"t2i": {"paraphrased", "canvases"}, "edits": {"paraphrased", "canvases"}, "scenes": {"canvases"}}
  if set(options) - known.get(row.protocol, set()):
    raise ValueError(f"eval.sets {row.name}: {row.source}: t2i and edits take the options paraphrased and "
                     "canvases, scenes takes canvases, the others none")
  if len(tars.check_canvases(canvases := options.pop("canvases", ("square",)))) > 1:
    raise ValueError(f"eval.sets {row.name}: {row.source}: canvases={canvases}; give one for each row")
  if row.protocol == "questions" and isinstance(task, tasks_base.ReconstructsImages):
    answers, complete = answering.find_task(row.name, context)
    evaluator = make_evaluator(row, dataclasses.replace(context, task=answers))
    return lambda params: evaluator(complete(params))
  if not isinstance(task, PROTOCOLS[row.protocol]):
    raise ValueError(f"eval.sets {row.name}: stage {config.stage} cannot be scored by {row.protocol!r}")
  count = config.eval.max_examples or _COUNT
  run = {"scenes": _scenes, "questions": _questions, "t2i": _t2i, "edits": _edits,
         "same": _same}[row.protocol](
      config, task, mesh, split, count, canvas=canvases[0], **options)

  def evaluate(params: Any) -> dict[str, float]:
    return _means(row.name, list(run(params)), count)

  return evaluate


def _means(name: str, scores: Sequence[Score], count: int) -> dict[str, float]:
  groups: dict[str, list[float]] = {}
  for metric, group, value in scores:
    groups.setdefault(f"{name}/{metric}", []).append(value)
    if group is not None:
      groups.setdefault(f"{name}/{metric}/{group}", []).append(value)
  means = {key: math.fsum(values) / len(values) for key, values in groups.items()}
  return means | {f"{name}/count": float(count)}


def _parts(items: Sequence[Any], size: int) -> Iterator[tuple[int, list[Any]]]:
  """Yields (index of the first, up to `size` items)."""
  for start in range(0, len(items), size):
    preemption.preemption_point()
    yield start, list(items[start:start + size])


def _stack(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  return {key: np.stack([r[key] for r in rows]) for key in rows[0]}


def _scenes(config, task, mesh, split, count, canvas):
  split_batch = mesh_lib.batch_sharding(mesh)
  reconstruct = jax.jit(
      activations.under(mesh, task.reconstruct), out_shardings=mesh_lib.replicated(mesh))

  def run(params):
    scenes = [captions.sample_scene(_SEED, i, split) for i in range(count)]
    height, width = render.pixels(canvas, config.image_size)
    for _, part in _parts(scenes, config.eval.batch_size):
      pixels = [np.asarray(Image.fromarray(render.render(one, canvas=canvas)).resize(
          (width, height), Image.Resampling.BICUBIC)) for one in part]
      pixels = np.stack(pixels + pixels[-1:] * (config.eval.batch_size - len(part)))
      images = np.asarray(reconstruct(params, mesh_lib.put(pixels, split_batch)))
      for one, seen in zip(part, verify.verify_all(images[:len(part)], canvas)):
        objects = f"{len(one.blocks)} object{'s' * (len(one.blocks) > 1)}"
        yield "exact", objects, float(seen == one)

  return run


def _question_row(text, config, image_tokens, image, question) -> dict[str, np.ndarray]:
  prompt = text.chat([text_lib.Turn(question.text)], 1, image_tokens, system=config.text.system)
  ids = text.encode(prompt)
  tokens = np.full(config.text.chat_length, text.pad, np.int32)
  tokens[:len(ids)] = ids
  return {"cond_image": image[None], "tokens": tokens,
          "token_mask": np.arange(len(tokens)) < len(ids)}


def _questions(config, task, mesh, split, count, canvas):
  del canvas
  text = text_lib.Text(config.text.tokenizer)
  everywhere = mesh_lib.replicated(mesh)
  answer = jax.jit(
      activations.under(mesh, lambda params, batch: task.answer(
          params, batch, max_new_tokens=_ANSWER_TOKENS, stop=text.turn_end)), out_shardings=everywhere)

  def run(params):
    for _, part in _parts(captions.questions_in_turn(count, _SEED, split), config.eval.batch_size):
      rows = [_question_row(text, config, task.image_tokens, render.render(one), q) for one, q in part]
      batch = _stack(rows + rows[-1:] * (config.eval.batch_size - len(part)))
      tokens, lengths = jax.device_get(answer(params, mesh_lib.put(
          batch, jax.tree.map(lambda _: mesh_lib.batch_sharding(mesh), batch))))
      for (_, question), ids, length in zip(part, tokens, lengths):
        reply = text.decode(ids[:length])
        yield "accuracy", question.type, float(questions.correct(question, reply))

  return run


def _t2i(config, task, mesh, split, count, canvas, paraphrased=False):
  make_images = task.make_sampler(config.eval.batch_size, mesh)
  options = sampler.Options(**config.sample)

  def run(params):
    prompts = captions.prompts_in_turn(count, _SEED, split)
    if paraphrased:
      prompts = [dataclasses.replace(c, text=paraphrases.paraphrase(c.text, paraphrases.PROMPTS, i))
                 for i, c in enumerate(prompts)]
    for first, part in _parts(prompts, config.eval.batch_size):
      images = make_images.generate(
          params, [c.text for c in part], options, seed=config.eval.seed, first=first,
          size=render.pixels(canvas, config.image_size))
      for caption, seen in zip(part, verify.verify_all(images, canvas)):
        missed = captions.missed(caption, seen)
        yield "score", caption.category, float(missed is None)
        for demand in captions.DEMANDS:
          yield f"missed_{demand}", None, float(missed == demand)

  return run


def _edits(config, task, mesh, split, count, canvas, paraphrased=False):
  make_images = task.make_sampler(config.eval.batch_size, mesh)
  options = sampler.Options(**config.sample)

  def run(params):
    examples = [tars.sample_edit(_SEED, i, split, paraphrased=paraphrased) for i in range(count)]
    for first, part in _parts(examples, config.eval.batch_size):
      images = make_images.edit(
          params, [render.render(e.source, config.image_size, canvas) for e in part],
          [e.instruction for e in part], options, seed=config.eval.seed, first=first)
      for edit, seen in zip(part, verify.verify_all(images, canvas)):
        success, preserved = edits.score(edit, seen)
        yield "success", edit.category, float(success)
        if preserved is not None:
          yield "preserved", edit.category, float(preserved)
          yield "success_and_preserved", edit.category, float(success and preserved)

  return run


def _same(config, task, mesh, split, count, canvas):
  del canvas
  make_images = task.make_sampler(config.eval.batch_size, mesh)
  options = sampler.Options(**config.sample)

  def run(params):
    scenes = [captions.sample_scene(_SEED, i, split) for i in range(count)]
    texts = [realignment.HELD_OUT[i % len(realignment.HELD_OUT)] for i in range(count)]
    for first, part in _parts(scenes, config.eval.batch_size):
      images = make_images.edit(
          params, [render.render(one, config.image_size) for one in part],
          texts[first:first + len(part)], options, seed=config.eval.seed, first=first)
      for one, image in zip(part, images):
        objects = f"{len(one.blocks)} object{'s' * (len(one.blocks) > 1)}"
        seen = verify.verify(image)
        kept = 0.0 if seen is None else len(set(one.blocks) & set(seen.blocks)) / len(one.blocks)
        yield "exact", objects, float(seen == one)
        yield "kept", objects, kept

  return run
