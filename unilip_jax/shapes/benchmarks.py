"""Shapes as benchmarks of `evals`: prompts, edits, questions and reconstructions, scored without a judge.

Items are those of a split: --items=test, or test:96 for the first 96. They are the examples of the
evaluators t2i, edits and questions. `aggregate` takes the folder of images, or the table of answers.
"""

import abc
from collections.abc import Mapping, Sequence
import io

import numpy as np
from PIL import Image

from unilip_jax.common import png
from unilip_jax.scores import base, image_files, records, tables
from unilip_jax.shapes import captions, edits, questions, render, scene, tars, verify

REVISION = "Shapes of unilip_jax, seed 0"
_COUNT = 240  # items of a split without a number
_SEED = 0
_COLUMNS = ("index", "category", "question", "answer", "prediction")


class _Shapes(base.Benchmark):
  """Items of a split; the score is the mean over items, which categories have in equal numbers."""

  revision = REVISION
  license = "Apache-2.0"

  def read_items(self, source: str) -> list[base.Item]:
    """Makes the items of "<split>" or "<split>:<count>"."""
    split, _, count = source.partition(":")
    if split not in scene.SPLITS or not (count or "1").isdecimal() or int(count or 1) < 1:
      raise ValueError(f"{self.name}: items are {' | '.join(scene.SPLITS)}, or for example test:96; found "
                       f"{source!r}")
    return self._items(split, int(count or _COUNT))

  @abc.abstractmethod
  def _items(self, split: str, count: int) -> list[base.Item]:
    """Makes `count` items."""

  def _score(
      self, values: Sequence[base.Value], account: records.Account, rules: str, variant: str,
      others: Mapping[str, float | None] = {}, details: Mapping[str, float] = {}) -> base.Score:
    groups: dict[str, list[float]] = {}
    for value in values:
      groups.setdefault(value.category, []).append(value.value)
    score = base.mean(v.value for v in values)
    return base.Score(
        score, {c: base.mean(v) for c, v in groups.items()}, len(values), account.missing,
        account.malformed, rules, variants={variant: score, **others}, published_variant=variant,
        messages=tuple(account.messages), values=tuple(values), details=details)


class _Images(_Shapes):
  """A benchmark of images."""

  scores_images = True

  def output_path(self, item: base.Item, k: int) -> str:
    return f"{item.id}/{k:05d}.png"

  def _read(
      self, source: str, items: Sequence[base.Item], rules: str
  ) -> tuple[list[tuple[base.Item, scene.Scene | None]], records.Account]:
    """Returns ((item, scene of its image) of each image that counts, account).

    Strict rules add an unreadable scene for what is missing or malformed.
    """
    read, account = self._read_pixels(source, items, rules)
    return [(item, None if pixels is None else verify.verify(pixels)) for item, pixels in read], account

  def _read_pixels(
      self, source: str, items: Sequence[base.Item], rules: str
  ) -> tuple[list[tuple[base.Item, np.ndarray | None]], records.Account]:
    """Returns the same with uint8[H, W, 3] of each image, or None."""
    base.check_rules(rules)
    account = records.Account()
    folder = image_files.check(self, items, source)
    for path, why in folder.unreadable.items():
      account.skip(path, why)
    missing = {item_id for item_id, _ in folder.missing}
    account.absent("images", [self.output_path(i, 0) for i in items if i.id in missing])
    read = []
    for item in items:
      if (item.id, 0) in folder.files:
        with Image.open(io.BytesIO(folder.read((item.id, 0)))) as image:
          read.append((item, np.asarray(image.convert("RGB"))))
      elif rules == "strict":
        read.append((item, None))
    return read, account


class Prompts(_Images):
  """Images of prompts in GenEval's six categories."""

  name, kind = "shapes", "generation"

  def _items(self, split, count):
    return [base.Item(f"{i:05d}", c.text, c.category, record={"index": i, "spec": c.spec})
            for i, c in enumerate(captions.prompts_in_turn(count, _SEED, split))]

  def aggregate(self, source: str, *, rules: str = "official", items: str | None = None) -> base.Score:
    """Scores a folder of images: the share that fits its prompt."""
    read, account = self._read(source, self.read_items(items or "test"), rules)
    return self._score([
        base.Value(item.id, item.category, float(captions.fits(
            captions.Caption(item.category, item.prompt, item.record["spec"]), seen)))
        for item, seen in read], account, rules, "images that fit their prompt")


