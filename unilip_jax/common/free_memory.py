"""Keeps this process from holding memory that it does not use."""

import ctypes
import os

_M_ARENA_MAX = -8  # of glibc's malloc.h
_ARENAS = 2


def release() -> None:
  """Releases free pages of all of malloc's arenas; does nothing where the C library is not glibc.

  glibc gives each thread an arena and keeps what is freed in it. Work that runs in new threads each time,
  as every checkpoint does, spreads over more arenas and leaves holes in them: the process grows although
  it uses no more. Takes 2 ms to 40 ms at 500 MB.
  """
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if trim is not None:
    trim(0)


def limit_arenas() -> None:
  """Lets malloc make at most two arenas from now on, unless $MALLOC_ARENA_MAX says otherwise; glibc only.

  By default there are up to eight for each core, and what one holds no thread of another can use: training
  grows for hours until all of them have reached their largest size.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
    mallopt(_M_ARENA_MAX, _ARENAS)
