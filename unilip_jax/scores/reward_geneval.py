"""GenEval's detector as a reward: 1 for an image that its rules accept, else 0."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from unilip_jax.common import registry
from unilip_jax.rewards import base
from unilip_jax.scores import geneval, geneval_rules


def make(*, detector: str, options: Mapping[str, Any] | None = None) -> base.Score:
  """Makes the reward `geneval`.

  Args:
    detector: "module:function", called without arguments, that returns a geneval_rules.Detector.
    options: of `detector`.

  Returns:
    A score of text→image records whose data is GenEval's own: tag, include and exclude.
  """
  found: geneval_rules.Detector = registry.resolve(detector)(**(options or {}))

  def score(images: np.ndarray, records: Sequence[base.Record]) -> np.ndarray:
    lines = [geneval.judge_image("", Image.fromarray(image), dict(r.data) | {"prompt": r.prompt}, found,
                                 geneval_rules.Options())
             for image, r in zip(images, records)]
    return np.array([line["correct"] for line in lines], np.float32)

  return score
