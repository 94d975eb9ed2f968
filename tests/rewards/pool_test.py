"""A reward that fails is NaN with a reason, in time, and the others keep their scores."""

import time

import numpy as np
import pytest

from unilip_jax.rewards import base, pool

_NAME = "tests.rewards.fakes:"


def _images(count):
  """Images of the values 0, 50, 100, ..."""
  return np.repeat(50 * np.arange(count, dtype=np.uint8), 4 * 4 * 3).reshape(count, 4, 4, 3)


def _records(count, **data):
  return [base.Record("t2i", f"prompt {i}", data) for i in range(count)]


def test_failures_of_every_kind_are_named_within_the_timeout_and_spare_the_others():
  rows = [(f"{_NAME}{name}", 1.0) for name in (
      "brightness", "dies", "hangs", "raises", "nan_for_dark", "too_few")]
  rows.append((f"{_NAME}doubled", 1.0, {"factor": 3.0}))
  with pool.Pool(base.read_terms(rows), workers=1, timeout=12.0) as scores:
    begin = time.monotonic()
    found = scores.score(_images(4), _records(4))
    assert time.monotonic() - begin < 20
  expected = 50 * np.arange(4) / 255
  np.testing.assert_allclose(found.terms["brightness"], expected, rtol=1e-6)
  np.testing.assert_allclose(found.terms["doubled"], 3 * expected, rtol=1e-6)
  np.testing.assert_allclose(found.terms["nan_for_dark"], [np.nan, np.nan, *expected[2:]], rtol=1e-6)
  for name in ("dies", "hangs", "raises", "too_few"):
    assert np.isnan(found.terms[name]).all()
  for message in ("reward dies: its process died with status 3", "reward hangs: no answer for 4 images in",
                  "reward raises: RuntimeError: no weights", "nan_for_dark: 2 of 4 scores are not finite",
                  "too_few: returned float32[3] for 4 images"):
    assert any(message in failure for failure in found.failures), message
  assert len(found.failures) == 5


def test_several_processes_share_the_images_and_a_dead_one_is_started_again(tmp_path):
  terms = base.read_terms([(f"{_NAME}dies_once", 1.0)])
  records = _records(3, mark=str(tmp_path / "mark"))
  with pool.Pool(terms, workers=2, timeout=30.0) as scores:
    assert scores.score(_images(1), records[:1]).failures
    found = scores.score(_images(3), records)
  assert not found.failures
  np.testing.assert_allclose(found.terms["dies_once"], 50 * np.arange(3) / 255, rtol=1e-6)


@pytest.mark.parametrize(("rows", "message"), [
    ((), "reward.terms has no rows"),
    ((("nothing", 1.0),), "unknown reward 'nothing'; known: geneval, judge, shapes.*, or module:function"),
    ((("shapes", 1.0), ("shapes", 2.0)), "repeated names"),
])
def test_wrong_terms_are_refused(rows, message):
  with pytest.raises(ValueError, match=message):
    base.read_terms(rows)


@pytest.mark.parametrize(("row", "message"), [
    (("no_such_module:f", 1.0), "there is no module no_such_module"),
    (("json.nothing:f", 1.0), r"there is no module json\.nothing"),
    (("tests.nothing.below:f", 1.0), r"there is no module tests\.nothing\.below"),
    ((":f", 1.0), "give module:function"), (("a b:f", 1.0), "give module:function"),
    (("..json:f", 1.0), "give module:function"), (("json:", 1.0), "give module:function"),
    (("json:nothing", 1.0), "has no attribute 'nothing'; give module:function"),
    (("json:__doc__", 1.0), "'json:__doc__' is a str; give module:function"),
    (("shapes", 1.0, {"most": 5}), "unexpected keyword argument 'most'"),
    (("geneval", 1.0), "missing a required argument: 'detector'"),
])
def test_rewards_that_cannot_be_opened_are_refused_before_a_rollout(row, message):
  with pytest.raises(ValueError, match=message):
    base.check(base.read_terms([row]))


def test_rewards_that_can_be_opened_pass():
  base.check(base.read_terms([("shapes", 1.0), (f"{_NAME}dies_once", 1.0)]))


def test_a_function_that_does_not_exist_is_named():
  with pytest.raises(ValueError, match=r"fakes:missing.*give module:function"):
    base.Term(f"{_NAME}missing", 1.0).open()
