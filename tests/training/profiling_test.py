"""A run writes a trace of the steps asked for, where xprof and TensorBoard look, and it can be read."""

import jax
import pytest

from tests import micro
from unilip_jax import train
from unilip_jax.training import profiling


def test_a_run_traces_the_steps_asked_for(tmp_path, monkeypatch):
  micro.install(monkeypatch)
  micro.one_device(monkeypatch)
  images = micro.write_images(tmp_path / "images")
  train.train(
      micro.config("stage1", images, profile_steps=(2, 3), total_steps=4), str(tmp_path / "run"))
  folder = tmp_path / "run/tensorboard/plugins/profile/steps_2_3"
  file, = folder.glob("*.xplane.pb")
  events = [event for plane in jax.profiler.ProfileData.from_file(str(file)).planes
            for line in plane.lines for event in line.events]
  steps = {dict(e.stats)["step_num"] for e in events if e.name == "train"}
  assert steps == {2, 3}
  traced = {dict(e.stats).get("hlo_op") for e in events} - {None}
  text = (folder / profiling.TEXT).read_text()
  named = {op for op in traced if f"%{op} = " in text}
  assert len(named) > 0.9 * len(traced) > 0


@pytest.mark.parametrize("steps", [(3,), (0, 2), (4, 3)])
def test_other_steps_are_refused_by_name(tmp_path, steps):
  with pytest.raises(ValueError, match=r"profile_steps=.*two steps counted from 1"):
    profiling.Profile(steps, tmp_path)


def test_a_trace_that_no_step_ends_is_kept(tmp_path):
  compiled = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((8, 8), "float32")).compile()
  with profiling.Profile((1, 9), tmp_path) as profile:
    assert profile.starts_at(1)
    profile.start(compiled)
    assert not profile.ends_at(1)
  assert list(tmp_path.glob("tensorboard/plugins/profile/steps_1_9/*.xplane.pb"))
