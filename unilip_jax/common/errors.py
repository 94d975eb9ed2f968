"""User errors, printed as one message without a stack trace; and the wording that several errors share."""

from collections.abc import Callable, Iterable, Mapping
import os
import sys
import traceback
from typing import Any

# These types report wrong arguments, configs, data or files. Every other type is a bug and keeps its
# stack trace.
USER_ERRORS = (ValueError, FileNotFoundError)
# Exit status of a run that should be started again: after a preemption notice, or because another process
# is gone (sysexits.h: EX_TEMPFAIL). The launch scripts restart the run on this status.
AGAIN = 75
_TRACEBACK = "UNILIP_TRACEBACK"
_MAX_LINES = 20


class TryAgainError(ValueError):
  """Ends a run that should be started again with the same command."""


def explain(error: BaseException) -> str:
  """Formats a user error as its message, any other error as its stack trace.

  $UNILIP_TRACEBACK=1 formats user errors as stack traces too.
  """
  if isinstance(error, USER_ERRORS) and not os.environ.get(_TRACEBACK):
    return f"error: {error}\n(set {_TRACEBACK}=1 for the stack trace)"
  return "".join(traceback.format_exception(error))


def run_command(main: Callable[[], Any]) -> None:
  """Runs a command line; a user error ends the process with its message and status 1 or 75."""
  try:
    main()
  except USER_ERRORS as error:
    print(explain(error).rstrip(), file=sys.stderr)
    sys.exit(AGAIN if isinstance(error, TryAgainError) else 1)


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
