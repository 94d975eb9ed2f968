"""Opens the prompts and instructions of a split as a data source without images to learn from.

A record is a pure function of its index; nothing is rendered to disk. Its JSON holds what the verifier
needs to score an image (reward.py).
"""

from collections.abc import Sequence
import json

from unilip_jax.data import sources
from unilip_jax.shapes import captions, edits, paraphrases, scene, tars

_SEED = 0


class PromptSource(sources.Source):
  """Prompts in GenEval's six categories, or instructions in the seven kinds of edits."""

  def __init__(self, split: str, count: int, *, with_edits: bool, paraphrased: bool, sizes: Sequence[str]):
    """Checks the split.

    Args:
      split: of scene.SPLITS.
      count: number of records.
      with_edits: whether records are edits.
      paraphrased: whether texts are paraphrased.
      sizes: of the objects, of scene.SIZES.

    Raises:
      ValueError: for another split or an unknown size.
    """
    scene.check(split, sizes)
    self._split, self._count, self._with_edits = split, count, with_edits
    self._paraphrased, self._sizes = paraphrased, tuple(sizes)

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> sources.Record:
    parts = self._edit(index) if self._with_edits else self._prompt(index)
    return sources.Record(parts, key=f"{self._split}{index:07d}", shard=f"shapes {self._split}")

  def _prompt(self, index: int) -> dict[str, bytes]:
    caption = tars.sample_caption(_SEED, index, self._split, self._sizes)
    text = caption.text
    if self._paraphrased:
      text = paraphrases.paraphrase(text, paraphrases.PROMPTS, index)
    data = {"category": caption.category, "spec": caption.spec}
    return {"text": text.encode(), "record": json.dumps(data).encode()}

  def _edit(self, index: int) -> dict[str, bytes]:
    one = tars.sample_edit(_SEED, index, self._split, self._sizes, self._paraphrased)
    return {"cond_image": tars.jpeg(one.source), "text": one.instruction.encode(),
            "record": json.dumps(one.to_json()).encode()}


def caption_of(data: dict) -> captions.Caption:
  """Reads the caption of a record's JSON; its text is not stored."""
  return captions.Caption(data["category"], "", data["spec"])


def edit_of(data: dict) -> edits.Edit:
  """Reads the edit of a record's JSON; its instruction is not stored."""
  return edits.Edit(data["category"], "", scene.Scene.from_json(data["source"]),
                    scene.Scene.from_json(data["target"]))
