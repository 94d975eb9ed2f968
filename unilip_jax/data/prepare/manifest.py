"""What was made of a dataset: receipts of its chunks, and manifest.json that sums them up.

  <out>/receipts/plan.json     settings, number of chunks, lists read
  <out>/receipts/00012.json    of one chunk (shard.py), with the SHA-256 of itself
  <out>/manifest.json          {"settings", "sources", "counts", "reasons", "shards", "skipped"}; comes last

No times, hosts or numbers of workers stand in them: the same data and settings give the same bytes. Sums
and lists are made from one receipt at a time, so that memory does not grow with the dataset.
"""

import collections
from collections.abc import Iterator, Mapping
import hashlib
import json
import re
from typing import Any

from etils import epath

from unilip_jax.data.prepare import writers

FORMAT = 1
NAME, _RECEIPTS = "manifest.json", "receipts"
_SHARD = re.compile(r"(reconstruct|t2i|edit|understand)-\d{5,}(-\d{3})?\.(tar|array_record)")
_COUNTS = ("items", "written", "skipped", "long_prompts", "bytes", "shards")


class ManifestError(ValueError):
  """A manifest, plan or receipt that is not what it should be, with the remedy."""


def write_receipt(out: epath.PathLike, receipt: Mapping[str, Any]) -> None:
  """Puts a receipt where `receipt` finds it."""
  data = json.dumps({"receipt": receipt, "sha256": _digest(receipt)}).encode()
  writers.write_whole(_folder(out), _receipt_name(receipt["chunk"]), data)


def _digest(receipt: Any) -> str:
  return hashlib.sha256(json.dumps(receipt, sort_keys=True).encode()).hexdigest()


def receipt(out: epath.PathLike, number: int) -> dict[str, Any] | None:
  """The receipt of a chunk; None if there is none, or none that can be read."""
  path = _folder(out) / _receipt_name(number)
  if not path.exists():
    return None
  try:
    found = _parse(path)
  except ManifestError:
    return None  # the chunk is made again
  return found["receipt"] if found.get("sha256") == _digest(found.get("receipt")) else None


def is_done(out: epath.PathLike, number: int, digest: str, *, in_place: bool) -> bool:
  """Whether a chunk of this input was made, and its shards are there in full length.

  Args:
    out: folder.
    number: of the chunk.
    digest: of what it is made of.
    in_place: shards are tars that lie elsewhere.
  """
  found = receipt(out, number)
  if found is None or found["input"] != digest:
    return False
  if in_place:
    return True
  for shard in found["shards"]:
    path = epath.Path(out) / shard["name"]
    if not path.exists() or path.stat().length != shard["bytes"]:
      return False
  return True


def write_plan(out: epath.PathLike, plan: Mapping[str, Any]) -> None:
  """Puts the plan where `plan` finds it: {"settings", "chunks": number or None, "sources"}."""
  writers.write_whole(_folder(out), "plan.json", json.dumps(plan, indent=2).encode())


def plan(out: epath.PathLike) -> dict[str, Any] | None:
  """The plan of a preparation that was begun, or None.

  Raises:
    ManifestError: for a plan that cannot be read.
  """
  path = _folder(out) / "plan.json"
  if not path.exists():
    return None
  found = _parse(path)
  if not isinstance(found.get("settings"), dict) or not isinstance(found.get("sources"), list):
    raise ManifestError(f"{path} is no plan of a preparation; --overwrite begins anew")
  return found


