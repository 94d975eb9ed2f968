"""Google Cloud Storage with bounded waits and errors that name the object.

`register` makes gs:// mean bucket_files.FileSystem wherever paths are opened (etils, fsspec). It differs
from gcsfs' own class:

- A request that gets no byte for a minute is sent again; gcsfs waits without end.
- After the last of 6 tries (half a minute) the error names the object and asks to run the command again
  (exit status 75). gcsfs' own types are partly OSErrors, which file tests and walks over folders take for
  "absent": a run would start from scratch, or train on fewer files.
- Listings are not cached: another process may write to the bucket.

Arrays are read and written by TensorStore, whose own waits `register` bounds by its environment variables;
it tries 32 times (a quarter of an hour).
"""

import os
import re
from typing import Any
import urllib.parse

import fsspec

SILENCE_SECONDS = 60  # without a byte of the answer
CONNECT_SECONDS = 30
_OBJECT = re.compile(r"/b/([^/?]+)(?:/o/([^?]*))?")


def register() -> None:
  """Makes gs:// mean `FileSystem` in this process; imports gcsfs at the first use only."""
  for protocol in ("gs", "gcs"):
    fsspec.register_implementation(
        protocol, "unilip_jax.common.bucket_files.FileSystem", clobber=True,
        errtxt="install gcsfs to use gs:// (pip install gcsfs)")
  for name, value in (("CONNECT_TIMEOUT", CONNECT_SECONDS), ("LOW_SPEED_TIME", SILENCE_SECONDS)):
    os.environ.setdefault(f"TENSORSTORE_CURL_{name}_SECONDS", str(value))
  os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")


def object_name(path: str, args: tuple[Any, ...]) -> str:
  """Returns gs://bucket/object of a request's URL, or of the arguments of its template."""
  if args:
    return "gs://" + "/".join(str(a) for a in args)
  match = _OBJECT.search(path)
  return f"gs://{match[1]}/{urllib.parse.unquote(match[2] or '')}" if match else path
