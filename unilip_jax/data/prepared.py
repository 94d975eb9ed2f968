"""Compares shards with the manifest of the preparation that wrote them (data/prepare), if there is one."""

from collections.abc import Sequence
import json
import os

from etils import epath

from unilip_jax.data import omissions

_SHARD = {"name": str, "records": int, "bytes": int}
MANIFEST, PROGRESS = "manifest.json", "receipts"


def note_missing(paths: Sequence[str], left_out: omissions.Omissions) -> None:
  """Counts the records of shards that a manifest lists and that are absent or have another length.

  Args:
    paths: of the shards that are read; the manifests of their folders are read.
    left_out: receives the counts. A preparation that has not finished counts as one record.
  """
  for folder in sorted({epath.Path(path).parent for path in paths}):
    plan = folder / PROGRESS / "plan.json"
    if not plan.exists() or b'"layout": "index"' in plan.read_bytes():  # tars in place have no shards
      continue
    manifest = _read(folder / MANIFEST)
    if not manifest:
      left_out.add("records of a preparation that has not finished", os.fspath(folder))
      continue
    for shard in manifest.get("shards", []):
      if not all(isinstance(shard.get(name), kind) for name, kind in _SHARD.items()):
        raise ValueError(f"{folder / MANIFEST}: {str(shard)[:80]!r} is not the entry of a shard; run the "
                         "preparation again")
      path = folder / shard["name"]
      length = path.stat().length if path.exists() else None
      if length != shard["bytes"]:
        what = "is missing" if length is None else f"has {length} bytes, not {shard['bytes']}"
        left_out.add("records of prepared shards that are missing or changed", f"{path} {what}",
                     max(1, shard["records"]))


def _read(path: epath.Path) -> dict:
  """Returns the object in a JSON file; {} if the file is absent or broken."""
  try:
    content = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError):
    return {}
  shards = content.get("shards", []) if isinstance(content, dict) else None
  return content if isinstance(shards, list) and all(isinstance(s, dict) for s in shards) else {}