def begin(out: epath.PathLike, settings: Mapping[str, Any], *, overwrite: bool) -> None:
  """Begins or goes on with a preparation.

  Args:
    out: folder.
    settings: everything that the bytes depend on.
    overwrite: remove what other settings have left in `out`.

  Raises:
    ManifestError: if `out` holds data of other settings.
  """
  folder = epath.Path(out)
  folder.mkdir(parents=True, exist_ok=True)
  in_place = settings["layout"] == "index"
  if overwrite:
    _remove(folder, shards=not in_place)
  before = plan(out)
  settings = json.loads(json.dumps(settings))
  if before is not None and before["settings"] != settings:
    old = before["settings"]
    differing = sorted(k for k in old.keys() | settings.keys() if old.get(k) != settings.get(k))
    raise ManifestError(
        f"{out} was prepared with other settings: "
        + "; ".join(f"{k} was {old.get(k)!r}, is {settings.get(k)!r}" for k in differing)
        + ". Choose another --out, or --overwrite")
  if before is None:
    if not in_place and (any(folder.glob("*.tar")) or any(folder.glob("*.array_record"))):
      raise ManifestError(f"{out} holds shards of something else; choose another --out")
    write_plan(out, {"settings": settings, "chunks": None, "sources": []})


def unfinish(out: epath.PathLike) -> None:
  """Before chunks are made (anew): no manifest says any longer that all is done."""
  (epath.Path(out) / NAME).unlink(missing_ok=True)
  made = plan(out)
  if made is not None and made.get("chunks") is not None:
    write_plan(out, made | {"chunks": None, "sources": []})


def _remove(folder: epath.Path, *, shards: bool) -> None:
  """Removes what a preparation has written, and nothing else.

  Args:
    folder: of it.
    shards: also the shards; False where tars stay as they are.

  Raises:
    ManifestError: if the tars that shall stay as they are were written by a preparation.
  """
  path = folder / _RECEIPTS / "plan.json"
  if not shards and path.exists() and b'"layout": "index"' not in path.read_bytes():
    raise ManifestError(f"{folder} is the result of another preparation, whose manifest an index would "
                        "replace; choose another --out")
  if shards:
    for path in [*folder.glob("*.tar"), *folder.glob("*.array_record")]:
      if _SHARD.fullmatch(path.name):
        path.unlink()
  (folder / NAME).unlink(missing_ok=True)
  for name in (_RECEIPTS, writers.PARTIAL, "plan"):
    if (folder / name).exists():
      (folder / name).rmtree()


def merge(out: epath.PathLike) -> dict[str, Any]:
  """Sums up the receipts of all chunks in manifest.json and clears away what is left over.

  Returns:
    {"counts", "reasons"} of the manifest.

  Raises:
    ManifestError: if chunks are missing, with the numbers of those.
  """
  made = plan(out)
  if made is None:
    raise ManifestError(f"{out} holds no preparation (receipts/plan.json is missing)")
  chunks = made.get("chunks")
  if not isinstance(chunks, int) or chunks < 0:
    raise ManifestError(f"{out}: a run or a job has not come to its end; run it again")
  counts: dict[str, int] = dict.fromkeys(_COUNTS, 0)
  reasons: collections.Counter = collections.Counter()
  missing, names = [], set()
  for number in range(chunks):
    found = receipt(out, number)
    if found is None:
      missing.append(number)
      continue
    for name in ("items", "written", "long_prompts"):
      counts[name] += found[name]
    counts["skipped"] += len(found["skipped"])
    counts["shards"] += len(found["shards"])
    counts["bytes"] += sum(s["bytes"] for s in found["shards"])
    reasons.update(why.partition(":")[0] for _, why in found["skipped"])
    names.update(s["name"] for s in found["shards"])
  if missing:
    raise ManifestError(
        f"{out}: {len(missing)} of {chunks} chunks are missing: {', '.join(map(str, missing[:20]))}"
        f"{' …' if len(missing) > 20 else ''}. Chunk k is the work of --shard=i/n with i = k modulo n")
  head = {"format": FORMAT, "settings": made["settings"], "sources": made["sources"], "counts": counts,
          "reasons": dict(sorted(reasons.items()))}
  _write(out, chunks, head)
  _clear(epath.Path(out), chunks, names, shards=made["settings"].get("layout") != "index")
  return head


