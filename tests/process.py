"""Runs one process of a short run on several processes.

`python -m tests.process MODE STAGE IMAGES WORKDIR [field=value ...]`

MODE is train or eval. Its place among the others comes from the environment, as for unilip_jax.main
(UNILIP_COORDINATOR and so on). The ids of every batch are appended to
<WORKDIR>/ids-<count>-<index>.jsonl. `sleep=SECONDS` slows the batches down, so that a test can end the
run in the middle.
"""

import ast
import json
import os
import pathlib
import sys

from absl import logging

from tests import micro
from unilip_jax.common import errors
from unilip_jax.multihost import options as options_lib
from unilip_jax.multihost import preemption, session


def _options() -> options_lib.Options:
  return options_lib.Options(
      coordinator=os.environ.get("UNILIP_COORDINATOR", ""),
      process_count=int(os.environ.get("UNILIP_PROCESS_COUNT", 1)),
      process_index=int(os.environ.get("UNILIP_PROCESS_INDEX", 0)),
      start_timeout=120, silence_timeout=float(os.environ.get("SILENCE", 20)), wait_timeout=120)


def _record_ids(workdir: pathlib.Path, options: options_lib.Options) -> None:
  """Appends the ids of every batch that the loop reads to a file."""
  from unilip_jax.data import batch as batch_lib
  from unilip_jax.data import pipeline

  workdir.mkdir(parents=True, exist_ok=True)
  file = workdir / f"ids-{options.process_count}-{options.process_index}.jsonl"
  file.unlink(missing_ok=True)
  following = pipeline.to_device.__next__

  def recorded(self):
    host_batch, placed = following(self)
    with file.open("a") as f:
      f.write(json.dumps(batch_lib.ids(host_batch).tolist()) + "\n")
    return host_batch, placed

  pipeline.to_device.__next__ = recorded


def _run(mode: str, stage: str, images: str, workdir: str, *fields: str) -> None:
  options = _options()
  with session.joined(options, sys.argv[1:], errors.explain):
    from unilip_jax import evaluate, train

    micro.install()
    overrides = {k: ast.literal_eval(v) for k, v in (f.split("=", 1) for f in fields)}
    micro._slow_down(overrides.pop("sleep", 0.0))
    if stage in ("stage1", "stage2"):
      config = micro.config(stage, images, **overrides)
    else:
      config = micro.text_config(stage, **overrides)
    if mode == "eval":
      evaluate.evaluate_checkpoint(config, workdir)
    else:
      _record_ids(pathlib.Path(workdir), options)
      train.train(config, workdir)
  if preemption.stopped():
    sys.exit(errors.AGAIN)


if __name__ == "__main__":
  logging.set_verbosity(logging.INFO)
  _run(*sys.argv[1:])
