"""Compares int8 with floating-point weights: loss of quality, and savings in time and memory.

  python -m benchmarks.int8                                    # the included tiny model on this machine
  python -m benchmarks.int8 --size=1b --dtype=bfloat16         # random weights, on a GPU or TPU
  python -m benchmarks.int8 --topology=v5e:2x2                 # decode steps at 1b and 3b, compiled only

On this machine: answers per second and images per second with both, taking turns, and the memory of the
weights; at tiny size also automatic scores on test scenes with both (--examples of each ability).
With --topology a loop that decodes 64 tokens, each of which reads every weight of the LLM, is compiled for
one chip of that TPU (pip install -r requirements-plan.txt; no TPU is used): memory by the compiler, and
time per token from the traffic of the scheduled program. Writes int8_<size>_<dtype>_<device>.json or
int8_<topology>.json to benchmarks/results.
"""

import argparse
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, jax_networks
from unilip_jax.infer import model as infer
from unilip_jax.models import presets, quantization, qwen2, unilip
from unilip_jax.ops import backend
from unilip_jax.shapes import captions, edits, questions, render, tars, verify

_KINDS = ("float", "int8")
_SIZES = ("1b", "3b")
_CACHE = 1024  # tokens a row that a compiled decode step can look back at
_TOKENS = 64  # that it generates


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", default="tiny", choices=presets.SIZES)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--batch_sizes", default="1,8", help="comma-separated")
  parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
  parser.add_argument("--examples", type=int, default=240, help="of each ability, at tiny size")
  parser.add_argument("--repeats", type=int, default=9)
  parser.add_argument("--threads", type=int, default=1, help="cores on a CPU; with one, CPU time counts")
  parser.add_argument("--topology", default="", help="compile only, e.g. v5e:2x2")
  args = parser.parse_args()
  sizes = tuple(map(int, args.batch_sizes.split(",")))
  if args.topology:
    rows = [_compiled(size, batch, kind, args.topology)
            for size in _SIZES for batch in sizes for kind in _KINDS]
    name = args.topology.replace(":", "_")
  else:
    if jax.default_backend() == "cpu":
      harness.pin(args.threads)
    params, dims = jax_networks.weights_of(args.size, args.dtype)
    params = jax.tree.map(lambda x: jnp.asarray(x, args.dtype), params)
    make = lambda kind, batch: jax_networks.model(
        params, dims, args.dtype, batch_size=batch, int8=kind == "int8")
    rows = [_memory(kind, params) for kind in _KINDS]
    if args.size == "tiny":
      rows += [row for kind in _KINDS for row in _scores(kind, make(kind, 8), args.examples)]
    rows += [row for batch in sizes
             for row in _speed({kind: make(kind, batch) for kind in _KINDS}, batch, args)]
    name = f"{args.size}_{args.dtype}_{harness.label()}"
  harness.write(f"benchmarks/results/int8_{name}.json", "int8", vars(args), rows)


# ---- on this machine


def _memory(kind: str, params: dict[str, Any]) -> dict[str, Any]:
  stored = jax.eval_shape(quantization.quantize, params) if kind == "int8" else params
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(stored))
  return harness.row(f"weights, {kind}", [size], "bytes")


