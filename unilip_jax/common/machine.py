"""Describes the machine, the code and the command of this process, for records and model cards."""

from importlib import metadata
import os
import pathlib
import platform
import shlex
import subprocess
import sys

from etils import epath
import jax

_ROOT = pathlib.Path(__file__).resolve().parents[2]  # of the checkout, if the package is in one
_LIBRARIES = ("unilip_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_GIT_SECONDS = 10.0


def describe() -> str:
  """Returns cores, processor, JAX's platform and version in one line."""
  return (f"{os.cpu_count()} cores {processor()}, {jax.devices()[0].platform}, "
          f"jax {jax.__version__}")


def processor() -> str:
  """Returns the processor's name if the system gives it, otherwise its architecture."""
  info = epath.Path("/proc/cpuinfo")
  if info.exists():
    for line in info.read_text().splitlines():
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
  """Returns {library: version} of those that training depends on, and Python's."""
  return {"python": platform.python_version()} | {name: metadata.version(name) for name in _LIBRARIES}


def command() -> str:
  """Returns the command line of this process, to be pasted into a shell."""
  interpreter, *words = sys.orig_argv
  if words and os.path.basename(words[0]) == "unilip":
    return shlex.join(["unilip", *words[1:]])
  return shlex.join([os.path.basename(interpreter), *words])


def commit() -> str:
  """Returns the commit of the package's git checkout, with " + changes" if files differ from it.

  "" outside a checkout and without git.
  """
  if not (_ROOT / ".git").exists():
    return ""
  found, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
  return found + (" + changes" if found and changes else "")


def _git(*arguments: str) -> str:
  """Returns what git prints about the checkout; "" if it is absent, fails or is slow."""
  try:
    done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True,
                          check=False, timeout=_GIT_SECONDS)
  except (OSError, subprocess.TimeoutExpired):
    return ""
  return done.stdout.strip() if done.returncode == 0 else ""
