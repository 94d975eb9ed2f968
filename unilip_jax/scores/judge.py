"""Asks a benchmark's judge about every image or answer, once; a rerun asks only what has no answer yet.

A stored answer belongs to (benchmark and its revision, item, bytes of the images as sent, prompt and
parameters, try, model id as returned): a changed image or prompt is asked again. Raw answers are kept in
<out>/judge/answers.jsonl. Refused and malformed answers are recorded as such and have no score.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
import dataclasses
import hashlib
import json
import pathlib
import re
import threading
from typing import Any

from unilip_jax.common import paths
from unilip_jax.scores import append_log, base, chat_api, prices, provenance, requests

FOLDER = "judge"  # within --out, next to the official files
ANSWERS, VERDICTS, ABOUT = "answers.jsonl", "verdicts.jsonl", "judge.json"
_FAILURES = 10  # items in a row without an answer, after which the endpoint counts as down
_REFUSAL = re.compile(r"\b(i['’]?m sorry|i am sorry|i can(no|['’])t|i cannot|i['’]?m unable|i am unable)\b",
                      re.IGNORECASE)

Key = tuple[str, int]  # (item id, k)


class BudgetError(ValueError):
  """Judging would cost more than its cap."""


class JudgeChangedError(ValueError):
  """The endpoint answers with another model than before."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """Holds what is asked and what it may cost.

  Attributes:
    model: id to request.
    tries: answers asked for until one parses.
    price: of the model.
    budget: USD that all answers in the folder may cost; None is without cap.
    concurrency: requests at once.
    returned_model: model id of the stored answers that count; None takes the one that there is.
  """

  model: str
  tries: int
  price: prices.Price
  budget: float | None
  concurrency: int = 8
  returned_model: str | None = None


@dataclasses.dataclass(frozen=True)
class Subject:
  """Holds what a benchmark's judge is asked about.

  Attributes:
    benchmark: whose protocol.
    items: all items.
    present: (item id, k) of the images or answers that there are.
    read: returns the bytes of one.
    prompts: from Benchmark.read_prompts; None if the benchmark needs none.
  """

  benchmark: base.Benchmark
  items: Sequence[base.Item]
  present: Sequence[Key]
  read: Callable[[Key], bytes]
  prompts: Any = None

  def requests(self, item: base.Item, k: int, attempt: int) -> list[requests.Request]:
    """Returns the judge's requests about image k of an item."""
    return self.benchmark.judge_requests(item, [self.read((item.id, k))], self.prompts, attempt)