class Edits(_Images):
  """Edited images."""

  name, kind = "shapes-edits", "editing"

  def _items(self, split, count):
    found = [tars.sample_edit(_SEED, i, split) for i in range(count)]
    return [base.Item(f"{i:05d}", e.instruction, e.category, images=(_png(e.source),),
                      record={"index": i, "source": e.source.to_json(), "target": e.target.to_json()})
            for i, e in enumerate(found)]

  def aggregate(self, source: str, *, rules: str = "official", items: str | None = None) -> base.Score:
    """Scores a folder of images: the share of edits that succeed and leave other objects unchanged."""
    split = (items or "test").partition(":")[0]
    read, account = self._read(source, self.read_items(items or "test"), rules)
    scores = [edits.score(tars.sample_edit(_SEED, item.record["index"], split), seen)
              for item, seen in read]
    values = [base.Value(item.id, item.category, float(success and preserved is not False))
              for (item, _), (success, preserved) in zip(read, scores)]
    return self._score(
        values, account, rules, "success, other objects unchanged",
        {"success": base.mean(float(s) for s, _ in scores),
         "other objects unchanged": base.mean(float(p) for _, p in scores if p is not None)})


class Reconstructions(_Images):
  """Reconstructed images of scenes, each at <item>.png."""

  name, kind = "shapes-reconstruction", "reconstruction"

  def output_path(self, item: base.Item, k: int) -> str:
    return f"{item.id}.png"

  def _items(self, split, count):
    scenes = [captions.sample_scene(_SEED, i, split) for i in range(count)]
    return [base.Item(f"{i:05d}", "", f"{n} object{'s' * (n > 1)}", images=(_png(one),),
                      record={"index": i, "scene": one.to_json()})
            for i, one in enumerate(scenes) for n in (len(one.blocks),)]

  def aggregate(self, source: str, *, rules: str = "official", items: str | None = None) -> base.Score:
    """Scores a folder of images: the share of scenes that are read back; PSNR and SSIM in the details."""
    import jax

    from unilip_jax.evals import image_metrics

    similarity = jax.jit(lambda a, b: (image_metrics.psnr(a, b)[0], image_metrics.ssim(a, b)[0]))
    split = (items or "test").partition(":")[0]
    read, account = self._read_pixels(source, self.read_items(items or "test"), rules)
    values, pairs = [], []
    for item, pixels in read:
      original = captions.sample_scene(_SEED, item.record["index"], split)
      expected = render.render(original)
      if pixels is not None and pixels.shape != expected.shape:
        account.skip(self.output_path(item, 0), "{1}×{0} pixels, its original has {3}×{2}".format(
            *pixels.shape[:2], *expected.shape[:2]))
        if rules != "strict":
          continue
        pixels = None
      values.append(base.Value(item.id, item.category, float(
          pixels is not None and verify.verify(pixels) == original)))
      if pixels is not None:
        pairs.append(similarity(*(x[None].astype(np.float32) / 255 for x in (pixels, expected))))
    psnr, ssim = (base.mean(float(value) for value in values_of) for values_of in (
        zip(*pairs) if pairs else ((), ())))
    return self._score(values, account, rules, "scenes that are read back",
                       details={"psnr": psnr, "ssim": ssim})


class Questions(_Shapes):
  """Short answers about scenes."""

  name, kind = "shapes-questions", "understanding"

  def _items(self, split, count):
    pairs = captions.questions_in_turn(count, _SEED, split)
    return [base.Item(f"{i:05d}", q.text, q.type, images=(_png(one),),
                      record={"index": i, "answer": q.answer}) for i, (one, q) in enumerate(pairs)]

  def write_answers(self, path: str, items: Sequence[base.Item], answers: Mapping[str, str]) -> None:
    """Writes a table of index, category, question, answer and prediction."""
    tables.write_tsv(path, [
        dict(zip(_COLUMNS, (i.id, i.category, i.prompt, i.record["answer"], answers[i.id])))
        for i in items if i.id in answers])

  def aggregate(self, source: str, *, rules: str = "official", items: str | None = None) -> base.Score:
    """Scores a table of answers: the share that is right."""
    base.check_rules(rules)
    account = records.Account()
    rows = tables.read(source, "answers")
    tables.require_columns(rows, _COLUMNS, source)
    answers = {row["index"]: row["prediction"] or "" for row in rows}
    account.doubled("index", [row["index"] for row in rows], "the last row counts")
    values = []
    asked = self.read_items(items or "test")
    if unknown := [name for name in answers if name not in {item.id for item in asked}]:
      account.note(f"{len(unknown)} answers to other questions count nothing: "
                   f"{records.enumerate_names(unknown)}")
    absent = [item for item in asked if item.id not in answers]
    account.absent("answers", [item.id for item in absent])
    for item in asked:
      question = questions.Question(item.category, item.prompt, item.record["answer"])
      if item.id in answers or rules == "strict":
        right = item.id in answers and questions.correct(question, answers[item.id])
        values.append(base.Value(item.id, item.category, float(right)))
    return self._score(values, account, rules, "answers that are right")


def _png(one: scene.Scene) -> bytes:
  return png.encode(render.render(one))