def _scores(kind: str, model: infer.UniLIP, count: int) -> list[dict[str, Any]]:
  """Computes shares of correct test examples: questions of all types, reconstructions, prompts, edits."""
  scenes = [captions.sample_scene(0, i, "test") for i in range(count)]
  images = [render.render(scene) for scene in scenes]
  candidates = [list(questions.questions(s, np.random.default_rng((0, i)))) for i, s in enumerate(scenes)]
  asked = [them[i % len(them)] for i, them in enumerate(candidates)]
  answers = model.chat(images, [q.text for q in asked], max_new_tokens=8)
  outputs = model.reconstruct(images, output="array")
  error = np.mean([(a / 255.0 - b / 255.0) ** 2 for a, b in zip(outputs, images)], axis=(1, 2, 3))
  wanted = [c for category in captions.CATEGORIES
            for c in captions.prompts(category, count // len(captions.CATEGORIES), 0, "test")]
  samples = model.generate([c.text for c in wanted], guidance=2.0, output="array")
  changes = [tars.sample_edit(0, i, "test") for i in range(count)]
  edited = model.edit([render.render(e.source) for e in changes], [e.instruction for e in changes],
                     guidance=2.0, output="array")
  marks = {
      "questions": np.mean([questions.correct(q, a) for q, a in zip(asked, answers)]),
      "reconstructed scenes": np.mean([verify.verify(m) == s for m, s in zip(outputs, scenes)]),
      "prompts shown": np.mean([captions.fits(c, verify.verify(m)) for c, m in zip(wanted, samples)]),
      "edits made": np.mean([bool(edits.score(e, verify.verify(m))[0])
                             for e, m in zip(changes, edited)])}
  rows = [harness.row(f"{name}, {kind}", [value], "share") for name, value in marks.items()]
  return [*rows, harness.row(f"PSNR, {kind}", [np.mean(-10 * np.log10(error))], "dB")]


def _speed(models, batch: int, args: argparse.Namespace) -> list[dict[str, Any]]:
  one_core = jax.default_backend() == "cpu" and args.threads == 1
  clock = time.process_time if one_core else time.perf_counter
  ask = ["describe the image."] * batch
  calls = {
      (f"chat, {args.new} new tokens, batch {batch}", "answers/s"):
          lambda m: m.chat(None, ask, max_new_tokens=args.new),
      (f"generate, 20 steps, batch {batch}", "images/s"):
          lambda m: m.generate(["a red circle"] * batch, guidance=2.0)}
  rows = []
  for (name, unit), call in calls.items():
    seconds = harness.interleave(
        {kind: functools.partial(call, model) for kind, model in models.items()},
        repeats=args.repeats, clock=clock)
    rows += harness.compared(name, seconds, {}, work=batch, unit=unit, first="int8")
  return rows


# ---- compiled only


def _compiled(size: str, batch: int, kind: str, where: str) -> dict[str, Any]:
  """Estimates decoding with the LLM in bfloat16 on one chip of a topology."""
  from unilip_jax.plan import hlo, timing, topology

  found = topology.parse(where)
  here = topology.one_chip(found)
  with backend.planning("tpu", found.chip.device_kind):
    dims = presets.get(size).unilip
    network = unilip.Unilip(dims, jnp.bfloat16)

    def weights(key):
      llm = network.llm.init(key, jnp.zeros((1, 1), jnp.int32), method="everything")["params"]
      llm = {"llm": jax.tree.map(lambda x: x.astype(jnp.bfloat16), llm)}
      return quantization.quantize(llm) if kind == "int8" else llm

    def cache():
      d = dims.llm
      shape = (d.depth, batch, _CACHE, d.kv_heads, d.head_dim)
      return qwen2.Cache(jnp.zeros(shape, jnp.bfloat16), jnp.zeros(shape, jnp.bfloat16),
                         jnp.ones((batch, _CACHE), jnp.bool_), jnp.int32(_CACHE // 2))

    place = lambda tree: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)
    params = place(jax.eval_shape(weights, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((batch, 1), jnp.int32, sharding=here)
    valid = jax.ShapeDtypeStruct((batch, 1), jnp.bool_, sharding=here)

    def decode(params, tokens, valid, cache):
      def step(carry, _):
        logits, cache = network.answer_step(params, carry[0], valid, carry[1])
        likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)[:, None]
        return (likeliest, cache), likeliest

      return jax.lax.scan(step, (tokens, cache), length=_TOKENS)

    compiled = jax.jit(decode, donate_argnums=3).lower(
        params, tokens, valid, place(jax.eval_shape(cache))).compile()
  memory = compiled.memory_analysis()
  work = timing.work(hlo.Program(compiled.as_text()), found.chip)
  stored = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
  row = harness.row(f"a token of {size}'s LLM, batch {batch}, {kind}", [work.roofline / _TOKENS * 1e3],
                    "ms, estimated")
  return row | {"weights_bytes": stored, "arguments_bytes": int(memory.argument_size_in_bytes),
                "temporaries_bytes": int(memory.temp_size_in_bytes),
                "hbm_bytes_per_token": work.hbm_bytes / _TOKENS}


if __name__ == "__main__":
  main()
