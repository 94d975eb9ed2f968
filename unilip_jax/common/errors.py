"""Errors that a user can fix, printed as one message; and the wording that several errors share."""

from collections.abc import Callable, Iterable, Mapping
import os
import sys
import traceback
from typing import Any

# What these types report is about arguments, configs, data or files. Everything else is a bug and keeps its
# stack trace.
USER_ERRORS = (ValueError, FileNotFoundError)
# Exit status of a run that has not finished and should be started again: after a preemption notice, or
# because another process is gone (sysexits.h: EX_TEMPFAIL). The launch scripts start again on it.
AGAIN = 75
_TRACEBACK = "UNILIP_TRACEBACK"
_MAX_LINES = 20


class TryAgainError(ValueError):
  """Nothing is wrong with the command: run it again."""


def explain(error: BaseException) -> str:
  """The message of a user error; the stack trace of any other error, or where $UNILIP_TRACEBACK is set."""
  if isinstance(error, USER_ERRORS) and not os.environ.get(_TRACEBACK):
    return f"error: {error}\n(set {_TRACEBACK}=1 for the stack trace)"
  return "".join(traceback.format_exception(error))


def run_command(main: Callable[[], Any]) -> None:
  """Runs a command line; a user error ends the process with its message, and status 1 or 75."""
  try:
    main()
  except USER_ERRORS as error:
    print(explain(error).rstrip(), file=sys.stderr)
    sys.exit(AGAIN if isinstance(error, TryAgainError) else 1)


def listed(lines: Iterable[str], *, limit: int = _MAX_LINES) -> str:
  """The lines, at most `limit` of them, and how many more there are."""
  lines = list(lines)
  more = [f"  and {len(lines) - limit} more"] if len(lines) > limit else []
  return "\n".join([*lines[:limit], *more])


def check_shapes(
    found: Mapping[str, Any], wanted: Mapping[str, Any], message: str, *, source: str = "weights"
) -> None:
  """Compares two tables of shapes.

  Args:
    found: {path: shape} of what was read.
    wanted: {path: shape} of the model.
    message: first line of the error.
    source: what `found` is called in it.

  Raises:
    ValueError: listing each missing, unknown or wrong-shaped path with both shapes.
  """
  wrong = [
      f"  {path}: {source} {found.get(path, 'absent')}, model {wanted.get(path, 'absent')}"
      for path in sorted(found.keys() | wanted.keys()) if found.get(path) != wanted.get(path)]
  if wrong:
    raise ValueError(f"{message}:\n{listed(wrong)}")
