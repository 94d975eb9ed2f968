"""Eight CPU devices, strict rank promotion, and the recorded official runs as a fixture."""

import gc
import logging
import os
import pathlib

from tests import cpu_devices

# Tracing makes many small objects. At Python's thresholds a fifth of its time is the collector's, which
# walks over all that JAX keeps each time.
gc.set_threshold(50_000, 20, 20)

# Before JAX starts: tests of sharding need several devices, and a test never takes a GPU by surprise.
if "UNILIP_TEST_ON_ACCELERATOR" not in os.environ:
  os.environ["JAX_PLATFORMS"] = "cpu"
  flags = os.environ.get("XLA_FLAGS", "")
  if "xla_force_host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} {cpu_devices.xla_flags(8)}".strip()

from absl import logging as absl_logging
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
os.environ["UNILIP_PROGRAM_STORE"] = "0"  # functions that a test replaces must be traced
_CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR")
if not _CACHE:
  jax.config.update("jax_enable_compilation_cache", False)  # no test fills the folder of a user
else:
  jax.config.update("jax_compilation_cache_dir", _CACHE)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 2.0)

# Tests compile for longer than they compute: most files take half of the time without most optimisations.
# Sums are less accurate then; modules that need accurate ones have the mark `optimized`.
_OPTIMIZED = bool(os.environ.get("UNILIP_TEST_OPTIMIZED"))
jax.config.update("jax_disable_most_optimizations", not _OPTIMIZED)

# The files that take longest, which run first.
_LONGEST = (
    "evaluate_test.py", "models/quantization_test.py", "shapes/pretrained_test.py",
    "sharding/collectives_test.py", "sharding/training_test.py", "tasks/", "train_aspect_test.py",
    "train_few_step_test.py", "train_generation_test.py",
    "train_test.py", "training/profiling_test.py", "training/target_latents_test.py")
_TESTS = pathlib.Path(__file__).parent


@pytest.fixture(scope="session")
def golden(tmp_path_factory) -> pathlib.Path:
  """Folder with the recorded runs of the official PyTorch code: tests/golden, unpacked.

  $UNILIP_GOLDEN names the folder of the complete recordings, which hold more positions of large arrays.
  """
  if complete := os.environ.get("UNILIP_GOLDEN"):
    folder = pathlib.Path(complete)
    if not (folder / "ckpt").is_dir():
      raise FileNotFoundError(f"UNILIP_GOLDEN={complete}: no folder of recorded runs")
    return folder
  from tests.golden import unpack

  return unpack.unpack(tmp_path_factory.mktemp("golden"))


@pytest.fixture(autouse=True)
def _logs():
  """Undoes what commands change about logging, which belongs to the process."""
  loggers, handler = (logging.root, absl_logging.get_absl_logger()), absl_logging.get_absl_handler()
  verbosity, levels = absl_logging.get_verbosity(), [each.level for each in loggers]
  is_there = handler in logging.root.handlers
  yield
  if not is_there:
    logging.root.removeHandler(handler)
  absl_logging.set_verbosity(verbosity)
  for each, level in zip(loggers, levels):
    each.setLevel(level)


@pytest.fixture(scope="module", autouse=True)
def _compiler(request):
  """Compiles with all optimisations in a module that is marked `optimized`."""
  if not request.node.get_closest_marker("optimized"):
    yield
    return
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", not _OPTIMIZED)


def pytest_collection_finish():
  """Spares the collector all that the imports made: no collection frees it."""
  gc.collect()
  gc.freeze()


def pytest_collection_modifyitems(config, items):
  """Leaves out what opts in, and puts the longest files first: workers then end at about the same time."""
  absent = [mark for mark in ("fullsize", "thorough", "campaign") if mark not in config.option.markexpr]
  left_out = [item for item in items if any(map(item.get_closest_marker, absent))]
  config.hook.pytest_deselected(items=left_out)
  items[:] = [item for item in items if item not in left_out]
  items.sort(key=lambda item: not item.path.relative_to(_TESTS).as_posix().startswith(_LONGEST))
