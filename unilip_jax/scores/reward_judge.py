"""A judge behind an OpenAI-compatible endpoint as a reward: the number in its answer, scaled to 0 … 1.

Answers are kept in a file of JSON lines if one is named: the same image and prompt is never asked again,
not even after an interruption. The key comes from the environment (chat_api.py).
"""

import collections
from collections.abc import Sequence
from concurrent import futures
import hashlib
import re

from absl import logging
import numpy as np

from unilip_jax.common import paths, png
from unilip_jax.rewards import base
from unilip_jax.scores import append_log, chat_api, requests

_T2I = ("Rate how well the image shows this prompt, from 0 (nothing of it) to {most} (all of it, well "
        "drawn). Answer with the number alone.\nPrompt: {prompt}")
_EDIT = ("The second image was made from the first one by this instruction. Rate from 0 to {most} whether "
         "it was carried out and everything else left unchanged. Answer with the number alone.\n"
         "Instruction: {prompt}")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class AnswerError(ValueError):
  """A judge's answer without a number in the range."""


def make(
    *, base_url: str, model: str, most: float = 10.0, cache: str = "", concurrency: int = 8,
    timeout: float = 60.0, retries: int = 2, t2i: str = _T2I, edit: str = _EDIT) -> base.Score:
  """Makes the reward `judge`.

  Args:
    base_url: of the endpoint.
    model: id to request.
    most: the best number that the judge may answer.
    cache: file of the answers, of this machine; "" keeps none. It belongs to one process: reward.workers=1.
    concurrency: requests at once.
    timeout: seconds of one try.
    retries: of a request that failed.
    t2i, edit: questions, with {prompt} and {most}.

  Raises:
    ValueError: for a malformed address, or a cache that another process uses.
  """
  endpoint = chat_api.Endpoint(base_url, chat_api.Limits(timeout=timeout, retries=retries))
  log = append_log.AppendLog(paths.expand(cache)) if cache else None
  known = {r["key"]: r["answer"] for r in log.records} if log else {}
  useless: collections.Counter = collections.Counter()  # answers without a number, by key
  pool = futures.ThreadPoolExecutor(concurrency, "judge")

  def ask(image: np.ndarray, record: base.Record) -> float:
    question = (edit if record.kind == "edit" else t2i).format(prompt=record.prompt, most=f"{most:g}")
    shown = [image] if record.source is None else [record.source, image]
    request = requests.Request(
        (requests.Message("user", (question, *(requests.Image(png.encode(x)) for x in shown))),),
        temperature=0.0)
    key = hashlib.sha256(
        f"{model} {request.prompt_hash} {request.image_hash}".encode()).hexdigest()[:32]
    if key not in known:
      # A new idempotency key after a useless answer: an endpoint that knows the old one would repeat it.
      answer = endpoint.complete(request.body(model), f"{key}-{useless[key]}").text
      try:
        _number(answer, most)
      except AnswerError:
        useless[key] += 1
        raise
      if log:
        log.append({"key": key, "model": model, "answer": answer})
      known[key] = answer
    return _number(known[key], most)

  def score(images: np.ndarray, records: Sequence[base.Record]) -> np.ndarray:
    def one(image, record):
      try:
        return ask(image, record)
      except (AnswerError, chat_api.CallError, chat_api.Refused) as error:
        # This image has no score; a wrong key or address fails for all and is raised.
        logging.warning("reward judge: no score for %r: %s", record.prompt[:60], error)
        return np.nan

    return np.array(list(pool.map(one, images, records)), np.float32)

  return score


def _number(answer: str, most: float) -> float:
  found = _NUMBER.search(answer)
  if not found or not 0 <= float(found[0]) <= most:
    raise AnswerError(f"the judge's answer {answer[:60]!r} is no number from 0 to {most:g}")
  return float(found[0]) / most
