"""Child processes end with their parent."""

import os
import pathlib
import signal
import subprocess
import sys
import time

from tests import processes

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PARENT = """
import multiprocessing, sys, time
from tests.common import child_test
if __name__ == "__main__":
  process = multiprocessing.get_context("spawn").Process(target=child_test._work, daemon=True)
  process.start()
  time.sleep(60)
"""


def _work():
  from unilip_jax.common import child

  child.end_with_parent()
  print(os.getpid(), flush=True)
  time.sleep(60)


def test_a_killed_parent_leaves_no_child(tmp_path):
  script = tmp_path / "parent.py"
  script.write_text(_PARENT)
  parent = subprocess.Popen([sys.executable, str(script)], cwd=_ROOT, stdout=subprocess.PIPE, text=True,
                            env=os.environ | {"PYTHONPATH": str(_ROOT)})
  child = int(parent.stdout.readline())
  parent.send_signal(signal.SIGKILL)
  parent.wait()
  assert parent.stdout.read() == ""  # returns when the child has closed it
  parent.stdout.close()
  assert processes.end([child])