class Judge:
  """Judges one subject with one endpoint.

  Attributes:
    model: id as returned; None before the first answer.
  """

  def __init__(
      self, subject: Subject, endpoint: chat_api.Endpoint, settings: Settings, log: append_log.AppendLog,
      report: Callable[[str], None] = print):
    """Reads the stored answers; sends nothing yet.

    Args:
      subject: what to judge.
      endpoint: of the judge.
      settings: see Settings.
      log: of the answers.
      report: shows a line to the user.

    Raises:
      ValueError: if the stored answers are by several models and none was chosen.
    """
    self._subject, self._endpoint, self._settings, self._log = subject, endpoint, settings, log
    self._report = report
    self._lock = threading.Lock()
    self._reserved = 0.0  # USD of requests that are being answered
    self._failures = 0
    mine = [r for r in log.records if r.get("model_requested") == settings.model]
    self.model = settings.returned_model or _only_model(mine, settings.model)
    self._answers = {r["key"]: r for r in mine if r.get("model") in (self.model, None)}
    self._stored = collections.Counter(r["key"] for r in log.records if "key" in r)
    self._unanswered = {r["asking"] for r in log.records if "asking" in r} - self._stored.keys()
    self._spent = sum(settings.price.cost(r.get("usage", {})) for r in mine)

  def plan(self) -> dict[str, Any]:
    """Counts the first requests that have no answer yet, and estimates their tokens and USD."""
    total, calls, stored = {}, 0, 0
    by_id = {item.id: item for item in self._subject.items}
    for item_id, k in self._subject.present:
      for request in self._subject.requests(by_id[item_id], k, 0):
        if self._key(item_id, request, 0) in self._answers:
          stored += 1
          continue
        calls += 1
        total = prices.add(total, prices.estimate(request))
    return {"calls": calls, "stored": stored, "tokens": total, "usd": self._settings.price.cost(total)}

  def describe(self, plan: Mapping[str, Any]) -> str:
    """Formats a plan, the price that it assumes and the cap."""
    budget, tokens = self._settings.budget, plan["tokens"]
    return (f"judge {self._settings.model}: {plan['calls']} calls to make, {plan['stored']} answers are "
            f"stored; about {tokens.get('prompt_tokens', 0)} input and "
            f"{tokens.get('completion_tokens', 0)} output tokens, {plan['usd']:.2f} USD (each image asked "
            f"once) at {self._settings.price}; spent so far {self._spent:.2f} USD; cap "
            f"{'none' if budget is None else f'{budget:.2f} USD'}")

  def run(self) -> list[base.Judgement]:
    """Asks what has no answer yet and parses all answers.

    Returns:
      A judgement for each present image, in the items' order.

    Raises:
      BudgetError: before the first call, or when the next call would pass the cap.
      chat_api.EndpointError: if the endpoint answers no request.
      JudgeChangedError: if it answers with another model than the stored answers.
    """
    settings = self._settings
    if self._log.torn:
      self._report(f"{self._log.path}: cut off a torn last line of {self._log.torn} bytes")
    if self._unanswered:
      self._report(f"{len(self._unanswered)} requests were sent in an earlier run whose answers are not "
                   "stored; they are sent again with the same Idempotency-Key")
    plan = self.plan()
    self._report(self.describe(plan))
    if settings.budget is not None and plan["calls"] and self._spent + plan["usd"] > settings.budget:
      raise BudgetError(
          f"judging costs about {plan['usd']:.2f} USD, and {self._spent:.2f} are spent: more than "
          f"--budget={settings.budget:g}; raise it, or judge fewer items")
    groups: dict[str, list[int]] = {}
    for item_id, k in self._subject.present:
      groups.setdefault(item_id, []).append(k)
    items = [item for item in self._subject.items if item.id in groups]
    pool = futures.ThreadPoolExecutor(settings.concurrency, "judge")
    try:
      jobs = [pool.submit(self._judge_item, item, groups[item.id]) for item in items]
      for job in futures.as_completed(jobs):
        job.result()
      return [judgement for job in jobs for judgement in job.result()]
    finally:
      # After an error or a signal: no further request starts, and sent ones still store their answers.
      self._endpoint.stop()
      pool.shutdown(cancel_futures=True)

  # ---- one item

  def _judge_item(self, item: base.Item, ks: Sequence[int]) -> list[base.Judgement]:
    return [self._judge_image(item, k) for k in ks]

  def _judge_image(self, item: base.Item, k: int) -> base.Judgement:
    answers: dict[str, str | None] = {}
    for attempt in range(self._settings.tries):
      try:
        records = {r.key: self._answer(item.id, k, r, attempt)
                   for r in self._subject.requests(item, k, attempt)}
      except chat_api.CallError as error:
        self._failed(error)
        return base.Judgement(item.id, k, answers, None, f"failed: {error}")
      answers = {name: record["answer"] for name, record in records.items()}
      refused = [r for r in records.values() if r["refusal"]]
      if any(r["answer"] is None for r in records.values()):  # the endpoint's filter: always the same
        return base.Judgement(item.id, k, answers, None, "refused")
      scores = None if refused else self._subject.benchmark.parse(answers)
      if scores is not None:
        return base.Judgement(item.id, k, answers, scores)
    if refused or any(_REFUSAL.search(text) for text in answers.values()):
      return base.Judgement(item.id, k, answers, None, "refused")
    return base.Judgement(item.id, k, answers, None, "malformed")

  def _answer(self, item_id: str, k: int, request: requests.Request, attempt: int) -> Mapping[str, Any]:
    """Returns the stored answer of a request, or asks and stores it."""
    key = self._key(item_id, request, attempt)
    if (stored := self._answers.get(key)) is not None:
      return stored
    cost = self._settings.price.cost(prices.estimate(request))
    self._reserve(cost)
    record = {
        "key": key, "benchmark": self._subject.benchmark.name, "item": item_id, "k": k,
        "request": request.key, "attempt": attempt, "image_sha256": request.image_hash,
        "prompt_sha256": request.prompt_hash, "model_requested": self._settings.model}
    try:
      self._log.append({"asking": key, "time": provenance.now()})
      try:
        # Numbered, so that what is asked again because the model changed is not answered from before.
        reply = self._endpoint.complete(
            request.body(self._settings.model), f"{key}-{self._stored[key]}")
      except chat_api.Refused as error:
        record |= {"model": None, "answer": None, "refusal": str(error)}
      else:
        refusal = reply.refusal or (
            "content_filter" if reply.finish_reason == "content_filter" else "")
        record |= {
            "model": reply.model or self._settings.model, "answer": reply.text, "refusal": refusal,
            "finish_reason": reply.finish_reason, "usage": dict(reply.usage), "http_tries": reply.tries,
            "seconds": reply.seconds}
      record["time"] = provenance.now()
      self._log.append(record)
    finally:
      with self._lock:
        self._reserved -= cost
    self._store(record)
    return record

  def _store(self, record: Mapping[str, Any]) -> None:
    """Counts an answer that is on the disk; refuses a mixture of models."""
    with self._lock:
      self._failures = 0
      self._spent += self._settings.price.cost(record.get("usage", {}))
      if self.model is None:
        self.model = record["model"]
      if record["model"] not in (self.model, None):
        raise JudgeChangedError(
            f"the endpoint answers {self._settings.model!r} with {record['model']!r} now; "
            f"{len(self._answers)} stored answers are by {self.model!r}, and a score must not mix them. "
            f"Request a dated model id, or ask everything again: --returned_model={record['model']}")
      self._answers[record["key"]] = record

  def _reserve(self, cost: float) -> None:
    with self._lock:
      budget = self._settings.budget
      if budget is not None and self._spent + self._reserved + cost > budget:
        raise BudgetError(f"the next call would pass --budget={budget:g} USD ({self._spent:.2f} are "
                          "spent); raise it and run the same command again")
      self._reserved += cost

  def _failed(self, error: Exception) -> None:
    with self._lock:
      self._failures += 1
      if self._failures >= _FAILURES:
        raise chat_api.EndpointError(
            f"{self._failures} items in a row got no answer; the last: {error}. Run the same command again "
            "when the endpoint works")

  def _key(self, item_id: str, request: requests.Request, attempt: int) -> str:
    benchmark = self._subject.benchmark
    parts = [benchmark.name, benchmark.revision, item_id, request.key, attempt, request.image_hash,
             request.prompt_hash, self._settings.model]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

  def about(self, judgements: Sequence[base.Judgement]) -> dict[str, Any]:
    """Describes the judge for results: model ids, dates, counts and cost."""
    used = [r for r in self._answers.values() if r["benchmark"] == self._subject.benchmark.name]
    times = sorted(r["time"] for r in used)
    tokens: dict[str, int] = {}
    for record in used:
      tokens = prices.add(tokens, record.get("usage", {}))
    problems = collections.Counter(j.problem.split(":")[0] for j in judgements if j.problem)
    return {
        "model_requested": self._settings.model, "model": self.model, "endpoint": self._endpoint.kind,
        "first_answer": times[0] if times else None, "last_answer": times[-1] if times else None,
        "tries": self._settings.tries, "judged": len(judgements), "problems": dict(problems),
        "answers": len(used), "tokens": tokens, "usd": round(self._spent, 4),
        "price": str(self._settings.price),
        "http_retries": dict(self._endpoint.retries)}


def open_log(out: str) -> append_log.AppendLog:
  """Opens the answers of an output folder, which is created."""
  folder = pathlib.Path(paths.expand(out)) / FOLDER
  if "://" not in out:
    folder.mkdir(parents=True, exist_ok=True)
  return append_log.AppendLog(folder / ANSWERS if "://" not in out else out)


def _only_model(records: Sequence[Mapping[str, Any]], requested: str) -> str | None:
  """Returns the model id by which stored answers are; None without answers."""
  counts = collections.Counter(r["model"] for r in records if r.get("model"))
  if len(counts) > 1:
    raise ValueError(
        f"the stored answers to {requested!r} are by several models: "
        f"{', '.join(f'{model} ({n})' for model, n in counts.items())}; choose one by --returned_model=ID, "
        "the others' items are asked again")
  return next(iter(counts), None)
