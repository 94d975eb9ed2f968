"""Threads share few arenas of malloc once these are limited."""

import os
import platform
import subprocess
import sys

import pytest

from tests import cpu_devices

_CODE = """
import ctypes, sys, threading
from unilip_jax.common import free_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.fopen.restype = ctypes.c_void_p, ctypes.c_void_p
if sys.argv[1] == "limited":
  free_memory.limit_arenas()
start = threading.Barrier(12)
def allocate():
  start.wait()
  for _ in range(1000):
    libc.malloc(ctypes.c_size_t(1000))
threads = [threading.Thread(target=allocate) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


def _arenas(tmp_path, kind):
  environment = {k: v for k, v in cpu_devices.environment().items() if k != "MALLOC_ARENA_MAX"}
  subprocess.run([sys.executable, "-c", _CODE, kind, str(tmp_path / kind)], env=environment, check=True,
                 timeout=60)
  return (tmp_path / kind).read_text().count("<heap nr=")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or (os.cpu_count() or 1) < 2,
                    reason="another C library, or one core: few arenas anyway")
def test_threads_share_two_arenas(tmp_path):
  assert _arenas(tmp_path, "limited") <= 2 < _arenas(tmp_path, "free")
