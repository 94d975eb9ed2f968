"""The one command of training and evaluation.

  python -m unilip_jax.main --config=configs/stage2.py:tiny --workdir=DIR [--config.total_steps=100 ...]
  python -m unilip_jax.main --config=configs/stage2.py:1b --workdir=DIR --mode=eval
  python -m unilip_jax.main --config=configs/gen2.py:1b --workdir=DIR --mode=plan --topology=v5e:16x16
  python -m unilip_jax.main ... --multihost      # on every host of a TPU pod, in srun
  python -m unilip_jax.main ... --coordinator=HOST:PORT --process_count=N --process_index=I

The part after the colon is the size (tiny | 1b | 3b). Rerunning a command continues its workdir.
Exit status: 0 finished, 1 an error of one's own, 75 stopped by a notice or by another host: run it again.
"""

import difflib
import logging as stdlib_logging
import os
import pathlib
import sys
import traceback

from absl import app, flags, logging
import jax
from ml_collections import config_flags

from unilip_jax import hosts, preemption, rendezvous, watch
from unilip_jax.ops import backend

# The stage files import each other as `configs.*`, from any working directory.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

_CONFIG = config_flags.DEFINE_config_file("config", None, "Stage file and size.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; local or gs://.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "plan"], "What to do.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", "", "plan: the devices, e.g. v5e:16x16, v5p:4x4x4, v5e:16x16*2 (slices), h100:8.")
_SWEEP = flags.DEFINE_bool("sweep", False, "plan: try batch sizes, meshes and remat, recommend one.")
_SWEEP_TRIES = flags.DEFINE_integer("sweep_tries", 12, "plan: settings to try.", lower_bound=1)
_CODEGEN = flags.DEFINE_bool(
    "codegen", False, "plan: compile to machine code, for the compiler's own estimates of time; slow.")
_PLAN_TIMEOUT = flags.DEFINE_float("plan_timeout", 3600.0, "plan: seconds for one compilation.")
_MULTIHOST = flags.DEFINE_bool(
    "multihost", None, "Many hosts, found by JAX: TPU pod, SLURM, Open MPI, Kubernetes. Default: only on a "
    "TPU pod that says so itself ($TPU_WORKER_HOSTNAMES).")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", os.environ.get("UNILIP_COORDINATOR", ""),
    "Many hosts without a cluster: HOST:PORT of process 0, the same on all ($UNILIP_COORDINATOR).")
_PROCESS_COUNT = flags.DEFINE_integer(
    "process_count", os.environ.get("UNILIP_PROCESS_COUNT"),
    "Number of processes, with --coordinator ($UNILIP_PROCESS_COUNT).")
_PROCESS_INDEX = flags.DEFINE_integer(
    "process_index", os.environ.get("UNILIP_PROCESS_INDEX"),
    "Number of this process, from 0, with --coordinator ($UNILIP_PROCESS_INDEX).")
_START_TIMEOUT = flags.DEFINE_float(
    "start_timeout", 300.0, "Seconds until all processes must have come.", lower_bound=1.0)
_SILENCE_TIMEOUT = flags.DEFINE_float(
    "silence_timeout", 100.0,
    "Seconds without a sign of life after which a process counts as dead and the others end.",
    lower_bound=2.0)
_WAIT_TIMEOUT = flags.DEFINE_float(
    "wait_timeout", 1800.0,
    "Seconds that processes wait for one another: for a step, an evaluation batch, a save.",
    lower_bound=2.0)
flags.mark_flags_as_required(["config", "workdir"])


def _hosts_options() -> watch.Options:
  return watch.Options(
      _MULTIHOST.value, _COORDINATOR.value, _PROCESS_COUNT.value, _PROCESS_INDEX.value,
      _START_TIMEOUT.value, _SILENCE_TIMEOUT.value, _WAIT_TIMEOUT.value)


def _common_arguments(argv: list[str]) -> list[str]:
  """What all processes are started with alike."""
  own = ("--process_index", "--coordinator")
  return [a for before, a in zip(["", *argv], argv)
          if a.split("=")[0] not in own and before not in own]


