"""A compiled program's text is parsed correctly: loops times their trips, fusions by what they read."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unilip_jax.plan import chips, collectives, hlo, memory, timing, topology

# The forms that the TPU compiler writes, shortened.
_TEXT = (pathlib.Path(__file__).parent / "program.hlo.txt").read_text()


@pytest.fixture(scope="module")
def program():
  return hlo.Program(_TEXT)


def test_collectives_count_every_trip_and_the_longest_branch(program):
  found = {(c.kind, c.group): c for c in collectives.find(program)}
  assert len(found) == 4
  gather, reduce, scatter = (found[kind, 4] for kind in ("all-gather", "all-reduce", "reduce-scatter"))
  assert (gather.times, gather.group, gather.bytes) == (4, 4, 64 * 256 * 2)
  assert (reduce.times, reduce.group, reduce.bytes) == (1, 4, 64 * 4)
  assert (scatter.times, scatter.group, scatter.bytes) == (1, 4, 64 * 4)
  spread = found["all-gather", 2]  # named in a loop of four trips as well, but started once
  assert (spread.times, spread.bytes) == (1, 128 * 4)
  assert gather.sent == gather.bytes * 3 / 4
  assert reduce.sent == 2 * reduce.bytes * 3 / 4
  assert scatter.sent == scatter.bytes * 3 / 4


@pytest.mark.parametrize(("text", "size"), [
    ("replica_groups={{0,1},{2,3}}", 2), ("replica_groups=[2,8]<=[16]", 8),
    ("replica_groups=mesh['a'=16,'b'=4] {'a'}", 16), ("replica_groups=mesh['a'=16,'b'=4] {'a','b'}", 64),
    ("replica_groups=mesh['a'=16] {'a':(2)8}", 8), ("source_target_pairs={{0,1},{1,0}}", 2)])
def test_group_sizes_in_every_notation(text, size):
  assert collectives.group_size(f", channel_id=1, {text}, to_apply=%add") == size


def test_work_counts_dots_and_the_slice_of_stacked_weights(program):
  work = timing.work(program, chips.CHIPS["v5e"])
  assert work.flops == 4 * 2 * 16 * 256 * 128
  assert work.cycles == 4 * 1500
  sliced = 4 * (128 * 256 * 2 + 4)  # a trip reads its layer of the stacked weights, and its index
  counting = 4 * (4 + 4 + 4)  # the addition of every trip, two operands and a result
  image, vector = 4 * 128 * 256 * 2, 64 * 4
  others = counting + 2 * image + 2 * vector + (image + 2 * vector) + (vector + 16 * 4) + vector
  assert work.hbm_bytes == sliced + others
  assert work.roofline == pytest.approx(work.hbm_bytes / 819e9, rel=1e-6)


_NESTED = """HloModule nested

%slicing (stack: bf16[24,64,128], layer: s32[]) -> bf16[64,128,1] {
  %stack = bf16[24,64,128]{2,1,0} parameter(0)
  %layer = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = bf16[1,64,128]{2,1,0} dynamic-slice(%stack, %layer, %zero, %zero), dynamic_slice_sizes={1,64,128}
  ROOT %turned = bf16[64,128,1]{1,0,2} bitcast(%one)
}

%product (stack.1: bf16[24,64,128], layer.1: s32[], x: bf16[2,16,64]) -> bf16[2,16,128] {
  %x = bf16[2,16,64]{2,1,0} parameter(2)
  %stack.1 = bf16[24,64,128]{2,1,0} parameter(0)
  %layer.1 = s32[] parameter(1)
  %kernel = bf16[64,128,1]{1,0,2} fusion(%stack.1, %layer.1), kind=kLoop, calls=%slicing
  ROOT %y = bf16[2,16,128]{2,1,0} convolution(%x, %kernel), window={size=1}, dim_labels=0bf_io0->0bf
}

ENTRY %main (weights: bf16[24,64,128], index: s32[], rows: bf16[2,16,64]) -> bf16[2,16,128] {
  %weights = bf16[24,64,128]{2,1,0} parameter(0)
  %index = s32[] parameter(1)
  %rows = bf16[2,16,64]{2,1,0} parameter(2)
  ROOT %out = bf16[2,16,128]{2,1,0} fusion(%weights, %index, %rows), kind=kOutput, calls=%product
}
"""


def test_a_slice_inside_a_fusion_of_a_fusion_is_read_and_no_more():
  work = timing.work(hlo.Program(_NESTED), chips.CHIPS["v5e"])
  assert work.flops == 2 * 2 * 16 * 128 * 64
  assert work.hbm_bytes == 64 * 128 * 2 + 4 + 2 * 16 * 64 * 2 + 2 * 16 * 128 * 2


_FLOAT32 = """HloModule precise

