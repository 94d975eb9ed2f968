"""Counts what is replaced, cut or guessed, and logs it without filling the log."""

import collections
import threading

from absl import logging


class Tally:
  """Logs the 1st, 10th, 100th, … event of each kind with its number; counts are of this process."""

  def __init__(self):
    self.counts: collections.Counter[str] = collections.Counter()
    self._lock = threading.Lock()

  def note(self, kind: str, example: str = "") -> None:
    """Counts one event.

    Args:
      kind: what happened; events of equal `kind` are counted together.
      example: details of this event, for the log.
    """
    with self._lock:
      self.counts[kind] += 1
      count = self.counts[kind]
    if count == 10 ** (len(str(count)) - 1):
      logging.warning("%s%s%s", kind, f" ({example})" if example else "",
                      "" if count == 1 else f"; {count} so far")