def _quieten_orbax() -> None:
  """Keeps orbax' many progress notes out of the log; its warnings stay."""
  class Filter(stdlib_logging.Filter):

    def filter(self, record):
      return record.levelno >= stdlib_logging.WARNING or "/orbax/" not in record.pathname

  logging.get_absl_handler().addFilter(Filter())


def _main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  config = _CONFIG.value
  _quieten_orbax()
  with hosts.joined(_hosts_options(), _common_arguments(sys.argv[1:]), _explain):
    _work(config)
  if preemption.stopped():
    sys.exit(watch.AGAIN)


def _work(config) -> None:
  backend.keep_compiled(config.compilation_cache)
  jax.config.update("jax_default_matmul_precision", config.float32_matmul_precision)
  logging.info("process %d of %d, devices: %s", jax.process_index(), jax.process_count(),
               ", ".join(str(d) for d in jax.local_devices()))
  workdir = _WORKDIR.value
  if "://" not in workdir:  # orbax takes absolute paths only
    workdir = os.path.abspath(os.path.expanduser(workdir))
  # Heavy imports after flags are parsed, so that --help and misspelt fields answer at once.
  if _MODE.value == "train":
    from unilip_jax import train
    train.train(config, workdir)
  elif _MODE.value == "plan":
    from unilip_jax.plan import run as plan
    plan.run(config, workdir, _TOPOLOGY.value, sweep=_SWEEP.value, tries=_SWEEP_TRIES.value,
             codegen=_CODEGEN.value, timeout=_PLAN_TIMEOUT.value)
  else:
    from unilip_jax import evaluate
    evaluate.evaluate_checkpoint(config, workdir)


def _fields(config, prefix="config.") -> list[str]:
  names = []
  for key, value in config.items():
    names.append(prefix + key)
    if hasattr(value, "items"):
      names += _fields(value, f"{prefix}{key}.")
  return names


def _refuse_unknown_fields(argv: list[str]) -> None:
  """Checks `--config.x=...` before absl does, whose message is a stack trace.

  Raises:
    ValueError: naming the field and the nearest one.
  """
  source = next((a.split("=", 1)[1] for a in argv if a.startswith("--config=")), None)
  if source is None:
    return
  path, _, size = source.partition(":")
  if not pathlib.Path(path).is_file():
    raise ValueError(f"--config={source}: no such file {path}")
  if size and size not in ("tiny", "1b", "3b"):
    raise ValueError(f"--config={source}: unknown size {size!r}; choose tiny, 1b or 3b")
  namespace: dict = {"__name__": "config", "__file__": path}
  exec(compile(pathlib.Path(path).read_text(), path, "exec"), namespace)
  fields = _fields(namespace["get_config"](*([size] if size else [])))
  for arg in argv:
    if arg.startswith("--config."):
      name = arg[2:].split("=", 1)[0]
      if name not in fields:
        near = difflib.get_close_matches(name, fields, n=1, cutoff=0.0)[0]
        raise ValueError(f"--{name}: no such field in {path}; the nearest is --{near}")


def _explain(error: BaseException) -> str:
  """What is the user's to mend as one message; all else as a stack trace."""
  if isinstance(error, (ValueError, FileNotFoundError)) and not os.environ.get("UNILIP_TRACEBACK"):
    return f"error: {error}\n(set UNILIP_TRACEBACK=1 for the stack trace)"
  return "".join(traceback.format_exception(error))


def run(argv: list[str] | None = None) -> None:
  """Parses flags and runs; what is the user's to mend prints as one message, without a stack trace."""
  argv = sys.argv if argv is None else argv
  try:
    _refuse_unknown_fields(argv[1:])
    app.run(_main, argv=argv)
  except rendezvous.AbsentError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(watch.AGAIN)
  except (ValueError, FileNotFoundError) as error:
    if os.environ.get("UNILIP_TRACEBACK"):
      raise
    sys.exit(_explain(error))


if __name__ == "__main__":
  run()
