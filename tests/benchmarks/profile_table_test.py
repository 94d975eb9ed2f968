"""A trace becomes a table: own times, modules by named scopes, nothing counted twice."""

import collections

from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from benchmarks import profile_table
from unilip_jax.training import profiling


@pytest.mark.parametrize(("op_name", "depth", "expected"), [
    ("jit(train_step)/jvp(Sana)/layers/while/body/attn/qkv/dot_general", 2, ("Sana/attn", False)),
    ("jit(train_step)/transpose(jvp(Sana))/layers/cross/q/dot_general", 2, ("Sana/cross", True)),
    ("jit(train_step)/jit(main)/Tokenizer.encode/vision_tower/dot_general", 1,
     ("vision_tower", False)),
    ("jit(train_step)/mul", 2, (profile_table.OTHER, False)),
    ("", 2, (profile_table.OTHER, False))])
def test_module_of_an_operation(op_name, depth, expected):
  assert profile_table.module_of(op_name, depth) == expected


def test_own_time_leaves_out_what_runs_inside():
  make = lambda op, start, end: profile_table.Interval(op, start, end)
  own = profile_table.own_times([
      make("b", 10, 30), make("while", 0, 100), make("c", 15, 20), make("b", 40, 50),
      make("after", 100, 120)])
  assert own == collections.Counter({"while": 70, "b": 25, "c": 5, "after": 20})
  assert sum(own.values()) == 120


class _Layer(nn.Module):

  @nn.compact
  def __call__(self, x):
    return nn.Dense(300, name="large")(jnp.tanh(nn.Dense(300, name="small")(x[:8])))


def test_a_trace_of_a_step_names_its_modules(tmp_path, capsys):
  layer, x = _Layer(), jnp.ones((256, 300))
  params = layer.init(jax.random.key(0), x)
  step = jax.jit(jax.grad(lambda p, x: jnp.square(layer.apply(p, x)).mean())).lower(
      params, x).compile()
  step(params, x)
  with profiling.Profile((1, 2), tmp_path) as profile:
    profile.start(step)
    for number in (1, 2):
      with jax.profiler.StepTraceAnnotation("train", step_num=number):
        jax.block_until_ready(step(params, x))
  profile_table.main([f"--trace={tmp_path}", f"--out={tmp_path}/table.json"])
  printed = capsys.readouterr().out
  assert printed.startswith("2 steps, ")
  own, steps, seconds, text = profile_table.read(profile_table._find(tmp_path))
  modules, operations = profile_table.table(own, text, 2, 5)
  assert steps == 2
  assert seconds > 0
  assert sum(m["share"] for m in modules) == pytest.approx(1)
  assert {m["module"] for m in modules} & {"_Layer/small", "_Layer/large"}
  assert any(m["pass"] == "backward" for m in modules)
  assert len(operations) <= 5


def test_a_folder_without_a_trace_is_named(tmp_path):
  with pytest.raises(SystemExit, match=r"holds no .*profile_steps"):
    profile_table.main([f"--trace={tmp_path}"])