def _write(out: epath.PathLike, chunks: int, head: Mapping[str, Any]) -> None:
  """manifest.json, its lists receipt by receipt, one entry a line."""
  folder = epath.Path(out)
  temporary = folder / writers.PARTIAL / NAME
  temporary.parent.mkdir(parents=True, exist_ok=True)
  with temporary.open("w") as f:
    f.write(json.dumps(head, indent=2).removesuffix("\n}"))
    for name in ("shards", "skipped"):
      f.write(f',\n  "{name}": [')
      separator = "\n    "
      for number in range(chunks):
        for entry in (receipt(out, number) or {name: []})[name]:
          if name == "skipped":
            entry = {"item": entry[0], "why": entry[1]}
          f.write(separator + json.dumps(entry))
          separator = ",\n    "
      f.write("\n  ]")
    f.write("\n}\n")
  temporary.replace(folder / NAME)


def _clear(folder: epath.Path, chunks: int, names: set[str], *, shards: bool) -> None:
  """Removes half-written files, and what a longer list had given before it was cut.

  Args:
    folder: of the preparation.
    chunks: that there are now.
    names: of the shards that there are now.
    shards: whether shards may be removed; not where tars stay as they are.
  """
  for path in (folder / _RECEIPTS).glob("*.json"):
    if path.stem.isdigit() and int(path.stem) >= chunks:
      path.unlink()
  for path in [*folder.glob("*.tar"), *folder.glob("*.array_record")] if shards else []:
    if path.name not in names and _SHARD.fullmatch(path.name):
      path.unlink()
  for partial in (folder / writers.PARTIAL, folder / _RECEIPTS / writers.PARTIAL):
    if partial.exists():
      partial.rmtree()


def load(out: epath.PathLike) -> dict[str, Any]:
  """A manifest.

  Raises:
    FileNotFoundError: if there is none.
    ManifestError: if it is not one.
  """
  path = epath.Path(out)
  if path.name != NAME:
    path /= NAME
  if not path.exists():
    raise FileNotFoundError(f"{path} is not there: the preparation has not been finished; run it again")
  found = _parse(path)
  good = all(isinstance(found.get(k), t) for k, t in (
      ("settings", dict), ("counts", dict), ("reasons", dict), ("shards", list), ("skipped", list)))
  if not good or found.get("format") != FORMAT:
    raise ManifestError(f"{path} is no manifest of format {FORMAT}; run the preparation again")
  for shard in found["shards"]:
    _check_shard(shard, path)
  return found


def check(out: epath.PathLike) -> Iterator[str]:
  """Compares the shards with their manifest; yields a line for each that differs.

  Raises:
    FileNotFoundError, ManifestError: see `load`.
  """
  found = load(out)
  folder = epath.Path(out) if epath.Path(out).name != NAME else epath.Path(out).parent
  in_place = found["settings"].get("layout") == "index"
  for shard in found["shards"]:
    if not in_place and not _SHARD.fullmatch(shard["name"]):
      raise ManifestError(f"{folder / NAME}: {shard['name']!r} is no name of a shard")
    path = epath.Path(shard["name"]) if in_place else folder / shard["name"]
    if not path.is_file():
      yield f"{path} is missing"
    elif (length := path.stat().length) != shard["bytes"]:
      yield f"{path} has {length} bytes, not {shard['bytes']}"
    elif shard["sha256"] and writers.file_hash(path)[1] != shard["sha256"]:
      yield f"{path}: the SHA-256 differs"


def _folder(out: epath.PathLike) -> epath.Path:
  return epath.Path(out) / _RECEIPTS


def _receipt_name(number: int) -> str:
  return f"{number:05d}.json"


def _parse(path: epath.Path) -> dict[str, Any]:
  try:
    found = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise ManifestError(f"{path} is broken ({error}); run the preparation again, with --overwrite "
                        "if need be") from None
  if not isinstance(found, dict):
    raise ManifestError(f"{path} holds no JSON object; run the preparation again")
  return found


def _check_shard(shard: Any, path: epath.Path) -> None:
  if not (isinstance(shard, dict) and isinstance(shard.get("name"), str)
          and isinstance(shard.get("records"), int) and isinstance(shard.get("bytes"), int)
          and isinstance(shard.get("sha256"), (str, type(None)))):
    raise ManifestError(f"{path}: {str(shard)[:80]!r} is no entry of a shard")
