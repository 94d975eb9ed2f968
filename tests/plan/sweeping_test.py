"""A sweep tries settings that may help, once, within its bound, and recommends the best."""

import json

from etils import epath
import pytest

from tests import micro
from unilip_jax.configs import gen2
from unilip_jax.data import batch as batch_lib
from unilip_jax.plan import batches, estimate, sweeping, topology

_WHERE = topology.parse("v5e:4x4")
_GIB = 2**30


class _Calls(list):

  def __init__(self):
    super().__init__()
    self.slower = {"none": 1.0, "dots": 1.2, "full": 1.4}


@pytest.fixture
def tried(monkeypatch):
  """Replaces the compiler: memory grows with the batch and shrinks with more rematerialisation.

  `slower` is the factor by which each policy slows; a test may change it.
  """
  calls = _Calls()

  def plan(config, where, **_):
    calls.append(config)
    policy = config.remat.dit
    needed = {"none": 2.0, "dots": 1.0, "full": 0.5}[policy] * config.batch_size / 32 * _GIB
    needed += 8 * _GIB / config.mesh.fsdp
    seconds = config.batch_size * calls.slower[policy] / 1000
    found = {"fits": needed <= 15.75 * _GIB, "remat": config.remat.to_dict(),
             "memory_per_device": {"needed": needed}}
    if found["fits"]:
      found["time"] = {"step_seconds": seconds, "images_per_second": config.batch_size / seconds,
                       "mfu": 0.3, "chip_hours": 1.0}
    return found

  monkeypatch.setattr(estimate, "plan", plan)
  return calls


def _sweep(tmp_path, tries=12, **fields):
  config = micro.config("stage1", batch_size=128, **fields)
  return sweeping.sweep(config, _WHERE, epath.Path(tmp_path), tries=tries, timeout=1.0)


def test_the_recipes_batch_wins_among_equals_and_pointless_tries_are_skipped(tmp_path, tried):
  found = _sweep(tmp_path)
  chosen = found["recommended"]
  assert "--config.batch_size=128" in chosen
  assert "--config.remat.vit=none" in chosen
  # The first mesh compares the policies; elsewhere more than the fastest is for what does not fit.
  at = lambda r: (r["fsdp"], r["batch_size"])
  first = at(next(r for r in found["sweep"] if r["fits"]))
  assert {r["policy"] for r in found["sweep"] if at(r) == first} == {"none", "dots", "full"}
  others = [r for r in found["sweep"] if at(r) != first]
  assert others
  for row in others:
    less = [r for r in others if at(r) == at(row) and r["policy"] == "none"]
    assert row["policy"] == "none" or (less and not less[0]["fits"])
  assert len(found["sweep"]) == len(tried) <= 12


def test_rematerialisation_that_is_faster_is_recommended(tmp_path, tried):
  tried.slower = {"none": 1.4, "dots": 1.2, "full": 1.0}
  found = _sweep(tmp_path)
  assert "--config.remat.vit=full" in found["recommended"]
  at = lambda r: (r["fsdp"], r["batch_size"])
  first = at(found["sweep"][0])
  assert {r["policy"] for r in found["sweep"] if at(r) != first} == {"full"}


def test_a_rerun_continues_within_its_own_bound(tmp_path, tried):
  _sweep(tmp_path, tries=2)
  assert len(tried) == 2
  assert len((tmp_path / sweeping.FILE).read_text().splitlines()) == 2
  found = _sweep(tmp_path, tries=4)
  assert len(tried) == 4
  assert len(found["sweep"]) == 4
  file = tmp_path / sweeping.FILE
  lines = file.read_text().splitlines()
  file.write_text("\n".join([lines[0][:40], "[" * 100_000, "{}", *lines[1:]]) + "\n")
  _sweep(tmp_path, tries=4)
  assert len(tried) == 5  # the damaged one is made again
  tried.clear()
  _sweep(tmp_path, tries=4, image_size=112)  # another run's tries do not count
  assert tried


def test_no_setting_that_fits_is_an_error_with_the_least_memory_needed(tmp_path, monkeypatch):
  monkeypatch.setattr(estimate, "plan", lambda config, where, **_: {
      "fits": False, "remat": config.remat.to_dict(), "memory_per_device": {"needed": 20 * _GIB}})
  with pytest.raises(ValueError, match=r"none of \d+ settings fits v5e:4x4.* the least .* 20.0 GiB"):
    _sweep(tmp_path)


def test_a_try_that_cannot_run_is_recorded_with_its_error(tmp_path, monkeypatch):
  def plan(config, where, **_):
    raise ValueError("cannot")

  monkeypatch.setattr(estimate, "plan", plan)
  with pytest.raises(ValueError, match="the first error: cannot"):
    _sweep(tmp_path, tries=1)
  assert json.loads((tmp_path / sweeping.FILE).read_text())["result"]["row"]["error"] == "cannot"


@pytest.mark.parametrize("chips", [16, 64, 256])
def test_every_part_of_a_fitted_batch_divides_and_keeps_its_share(chips):
  fitted = batches.fitted(gen2.get_config("1b"), chips)
  parts = batch_lib.part_sizes(fitted)
  assert all(size % chips == 0 for size in parts.values())
  assert parts["edit"] / fitted.batch_size == pytest.approx(0.29, abs=0.06)
  assert fitted.batch_size >= 512
