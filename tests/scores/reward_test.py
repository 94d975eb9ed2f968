"""Rewards of a judge behind an endpoint, and of GenEval's detector."""

import numpy as np
import pytest

from tests.scores import judge_server
from unilip_jax.rewards import base, pool
from unilip_jax.scores import chat_api, reward_geneval, reward_judge


def _images(*values):
  return np.stack([np.full((8, 8, 3), v, np.uint8) for v in values])


_RECORDS = [base.Record("t2i", "a red cup", {}), base.Record("edit", "make it blue", {}, _images(3)[0])]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
  for name in chat_api.KEY_VARIABLES:
    monkeypatch.delenv(name, raising=False)


def test_a_judges_number_is_the_score_and_is_asked_once(tmp_path):
  def answer(body, number):
    return judge_server.Answer("7.5" if "a red cup" in str(body) else "3 of 10")

  with judge_server.Server(answer) as server:
    options = dict(base_url=server.url, model="m", cache=str(tmp_path / "answers.jsonl"))
    for _ in range(2):  # a run, and the same run again
      with pool.Pool([base.Term("judge", 1.0, options)], workers=1, timeout=60.0) as scores:
        found = scores.score(_images(1, 2), _RECORDS)
      assert not found.failures
      np.testing.assert_allclose(found.terms["judge"], [0.75, 0.3])
    assert len(server.seen) == 2
    images = [sum(part["type"] == "image_url" for part in body["messages"][0]["content"])
              for _, _, body in server.seen]
  assert sorted(images) == [1, 2]  # an edit is shown with its input


def test_an_image_without_a_number_has_no_score_and_a_wrong_key_stops_all():
  answers = iter([judge_server.Answer("lovely"), judge_server.Answer("12"),
                  judge_server.Answer("no", status=401), judge_server.Answer("no", status=401)])
  with judge_server.Server(lambda body, number: next(answers)) as server:
    score = reward_judge.make(base_url=server.url, model="m", concurrency=1)
    np.testing.assert_array_equal(score(_images(1, 2), _RECORDS), [np.nan, np.nan])
    with pytest.raises(chat_api.EndpointError, match="wants a key"):
      score(_images(1, 2), _RECORDS)


def test_genevals_rules_are_applied_to_a_detectors_boxes():
  score = reward_geneval.make(detector="tests.scores.made_up:BrightDetector")
  include = lambda count: {"tag": "counting", "include": [{"class": "cup", "count": count}]}
  records = [base.Record("t2i", "cups", include(n)) for n in (1, 2, 2)]
  np.testing.assert_array_equal(score(_images(0, 0, 255), records), [1, 0, 1])
