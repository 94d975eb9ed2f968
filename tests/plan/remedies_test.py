"""A plan that does not fit names a planned change that does."""

from unilip_jax.configs import gen2, stage2, stage448
from unilip_jax.plan import batches, command, estimate, remedies, topology

_GIB = 2**30


def _planned(needed):
  """Returns a plan function: memory as `needed` counts it, and the calls that it got."""
  calls = []

  def plan(config, where):
    calls.append((config, where))
    memory = needed(config, where)
    return {"fits": memory <= 10, "memory_per_device": {"needed": memory * _GIB, "available": 10 * _GIB}}

  return plan, calls


def _find(config, name, needed):
  where = topology.parse(name)
  return remedies.find(batches.chosen(config, where)[0], where, _planned(needed)[0])


def test_recomputation_comes_first():
  found = _find(stage2.get_config("1b"), "h100:8", lambda c, _: 5 if c.remat.decoder == "full" else 20)
  assert found["would_fit"]["flags"] == "--config.remat.decoder=full --config.remat.vit=full"
  assert len(found["tried"]) == 1


def test_weights_gathered_once_a_step_are_gathered_by_layer_first():
  config = stage2.get_config("1b")
  config.mesh.gather = "step"
  found = _find(config, "h100:8", lambda c, _: 20 if c.mesh.gather == "step" else 5)
  assert found["would_fit"]["flags"] == "--config.mesh.gather=layer"
  assert len(found["tried"]) == 1


def test_a_state_in_one_copy_is_split_further():
  config = gen2.get_config("1b")
  config.mesh.fsdp = 1
  found = _find(config, "v5e:4x4", lambda c, _: 80 / c.mesh.fsdp)
  assert found["would_fit"]["flags"] == "--config.mesh.fsdp=16"


def test_micro_batches_keep_the_recipes_batch_and_a_gan_takes_a_smaller_one():
  found = _find(gen2.get_config("1b"), "h100:1", lambda c, _: 64 / c.grad_accum_steps)
  assert found["would_fit"]["flags"] == "--config.grad_accum_steps=8"
  found = _find(stage448.get_config("1b"), "h100:1", lambda c, _: c.batch_size / 4)
  assert found["would_fit"]["flags"] == "--config.batch_size=32"


def test_more_chips_come_last_with_the_config_as_it_was():
  found = _find(stage448.get_config("1b"), "v5e:4x4", lambda c, where: 200 / where.size)
  assert found["would_fit"]["topology"] == "v5e:4x8"
  assert "remat" not in found["would_fit"]["flags"]
  assert [row["fits"] for row in found["tried"]][-2:] == [False, True]


def test_each_change_that_did_not_help_is_listed_with_what_it_needs():
  found = _find(stage448.get_config("1b"), "v5e:4x4", lambda c, _: 50)
  assert found["would_fit"] is None
  assert {row["needed"] for row in found["tried"]} == {50 * _GIB}


def test_the_command_prints_the_change_that_fits(tmp_path, monkeypatch):
  def plan(config, where, **_):
    needed = (9 if config.remat.decoder == "full" else 20) * _GIB
    return {"topology": where.name, "chips": where.size, "stage": "stage2", "size": "1b",
            "mesh": {"data": 1, "fsdp": 8}, "batch_size": config.batch_size, "made_by": "a test",
            "fits": needed <= 10 * _GIB, "remat": config.remat.to_dict(), "gather": config.mesh.gather,
            "memory_per_device": {"needed": needed, "available": 10 * _GIB, "split": {}},
            "flops": {"model": 1.0, "hardware": 1.0, "hardware_per_device": 1.0},
            "collectives": {"by_kind": {}}}

  monkeypatch.setattr(estimate, "plan", plan)
  text = command.text(command.run(stage2.get_config("1b"), str(tmp_path), "h100:8"))
  assert "DOES NOT FIT: 20 GB of 10 GB" in text
  assert "WOULD FIT: --config.remat.decoder=full --config.remat.vit=full (9 GB of 10 GB, planned)" in text
