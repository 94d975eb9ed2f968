"""The command of training, evaluation and planning.

  python -m unilip_jax.main --config=configs/stage2.py:tiny --workdir=DIR [--config.total_steps=100 ...]
  python -m unilip_jax.main --config=configs/stage2.py:1b --workdir=DIR --mode=eval
  python -m unilip_jax.main --config=configs/gen2.py:1b --workdir=DIR --mode=plan --topology=v5e:16x16
  python -m unilip_jax.main ... --multihost      # on every host of a TPU pod, in srun
  python -m unilip_jax.main ... --coordinator=HOST:PORT --process_count=N --process_index=I

The part after the colon is the size (tiny | 1b | 3b). Rerunning a command continues its workdir.
One command at a time trains or evaluates in a workdir: a second one is refused (common/locks.py).
Exit status: 0 finished, 1 failed, 75 stopped by a signal or by the loss of another host: run it again.
"""

import contextlib
import sys
import time

from absl import app, flags, logging

from unilip_jax.common import errors, locks, paths
from unilip_jax.configs import checks, flag, roots
from unilip_jax.multihost import flags as multihost_flags
from unilip_jax.plan import flags as plan_flags

_STARTED = time.time()  # before the imports that take seconds
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; local or gs://.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "plan"], "What to do.")
flags.mark_flags_as_required(["config", "workdir"])
for _module in (flag, multihost_flags, plan_flags):
  flags.adopt_module_key_flags(_module)  # --help lists their flags too


def _main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise ValueError(f"unexpected arguments: {argv[1:]}")
  checks.check(flag.CONFIG.value)
  config = roots.apply(flag.CONFIG.value)
  if config.data.own:
    from unilip_jax.data.own import apply as own_data

    own_data.apply(config, _WORKDIR.value)
  paths.output_folder(_WORKDIR.value, "--workdir")
  # JAX is imported once the command line is known to be right: --help and mistakes are answered at once.
  from unilip_jax.multihost import preemption, session

  arguments = multihost_flags.common_arguments(sys.argv[1:])
  with session.joined(multihost_flags.options(), arguments, errors.explain):
    _run(config)
  if preemption.stopped():
    sys.exit(errors.AGAIN)


def _run(config) -> None:
  from unilip_jax.multihost import session
  from unilip_jax.ops import backend

  backend.configure(config.compilation_cache, config.float32_matmul_precision)
  logging.info("%s", session.description())
  workdir = paths.absolute(_WORKDIR.value, "--workdir")  # orbax takes absolute paths only
  if _MODE.value == "plan":
    return plan_flags.run(config, workdir)
  # Process 0 holds the lock of a run of several processes.
  with locks.workdir(workdir) if session.index() == 0 else contextlib.nullcontext():
    if _MODE.value == "train":
      from unilip_jax import train

      train.train(config, workdir, started=_STARTED)
    else:
      from unilip_jax import evaluate

      evaluate.evaluate_checkpoint(config, workdir)


def run() -> None:
  """Runs the command line; a user error prints as one message, without a stack trace."""
  errors.run_command(lambda: app.run(_main, flags_parser=flag.parse))


if __name__ == "__main__":
  run()
