"""The curve of weights that were continued, again and again."""

from benchmarks import shapes_scores


def _origin(started_from, steps, curve, before=None):
  rows = [{"step": step, "score": score} for step, score in curve]
  return {"started_from": started_from, "steps": steps, "curve": rows} | (
      {"before": before} if before else {})


def test_updates_count_on_over_all_runs():
  first = _origin("shapes:gen1", 100, [(0, 0.0), (100, 0.1)])
  second = _origin("shapes:gen2", 30, [(0, 0.1), (20, 0.2)], before=first)
  third = _origin("shapes:gen2", 50, [(50, 0.3)], before=second)
  curve = shapes_scores._history("gen2", third)
  assert [(row["step"], row["score"]) for row in curve] == [(0, 0.0), (100, 0.1), (120, 0.2), (180, 0.3)]


def test_what_was_replaced_and_not_continued_is_no_part_of_the_curve():
  former = _origin("shapes:stage1", 100, [(100, 0.1)])
  anew = _origin("shapes:stage1", 50, [(50, 0.3)], before=former)
  assert [row["step"] for row in shapes_scores._history("gen2", anew)] == [50]
