"""Keeps TensorStore from losing memory at every checkpoint; orbax_io applies it.

A dict that TensorStore (0.1.74 to 0.1.86) makes of its JSON holds each key and value with one reference too
many: they are never freed, 60 bytes each. Orbax asks for two kinds at every save: the spec of the key-value
store, equal for all arrays of a folder but asked for each, and TensorStore's counters, for a log line about
the bytes on disk.
"""

import copy
import dataclasses
import functools
from typing import Any

from orbax.checkpoint._src.serialization import tensorstore_utils
import tensorstore as ts

_FOLDERS = 16  # whose specs are kept: those of the items that are saved or read at once

_spec_to_json = ts.KvStore.Spec.to_json


def apply() -> None:
  """Replaces both; a second call changes nothing."""
  ts.KvStore.Spec.to_json = _to_json
  tensorstore_utils.get_tensorstore_raw_bytes = lambda *_, **__: 0  # 0: orbax omits the log line


@dataclasses.dataclass(frozen=True)
class _Key:
  """Identifies a JSON by the text of its spec, which cannot be hashed itself."""

  text: str
  include_defaults: bool
  spec: ts.KvStore.Spec = dataclasses.field(compare=False)


def _to_json(spec: ts.KvStore.Spec, include_defaults: bool = False) -> Any:
  """Returns the JSON of a spec, which TensorStore makes once for each of the last folders."""
  return copy.deepcopy(_json(_Key(repr(spec), include_defaults, spec)))


@functools.lru_cache(_FOLDERS)
def _json(key: _Key) -> Any:
  return _spec_to_json(key.spec, include_defaults=key.include_defaults)
