"""The verifier as a reward: exact scores of generated and edited images, without a learned model.

  text→image  ½ if all that the prompt asks for is there, and ½ of the share of its demands that are met
  edit        ½ if it is made and all else unchanged, ¼ if it is made, ¼ of the share that is unchanged

An unclear image has 0. The partial scores order images of prompts that no sample fits yet.
"""

from collections.abc import Callable, Sequence

import numpy as np

from unilip_jax.rewards import base
from unilip_jax.shapes import captions, edits, prompts, scene, verify


def make() -> base.Score:
  """Makes the reward `shapes`; it takes no option."""
  return score


def score(images: np.ndarray, records: Sequence[base.Record]) -> np.ndarray:
  """Scores uint8[B, R, R, 3] images of Shapes' prompts and instructions: float32[B] in 0 … 1."""
  rules: dict[str, Callable[[dict, scene.Scene], float]] = {"t2i": _prompt_score, "edit": _edit_score}
  seen = verify.verify_all(images)
  return np.array([0.0 if one is None else rules[record.kind](record.data, one)
                   for record, one in zip(records, seen)], np.float32)


def _prompt_score(data: dict, seen: scene.Scene) -> float:
  caption = prompts.caption_of(data)
  missed = captions.missed(caption, seen)
  if missed is None:
    return 1.0
  asked = captions.demands(caption)
  return 0.5 * asked.index(missed) / len(asked)


def _edit_score(data: dict, seen: scene.Scene) -> float:
  edit = prompts.edit_of(data)
  success, preserved = edits.score(edit, seen)
  complete = success and preserved is not False
  return 0.5 * complete + 0.25 * success + 0.25 * edits.preserved_share(edit, seen)