ENTRY %main (a: f32[4096,4096], b: f32[4096,4096]) -> f32[4096,4096] {
  %a = f32[4096,4096]{1,0} parameter(0)
  %b = f32[4096,4096]{1,0} parameter(1)
  ROOT %y = f32[4096,4096]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}, PRECISION
}
"""


@pytest.mark.parametrize(("precision", "passes"), [("default", 1), ("high", 3), ("highest", 6)])
def test_multiplications_of_float32_take_the_passes_of_their_precision(precision, passes):
  text = _FLOAT32.replace("PRECISION", f"operand_precision={{{precision},{precision}}}")
  assert timing.work(hlo.Program(text), chips.CHIPS["v5e"]).roofline == pytest.approx(
      passes * 2 * 4096**3 / 197e12)


def test_tf32_takes_twice_the_time_of_bfloat16_and_no_more_than_float32():
  for chip in (c for c in chips.CHIPS.values() if c.kind == "gpu"):
    assert chip.rate("highest") <= chip.rate("high") == pytest.approx(chip.rate("") / 2, rel=2e-3)


# An int8 stack, whose tiles change inside the fusion, two fusions deep, before a layer is sliced off.
_RELAYOUT = _NESTED.replace("bf16[24,64,128]", "s8[24,64,128]").replace(
    "%one = bf16[1,64,128]", "%one = s8[1,64,128]").replace(
    "%turned = bf16[64,128,1]", "%turned = s8[64,128,1]").replace(
    "%kernel = bf16[64,128,1]", "%kernel = s8[64,128,1]").replace(
    "dynamic-slice(%stack,", "dynamic-slice(%tiled,").replace(
    "  %one =", """  %tiled = s8[24,64,128]{2,1,0} fusion(%stack), kind=kLoop, calls=%retiled
  %one =""")
_RELAYOUT = _RELAYOUT.replace("%slicing (", """%copied (input: s8[24,64,128]) -> s8[24,64,128] {
  %input = s8[24,64,128]{2,1,0} parameter(0)
  ROOT %copy = s8[24,64,128]{2,1,0} copy(%input)
}

%retiled (input.1: s8[24,64,128]) -> s8[24,64,128] {
  %input.1 = s8[24,64,128]{2,1,0} parameter(0)
  %inner = s8[24,64,128]{2,1,0} fusion(%input.1), kind=kLoop, calls=%copied
  ROOT %same = s8[24,64,128]{2,1,0} bitcast(%inner)
}

