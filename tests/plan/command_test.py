"""The command plans both times of gathering weights, and hands on the faster one that fits."""

import json

import pytest

from launch import plan_flags
from unilip_jax.configs import gen2
from unilip_jax.plan import command, compiling, estimate

_GIB = 2**30


@pytest.fixture
def planned(monkeypatch):
  """Returns mesh.gather of the plans that were made; `step` holds seconds and GiB of gather=step."""
  calls, step = [], {"seconds": 0.1, "needed": 5}

  def plan(config, where, **_):
    gather = config.mesh.gather
    calls.append(gather)
    if gather == "step" and "error" in step:
      raise compiling.CompileError(step["error"])
    found = step if gather == "step" else {"seconds": 0.12, "needed": 3}
    result = {
        "topology": where.name, "chips": where.size, "stage": "gen2", "size": "1b", "made_by": "a test",
        "mesh": {"data": where.size // config.mesh.fsdp, "fsdp": config.mesh.fsdp}, "gather": gather,
        "batch_size": config.batch_size, "grad_accum_steps": 1, "remat": {}, "fits": found["needed"] <= 10,
        "memory_per_device": {"needed": found["needed"] * _GIB, "available": 10 * _GIB, "split": {}},
        "flops": {"model": 1.0, "hardware": 1.0, "hardware_per_device": 1.0},
        "collectives": {"by_kind": {}, "sent_bytes_per_device": 2 * _GIB}}
    seconds = found["seconds"]
    return result | ({"time": {
        "step_seconds": seconds, "computation_seconds": {}, "communication_seconds": 0.0, "mfu": 0.1,
        "images_per_second": 1.0, "chip_hours": 1.0, "total_steps": 1, "rests_on": "a test"}}
        if result["fits"] else {})

  monkeypatch.setattr(estimate, "plan", plan)
  return calls, step


def _flags(tmp_path):
  return plan_flags.lines(json.loads((tmp_path / "plan.json").read_text()))


def test_the_faster_that_fits_is_handed_on(tmp_path, planned):
  result = command.run(gen2.get_config("1b"), str(tmp_path), "v5e:16x16")
  assert planned[0] == ["layer", "step"]
  assert "--config.mesh.gather=step" in _flags(tmp_path)
  text = command.text(result)
  assert "gather step\n" in text
  assert "mesh.gather=layer: 3 GB per device, 120.0 ms, 2 GB sent" in text
  assert "mesh.gather=step: 5 GB per device, 100.0 ms, 2 GB sent" in text
  assert "--config.mesh.gather=step" in text


@pytest.mark.parametrize("worse", [{"seconds": 0.13}, {"needed": 11}])
def test_the_slower_one_and_one_that_does_not_fit_are_reported_alone(tmp_path, planned, worse):
  planned[1].update(worse)
  result = command.run(gen2.get_config("1b"), str(tmp_path), "v5e:16x16")
  assert result["gather"] == "layer"
  assert "mesh.gather" not in result["chosen"]
  assert "--config.mesh.gather=layer" in _flags(tmp_path)
  assert ("does not fit" if "needed" in worse else "130.0 ms") in command.text(result)


def test_a_second_plan_that_fails_leaves_the_first_one(tmp_path, planned):
  planned[1]["error"] = "plan: compiling took longer than --plan_timeout"
  result = command.run(gen2.get_config("1b"), str(tmp_path), "v5e:16x16")
  assert (result["fits"], result["gather"]) == (True, "layer")
  assert "mesh.gather=step: plan: compiling took longer than --plan_timeout" in command.text(result)


@pytest.mark.parametrize(("fsdp", "gather"), [(1, "layer"), (-1, "step")])
def test_nothing_to_gather_and_a_choice_of_the_config_are_planned_once(tmp_path, planned, fsdp, gather):
  config = gen2.get_config("1b")
  config.mesh.fsdp, config.mesh.gather = fsdp, gather
  result = command.run(config, str(tmp_path), "v5e:16x16")
  assert planned[0] == [gather]
  assert "gathers" not in result
