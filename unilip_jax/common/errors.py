"""User errors, printed as one message without a stack trace; and the wording that several errors share."""

from collections.abc import Callable, Iterable, Mapping
import errno
import lzma
import os
import pickle
import struct
import sys
import tarfile
import traceback
from typing import Any
import zipfile
import zlib

from unilip_jax.common import accelerators

# These types report wrong arguments, configs, data or files, or a fault of the machine; so does the import
# of a package that is not installed (`is_user_error`). Other types are bugs and keep their stack trace.
USER_ERRORS = (
    ValueError, OSError, OverflowError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error,
    lzma.LZMAError, pickle.UnpicklingError, struct.error)
# The same of libraries that need not be imported: "package.class" of the error's class or one above it.
_LIBRARY_ERRORS = {
    "safetensors.SafetensorError", "PIL.DecompressionBombError", "msgpack.UnpackException",
    "google.GoogleAuthError", "gcsfs.HttpError", "aiohttp.ClientError"}
# Faults of the machine that JAX reports as RuntimeError: {how the message begins: remedy}.
_DEVICE_ERRORS = {
    "RESOURCE_EXHAUSTED":
        "the device is out of memory: lower batch_size, raise grad_accum_steps, mesh.fsdp or remat "
        "(docs/training.md)",
    "Unable to initialize backend":
        "JAX_PLATFORMS names a device that this machine lacks; unset it, or set JAX_PLATFORMS=cpu",
    "Unknown backend":
        "JAX_PLATFORMS names no kind of device that JAX knows; unset it, or set JAX_PLATFORMS=cpu"}
_REMEDIES = {
    errno.ENOSPC: "the disk is full: free space, then run the same command again",
    errno.EDQUOT: "your quota is used up: free space, then run the same command again",
    errno.EMFILE: "too many open files: raise the limit with `ulimit -n 4096`",
    errno.EACCES: "no permission: choose another path, or ask for the right to use it",
    errno.EPERM: "no permission: choose another path, or ask for the right to use it",
    errno.EROFS: "the disk is mounted for reading only: choose another path",
    errno.ENOENT: "it does not exist: check the path",
    errno.EISDIR: "it is a folder; a file is needed",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.ENOMEM: "the machine is out of memory"}
# Exit status of a run that should be started again: after a preemption notice, or because another process
# is gone (sysexits.h: EX_TEMPFAIL). The launch scripts restart the run on this status.
AGAIN = 75
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_TRACEBACK = "UNILIP_TRACEBACK"
_MAX_LINES = 20


class TryAgainError(ValueError):
  """Ends a run that should be started again with the same command."""


def is_user_error(error: BaseException) -> bool:
  """Returns whether a user can act on an error: it is then printed without a stack trace."""
  if isinstance(error, ImportError):
    return _package(error) != "unilip_jax"
  return isinstance(error, USER_ERRORS) or bool(_device_remedy(error)) or any(
      f"{kind.__module__.partition('.')[0]}.{kind.__name__}" in _LIBRARY_ERRORS
      for kind in type(error).__mro__)


def explain(error: BaseException) -> str:
  """Formats a user error as its message, any other error as its stack trace.

  $UNILIP_TRACEBACK=1 formats user errors as stack traces too.
  """
  if is_user_error(error) and not os.environ.get(_TRACEBACK):
    return f"error: {message(error)}\n(set {_TRACEBACK}=1 for the stack trace)"
  return "".join(traceback.format_exception(error))


def message(error: BaseException) -> str:
  """Returns what a user error says: the file, what is wrong, and the remedy where the type tells it."""
  if isinstance(error, ModuleNotFoundError) and (name := _package(error)):
    return f"this command needs the package {name}, which is not installed: pip install {name}"
  if remedy := _device_remedy(error):
    return f"{remedy}\n{error}"
  if isinstance(error, OSError) and error.errno is not None and error.strerror:
    files = " -> ".join(str(f) for f in (error.filename, error.filename2) if f is not None)
    remedy = _REMEDIES.get(error.errno, error.strerror)
    return f"{files}: {remedy}" if files else f"{error.strerror}: {remedy}"
  return str(error) or type(error).__name__


def run_command(main: Callable[[], Any]) -> None:
  """Runs a command line; ends the process with the status of `status` unless it is 0."""
  if code := status(main):
    sys.exit(code)


def status(main: Callable[[], Any]) -> int:
  """Runs a command line, and prints a user error as one message.

  Returns:
    Exit status: 0; 1 or 75 after a user error; 130 after Ctrl-C. A bug is raised.
  """
  accelerators.hide_absent_tpu()
  try:
    main()
  except KeyboardInterrupt:
    print("stopped", file=sys.stderr)
    return _INTERRUPTED
  except Exception as error:
    if not is_user_error(error):
      raise
    print(explain(error).rstrip(), file=sys.stderr)
    return AGAIN if isinstance(error, TryAgainError) else 1
  return 0


def _device_remedy(error: BaseException) -> str:
  if not isinstance(error, RuntimeError):
    return ""
  return next((remedy for start, remedy in _DEVICE_ERRORS.items() if str(error).startswith(start)), "")


def _package(error: ImportError) -> str:
  return (error.name or "").partition(".")[0]


def listed(lines: Iterable[str], *, limit: int = _MAX_LINES) -> str:
  """Joins lines, at most `limit` of them, and adds "and N more"."""
  lines = list(lines)
  more = [f"  and {len(lines) - limit} more"] if len(lines) > limit else []
  return "\n".join([*lines[:limit], *more])


def check_shapes(
    stored: Mapping[str, Any], model: Mapping[str, Any], message: str, *, source: str = "weights"
) -> None:
  """Compares two tables of shapes.

  Args:
    stored: {path: shape} of the stored arrays.
    model: {path: shape} of the model.
    message: first line of the error.
    source: name of `stored` in the error.

  Raises:
    ValueError: listing each missing, unknown or wrong-shaped path with both shapes.
  """
  wrong = [
      f"  {path}: {source} {stored.get(path, 'absent')}, model {model.get(path, 'absent')}"
      for path in sorted(stored.keys() | model.keys()) if stored.get(path) != model.get(path)]
  if wrong:
    raise ValueError(f"{message}:\n{listed(wrong)}")