%slicing (""", 1)


def test_tiles_that_change_inside_a_fusion_move_nothing():
  program = hlo.Program(_RELAYOUT)
  assert {"copied", "retiled"} <= program.computations.keys()
  assert timing.work(program, chips.CHIPS["v5e"]).hbm_bytes == (
      64 * 128 + 4 + 2 * 16 * 64 * 2 + 2 * 16 * 128 * 2)


def test_a_fusion_that_only_copies_reads_and_writes_all_of_it():
  text = _RELAYOUT.split("%retiled")[0] + """ENTRY %main (w: s8[24,64,128]) -> s8[24,64,128] {
  %w = s8[24,64,128]{2,1,0} parameter(0)
  ROOT %out = s8[24,64,128]{2,1,0} fusion(%w), kind=kLoop, calls=%copied
}
"""
  assert timing.work(hlo.Program(text), chips.CHIPS["v5e"]).hbm_bytes == 2 * 24 * 64 * 128


def test_loops_that_the_compiler_unrolled_have_fewer_trips(program):
  loop = next(i for i in program.computations[program.entry] if i.op == "while")
  assert program.trips(loop) == 4  # 0, 2, 4, 6
  for bound, stride, first, trips in ((7, 1, 2, 5), (8, 3, 0, 3)):
    text = _TEXT.replace("constant(8)", f"constant({bound})").replace("constant(2)", f"constant({stride})")
    text = text.replace("%first = s32[]{:T(128)} constant(0)",
                        f"%first = s32[]{{:T(128)}} constant({first})")
    changed = hlo.Program(text)
    assert changed.trips(next(i for i in changed.computations[changed.entry] if i.op == "while")) == trips


def test_elements_that_operands_name_count_as_those_with_a_line_of_their_own(program):
  """libtpu 0.0.50 writes %loop#1 where earlier ones wrote a get-tuple-element."""
  text, line = _TEXT, re.compile(r"\n +%(\S+) = \S+ get-tuple-element\(%(\S+)\), index=(\d+).*")
  assert len(line.findall(text)) == 3
  while found := line.search(text):
    name, source, index = found.groups()
    text = re.sub(rf"%{re.escape(name)}(?![\w.\-])", f"%{source}#{index}", text.replace(found[0], "", 1))
  short = hlo.Program(text)
  assert collectives.find(short) == collectives.find(program)
  assert timing.work(short, chips.CHIPS["v5e"]) == timing.work(program, chips.CHIPS["v5e"])


def test_a_loop_of_unknown_length_is_refused():
  with pytest.raises(ValueError, match="trip count of loop loop is unknown"):
    list(hlo.Program(_TEXT.replace("direction=LT", "direction=GT")).walk())
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo.Program("nothing")


def test_buffer_assignments_are_added_up_by_kind():
  report = "\n".join((
      "BufferAssignment:", "allocation 0: size 512, thread-local:", " value: <2 x @0> (size=512)",
      "allocation 1: size 4096, parameter 3, shape |f32[32,32]| at ShapeIndex {}, maybe-live-out:",
      "allocation 2: size 100, parameter 4, shape |s32[25]| at ShapeIndex {}:",
      "allocation 3: size 64, maybe-live-out:", "allocation 4: size 7000, preallocated-temp:",
      "allocation 5: size 9999, color 1, preallocated-temp:"))
  assert memory.assigned_bytes(report) == {"arguments": 4196, "results": 64, "temporaries": 7000}
  with pytest.raises(ValueError, match="names no allocation"):
    memory.assigned_bytes("")


def test_the_compilers_refusal_for_lack_of_memory_is_parsed():
  message = ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
             "Used 25.50G of 15.75G hbm. Exceeded hbm capacity by 9.75G.")
  assert memory.too_large(message) == {"needed": 25.5 * 2**30, "available": 15.75 * 2**30}
  message = ("jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory "
             "required for HLO temporaries (18.28G) exceeds available HBM (15.75G).")
  assert memory.too_large(message) == {"needed": 18.28 * 2**30, "available": 15.75 * 2**30}
  assert memory.too_large("UNIMPLEMENTED: something") is None


@pytest.mark.parametrize(("stride", "pad", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (1, 0, 1)])
def test_convolutions_count_the_taps_that_meet_data(stride, pad, dilation):
  x, w = np.zeros((2, 9, 7, 4), np.float32), np.zeros((3, 3, 4, 8), np.float32)
  fn = lambda x, w: jax.lax.conv_general_dilated(
      x, w, (stride,) * 2, [(pad, pad)] * 2, rhs_dilation=(dilation,) * 2,
      dimension_numbers=("NHWC", "HWIO", "NHWC"))
  text = jax.jit(fn).lower(x, w).compile().as_text()
  parsed = hlo.Program(text)
  instruction = next(i for body in parsed.computations.values() for i in body if i.op == "convolution")
  ones = fn(jnp.ones_like(x), jnp.ones_like(w))  # every output counts its taps × channels
  assert timing.dot_flops(parsed, instruction) == pytest.approx(2 * float(ones.sum()))


def test_slower_networks_add_to_the_time_beyond_a_slice():
  ring = [collectives.Collective("all-reduce", 2**30, 512, 1.0)]
  one, two = topology.parse("v5e:16x16"), topology.parse("v5e:16x16*2")
  inside = [collectives.Collective("all-reduce", 2**30, 256, 1.0)]
  assert collectives.seconds(ring, two) > 1.2 * collectives.seconds(inside, one)
  part = [collectives.Collective("all-gather", 2**30, 16, 1.0)]
  assert collectives.seconds(part, one) > 1.8 * collectives.seconds(
      [collectives.Collective("all-gather", 2**30, 256, 1.0)], one) * 15 / 16
