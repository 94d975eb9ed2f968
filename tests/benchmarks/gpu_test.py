"""The list for a GPU keeps to its time, and one that fails or hangs costs the others nothing."""

import shlex
import sys

import pytest

from benchmarks import gpu, steps, train_step


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
  args = train_step.parser().parse_args(shlex.split(entry.arguments)[1:])
  for stage in args.stages.split(","):
    for _, _, remat in train_step.sides(args):
      config = steps.make_config(
          stage, args.size, dtype=args.dtype, batch_size=args.batch_size, remat=remat,
          cached_latents=args.cached_latents, fields=args.set)
      assert config.batch_size == args.batch_size
