"""Costs of the recipe follow from the plans and the prices that are given."""

import pytest

from benchmarks import plan_table, recipe_table

_GB = 10**9


def _plans(hours=240.0):
  plan = {"fits": True, "batch_size": 128, "chips": 64, "mesh": {"data": 4, "fsdp": 16},
          "time": {"chip_hours": hours, "step_seconds": hours},
          "memory_per_device": {"split": {
              "parameters": _GB, "optimizer": 2 * _GB, "ema": _GB, "frozen": _GB, "discriminator": 0}}}
  return {plan_table.key_of({"stage": s, "size": "1b", "topology": t, "batch": "recipe"}): {"plan": plan}
          for s in recipe_table.STAGES for t in recipe_table.TOPOLOGIES}


def test_hours_become_days_dollars_and_storage():
  rows = recipe_table.costs(_plans(), "v6e:8x8", {"v6e": 2.5})
  assert [r["stage"] for r in rows] == list(recipe_table.STAGES)
  assert rows[0]["days"] == 240 / 64 / 24
  assert rows[0]["dollars"] == 600
  assert rows[0]["bytes"] == (2 * 4 * 16 + 16) * _GB  # two checkpoints, frozen weights once
  assert rows[3]["bytes"] == (2 * 4 * 16 + 1) * _GB  # of generation, replicated


def test_the_table_ends_with_the_sum_and_hides_no_price():
  text = recipe_table.table(_plans(), {"v6e": 2.5})
  assert "| v6e:8x8 | **all** |  |  | 1440 | 0.94 | 3600 |" in text
  assert "| v5e:16x16 | **all** |  |  | 1440 | 0.94 | no price given |" in text


def test_the_faster_plan_that_fits_counts():
  gen2 = {"stage": "gen2", "size": "1b", "topology": "v6e:8x8", "batch": "recipe"}
  step = _plans(180.0)[plan_table.key_of(gen2)]["plan"] | {"gather": "step"}

  def row(fits):
    plans = _plans() | {plan_table.key_of(plan_table.once(gen2)): {"plan": step | {"fits": fits}}}
    return recipe_table.costs(plans, "v6e:8x8", {})[recipe_table.STAGES.index("gen2")]

  assert (row(True)["chip_hours"], row(True)["gather"]) == (180, "step")
  assert (row(False)["chip_hours"], row(False)["gather"]) == (240, "layer")


def test_a_stage_without_a_plan_names_the_command():
  plans = {k: v for k, v in _plans().items() if "stage=gen3" not in k}
  with pytest.raises(ValueError, match="no plan of gen3:1b on v6e:8x8; run python"):
    recipe_table.costs(plans, "v6e:8x8", {})


def test_prices_are_read_or_refused():
  assert recipe_table.prices("v6e=2.70,v5e=1") == {"v6e": 2.7, "v5e": 1.0}
  with pytest.raises(ValueError, match="expected dollars per chip hour"):
    recipe_table.prices("v6e")
