"""Threads share few arenas of malloc, and large blocks have pages of their own, once both are limited."""

import os
import platform
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from tests import cpu_devices

_CODE = """
import ctypes, sys, threading
from unilip_jax.common import free_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.fopen.restype = ctypes.c_void_p, ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
if sys.argv[1] == "limited":
  free_memory.limit_fragmentation()
start = threading.Barrier(12)
def allocate():
  start.wait()
  for _ in range(1000):
    libc.malloc(ctypes.c_size_t(1000))
threads = [threading.Thread(target=allocate) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.free(libc.malloc(ctypes.c_size_t(2**22)))
block = libc.malloc(ctypes.c_size_t(2**22))
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


def _malloc_info(tmp_path, kind):
  """The account of malloc with twelve threads, and a block of 4 MiB after another one was freed."""
  environment = {k: v for k, v in cpu_devices.environment().items() if not k.startswith("MALLOC_")}
  subprocess.run([sys.executable, "-c", _CODE, kind, str(tmp_path / kind)], env=environment, check=True,
                 timeout=60)
  return ElementTree.parse(tmp_path / kind).getroot()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or (os.cpu_count() or 1) < 2,
                    reason="another C library, or one core: few arenas anyway")
def test_threads_share_two_arenas_and_large_blocks_leave_no_holes(tmp_path):
  limited, free = _malloc_info(tmp_path, "limited"), _malloc_info(tmp_path, "free")
  assert len(limited.findall("heap")) <= 2 < len(free.findall("heap"))
  mapped = lambda info: int(info.find("total[@type='mmap']").get("size"))
  assert mapped(limited) >= 2**22 > mapped(free)
