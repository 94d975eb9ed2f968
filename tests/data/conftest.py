"""A bucket that lives in memory."""

import pytest


@pytest.fixture
def bucket(monkeypatch):
  """gs:// through fsspec, with a bucket that lives in memory."""
  from etils.epath import backend
  import fsspec
  from fsspec.implementations import memory

  class Bucket(memory.MemoryFileSystem):
    store = {}  # noqa: RUF012 its own, not the process-wide one
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
      return "/" + path.removeprefix("gs://").strip("/")

    # As gcsfs: names without the scheme and without a leading slash.
    def glob(self, path, **kwargs):
      return [p.strip("/") for p in super().glob(path, **kwargs)]

    def walk(self, path, **kwargs):
      return ((place.strip("/"), d, f) for place, d, f in super().walk(path, **kwargs))

  made = Bucket()
  monkeypatch.setattr(backend._FileSystemSpecBackend, "fs", lambda self, path: made)
  monkeypatch.setattr(fsspec.core, "url_to_fs", lambda path, **_: (made, made._strip_protocol(path)))
  return made
