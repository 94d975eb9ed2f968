"""The list for a GPU keeps to its time, needs few packages and continues; failures cost others nothing."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import gpu, steps, train_step
from unilip_jax import tasks
from unilip_jax.models import presets
from unilip_jax.ops import attention, backend

# Of requirements.txt, what machines with JAX and PyTorch often lack.
_ABSENT = ("ml_collections", "grain", "array_record", "simplejpeg", "google_crc32c", "gcsfs",
           "tensorflow_datasets", "tensorboardX")


def _python(name, code, seconds=30.0):
  return name, [sys.executable, "-c", code], seconds


def test_a_command_that_hangs_or_fails_costs_the_others_nothing():
  saved = []
  outcomes = gpu.run_all(
      [_python("hangs", "import time; print('begun', flush=True); time.sleep(60)", 1.0),
       _python("fails", "raise SystemExit(3)"), _python("works", "print('made')")],
      60.0, lambda found: saved.append(len(found)))
  assert [o["outcome"] for o in outcomes] == ["ended after 1 s", "status 3", "done"]
  assert "begun" in outcomes[0]["output"]
  assert "made" in outcomes[2]["output"]
  assert saved == [1, 2, 3]


def test_what_finds_no_time_is_named():
  outcomes = gpu.run_all(
      [_python("first", "import time; time.sleep(60)"), _python("second", "")], 0.5, lambda found: None)
  assert outcomes[0]["outcome"].startswith("ended")
  assert outcomes[1]["outcome"] == "no time was left"


@pytest.mark.parametrize(
    "entry", [e for e in gpu.ENTRIES if e.arguments.startswith("train_step")], ids=lambda e: e.name)
def test_every_training_entry_names_a_config(entry):
  args = train_step.parser().parse_args(entry.command("1b", "bfloat16", pathlib.Path("out"))[2:])
  for stage in args.stages.split(","):
    for _, _, remat in train_step.sides(args):
      config = steps.make_config(
          stage, args.size, dtype=args.dtype, batch_size=args.batch_size, remat=remat,
          cached_latents=args.cached_latents, fields=args.set)
      assert config.batch_size == args.batch_size


def test_the_most_telling_runs_take_the_first_540_seconds():
  names, limits = zip(*[(entry.name, entry.seconds) for entry in gpu.ENTRIES])
  assert names[:4] == ("gen2", "stage448", "sample 20 steps", "sample 4 steps")
  assert sum(limits[:4]) <= 540
  assert "convolutions" in names


def _main(monkeypatch, out, *arguments):
  monkeypatch.setattr(sys, "argv", [
      "gpu", f"--out={out}", "--size=tiny", "--dtype=float32", "--budget=500", *arguments])
  gpu.main()
  return json.loads((out / "runs.json").read_text())


def test_what_is_done_is_left_out_of_the_next_call(tmp_path, monkeypatch):
  count, works = tmp_path / "count", tmp_path / "works"
  code = f"p=__import__('pathlib').Path; p({str(count)!r}).open('a').write('x')"
  fails = f"raise SystemExit(not __import__('os').path.exists({str(works)!r}))"
  commands = {"first": ["-c", code], "second": ["-c", fails]}
  monkeypatch.setattr(gpu, "ENTRIES", [gpu.Entry(name, "", 30.0) for name in commands])
  monkeypatch.setattr(gpu.Entry, "command", lambda entry, *_: commands[entry.name])
  outcomes = lambda runs: [(one["name"], one["outcome"]) for one in runs]
  assert outcomes(_main(monkeypatch, tmp_path)) == [("first", "done"), ("second", "status 1")]
  works.touch()
  assert outcomes(_main(monkeypatch, tmp_path)) == [("first", "done"), ("second", "done")]
  assert count.read_text() == "x"
  _main(monkeypatch, tmp_path, "--again")
  assert count.read_text() == "xx"


@pytest.mark.slow
def test_a_step_runs_without_absent_packages_and_is_not_compiled_again(tmp_path, monkeypatch):
  blocked = tmp_path / "blocked"
  blocked.mkdir()
  (blocked / "sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({_ABSENT!r}))\n")
  monkeypatch.setenv("PYTHONPATH", str(blocked))
  monkeypatch.setattr(gpu, "ENTRIES", [gpu.Entry(
      "gen2", "train_step --size={size} --dtype={dtype} --stages=gen2 --batch_size=16 --repeats=1 "
      "--warmup=0 --torch= --out={results}/gen2.json", 400.0)])
  rows = []
  for _ in range(2):
    runs = _main(monkeypatch, tmp_path, "--again")
    assert [one["outcome"] for one in runs] == ["done"], runs[0]["output"]
    rows += json.loads((tmp_path / "gen2.json").read_text())["rows"]
  assert [row["stage"] for row in rows] == ["gen2", "gen2"]
  assert all(row["median"] > 0 for row in rows)
  assert [row["compiled_before"] for row in rows] == [False, True]
  assert rows[1]["compile_seconds"] < rows[0]["compile_seconds"]


def test_the_side_of_pytorch_needs_no_more_than_diffusers():
  code = (f"import sys; sys.modules.update(dict.fromkeys({_ABSENT!r}))\n"
          "from benchmarks import chat, convolutions, sample, tokenizer, torch_steps, upsampling")
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr


def test_the_step_of_gen2_for_a_gpu_has_masks_in_the_queries_pass_alone(monkeypatch):
  cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91900)
  monkeypatch.setattr(cudnn, "check_is_flash_attention", lambda *args, **options: None)
  monkeypatch.setattr(attention, "_device_fuses", lambda: True)
  monkeypatch.setattr(backend, "name", lambda: "gpu")
  config = steps.make_config("gen2", "1b", batch_size=32, fields=["data.part_multiple=8"])
  task = tasks.make(config)
  state = jax.eval_shape(
      lambda key: task.make_state(task.init_modules(key), jnp.uint32(0)), jax.random.key(0))
  batch = steps.make_batch(config, presets.get("1b"))
  jax.clear_caches()
  text = jax.jit(task.train_step).trace(state, batch).lower(lowering_platforms=("cuda",)).as_text()
  jax.clear_caches()
  calls = [line for line in text.splitlines() if "__cudnn$" in line]
  assert any("fmhaSoftmaxBackward" in call for call in calls)
  masked = {re.search(r": \(tensor<(\w+)x", call)[1] for call in calls if "ScaleBias" in call}
  queries = presets.get("1b").connector.queries
  assert masked == {f"{count}x{queries}x14x64" for count in (24, 8)}
  kinds = {re.search("mask_type[^A-Z]+([A-Z_]+)", call)[1] for call in calls if "ScaleBias" not in call}
  assert kinds == {"NO_MASK", "PADDING", "PADDING_CAUSAL"}
