"""Gives memory that is free inside this process back to the operating system."""

import ctypes


def release() -> None:
  """Releases free pages of all of malloc's arenas; does nothing where the C library is not glibc.

  glibc gives each thread an arena and keeps what is freed in it. Work that runs in new threads each time,
  as every checkpoint does, spreads over more arenas and leaves holes in them: the process grows although
  it uses no more. Takes 2 ms to 40 ms at 500 MB.
  """
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if trim is not None:
    trim(0)
