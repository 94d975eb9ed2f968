"""The plan chooses batch, sub-batches and mesh that divide over the devices, and states what it chose."""

import json

import pytest

from launch import plan_flags
from unilip_jax.configs import few_step, gen2, gen3, reca, stage2
from unilip_jax.data import batch as batch_lib
from unilip_jax.plan import batches, command, estimate, topology
from unilip_jax.sharding import mesh as mesh_lib


@pytest.mark.parametrize("stage", [gen2, gen3, few_step, reca, stage2])
@pytest.mark.parametrize("name", ["v5e:1x1", "v5e:4x4", "v6e:8x8", "v5e:16x16", "v5e:16x16*2", "h100:8"])
def test_the_chosen_sub_batches_divide_over_every_topology(stage, name):
  where = topology.parse(name)
  config, chosen = batches.chosen(stage.get_config("1b"), where)
  assert all(size % where.size == 0 for size in batch_lib.part_sizes(config).values())
  assert chosen["mesh.fsdp"] == config.mesh.fsdp == {1: 1, 8: 8}.get(where.size, 16)
  again, nothing = batches.chosen(config, where)
  assert not nothing
  assert again.to_dict() == config.to_dict()


def test_what_divides_stays_and_what_does_not_is_named():
  assert batches.chosen(gen2.get_config("1b"), topology.parse("v5e:4x4"))[1] == {"mesh.fsdp": 16}
  assert batches.chosen(gen2.get_config("1b"), topology.parse("v5e:16x16"))[1] == {
      "batch_size": 768, "data.part_multiple": 256, "mesh.fsdp": 16}


def test_micro_batches_divide_too():
  config = gen2.get_config("1b")
  config.grad_accum_steps = 4
  config, _ = batches.chosen(config, topology.parse("v6e:8x8"))
  batch_lib.check_divides(config, mesh_lib.jax.sharding.AbstractMesh((4, 16), mesh_lib.DATA_AXES))


def test_the_command_states_what_it_chose_and_hands_it_on(tmp_path, monkeypatch):
  seen = []

  def plan(config, where, **_):
    seen.append(config)
    return {"topology": where.name, "chips": where.size, "stage": "gen2", "size": "1b", "fits": True,
            "mesh": {"data": 16, "fsdp": 16}, "batch_size": config.batch_size, "made_by": "a test",
            "part_multiple": config.data.part_multiple, "grad_accum_steps": 1, "remat": {},
            "gather": config.mesh.gather,
            "memory_per_device": {"needed": 1, "available": 2, "split": {}},
            "flops": {"model": 1.0, "hardware": 1.0, "hardware_per_device": 1.0},
            "collectives": {"by_kind": {}}}

  monkeypatch.setattr(estimate, "plan", plan)
  config = gen2.get_config("1b")
  config.mesh.gather = "step"  # planned alone; command_test.py has the comparison
  result = command.run(config, str(tmp_path), "v5e:16x16")
  assert batch_lib.part_sizes(seen[0]) == {"t2i": 512, "edit": 256}
  assert ("chosen for 256 chips: --config.batch_size=768 --config.data.part_multiple=256 "
          "--config.mesh.fsdp=16") in command.text(result)
  flags = set(plan_flags.lines(json.loads((tmp_path / "plan.json").read_text())))
  assert {"--config.batch_size=768", "--config.data.part_multiple=256", "--config.mesh.fsdp=16"} < flags


@pytest.mark.parametrize(("data", "fsdp", "devices", "inside", "chosen"), [
    (-1, -1, 256, 256, 16), (-1, -1, 1, 1, 1), (-1, -1, 6, 6, 6), (-1, -1, 16, 8, 8), (4, -1, 16, 16, 4),
    (-1, 4, 256, 256, 4)])
def test_fsdp_is_chosen_inside_of_a_slice_or_node(data, fsdp, devices, inside, chosen):
  assert mesh_lib.chosen_fsdp(data, fsdp, devices, inside) == chosen
