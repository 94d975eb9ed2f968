"""The curves of weights that were trained in several runs; every set of the scores has an evaluator."""

import pytest

from benchmarks import shapes_scores
from unilip_jax.common import registry
from unilip_jax.shapes import pretrained, scene


def _origin(started_from, steps, curve, before=None):
  rows = [{"step": step, "score": score} for step, score in curve]
  return {"started_from": started_from, "steps": steps, "curve": rows} | (
      {"before": before} if before else {})


def test_updates_are_counted_over_all_runs():
  first = _origin("shapes:gen1", 100, [(0, 0.0), (100, 0.1)])
  second = _origin("blocks:gen2", 30, [(0, 0.1), (20, 0.2)], before=first)
  third = _origin("shapes:gen2", 50, [(50, 0.3)], before=second)
  curve = shapes_scores._history("gen2", third)
  assert [(row["step"], row["score"]) for row in curve] == [(0, 0.0), (100, 0.1), (120, 0.2), (180, 0.3)]


def test_weights_that_were_replaced_and_not_continued_are_not_in_the_curve():
  former = _origin("shapes:stage1", 100, [(100, 0.1)])
  latest = _origin("shapes:stage1", 50, [(50, 0.3)], before=former)
  assert [row["step"] for row in shapes_scores._history("gen2", latest)] == [50]


def test_included_curves_are_those_of_all_their_runs():
  curve = shapes_scores._history("gen2", pretrained.read_about("gen2")["origin"])
  assert curve[-1]["step"] == 23583
  assert curve[0]["step"] == 500


@pytest.mark.parametrize("name", pretrained.names())
def test_sets_are_splits_with_registered_protocols(name):
  for _, protocol, count, sets in shapes_scores._sets(shapes_scores.ROWS[name]):
    assert registry.has("evaluator", protocol)
    assert count > 0
    assert {split for _, split, _ in sets} <= set(scene.SPLITS)
