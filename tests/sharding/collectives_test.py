"""What the partitioner sends between devices: weights and gradients, never examples.

The step is compiled for 2 × 4 CPU devices in the formulation of accelerators, at sizes of micro.py. Each
device has 11 examples of a batch, and no weight has a dimension that 11 divides: a collective whose
shape has one carries examples.
"""

import re

import pytest

from tests import micro
from unilip_jax import tasks
from unilip_jax.ops import backend
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.training import step as step_lib

_SHARE = 11
_COLLECTIVE = re.compile(
    r"= (?P<shapes>.*?) (?P<kind>all-gather|all-to-all|reduce-scatter|collective-permute|all-reduce)"
    r"(-start)?\(")


def carried(hlo: str) -> tuple[set[tuple[str, str, str]], int]:
  """((kind, shape, name) of the collectives that carry examples, number of all collectives)."""
  found, count = set(), 0
  for line in hlo.splitlines():
    match = _COLLECTIVE.search(line)
    if not match:
      continue
    count += 1
    name = re.search(r'op_name="([^"]*)"', line)
    for dtype, dims in re.findall(r"([a-z]+\d*)\[([\d,]+)\]", match["shapes"]):
      if any(int(d) % _SHARE == 0 for d in dims.split(",")):
        found.add((match["kind"], f"{dtype}[{dims}]", name[1] if name else ""))
  return found, count


def _is_lookup(kind: str, shape: str, name: str) -> bool:
  """Ids and masks for the columns of the embedding table, and the all-to-all behind it."""
  return "Qwen2.embed" in name and (kind == "all-to-all" or shape.startswith(("s32", "u32", "pred")))


def test_carried_sees_what_it_should():
  lines = ('%a = f32[88,16]{1,0} all-gather(%x), metadata={op_name="jit(f)/dot"}\n'
           '%b = (f32[11,4]{1,0}, f32[11,4]{1,0}) all-to-all(%x, %y), metadata={op_name="jit(f)/x"}\n'
           "%c = f32[16,32]{1,0} all-gather-start(%w)\n%d = f32[88,16]{1,0} add(%x, %y)\n")
  assert carried(lines) == (
      {("all-gather", "f32[88,16]", "jit(f)/dot"), ("all-to-all", "f32[11,4]", "jit(f)/x")}, 3)


@pytest.mark.thorough
@pytest.mark.parametrize("stage", ["stage2", "gen2"])
def test_no_collective_carries_examples(monkeypatch, stage):
  micro.install(monkeypatch)
  share, common = 8 * _SHARE, dict(mesh__min_shard_size=16)
  if stage == "stage2":
    config = micro.config(stage, batch_size=share, loss__perceptual=1.1, gan__start_step=0, **common)
  else:
    config = micro.text_config(
        stage, batch_size=2 * share, data__part_multiple=share,
        generate__noise_samples_per_image=1, **common)
  with backend.planning("tpu"):
    step = step_lib.trace_step(tasks.make(config), config, mesh_lib.make_mesh(2, 4))
    found, count = carried(step.lower().compile().as_text())
  assert count > 50, "weights are gathered"
  assert not {c for c in found if not _is_lookup(*c)}
