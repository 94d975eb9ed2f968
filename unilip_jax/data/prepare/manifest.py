"""The state of a preparation: a progress file for each chunk, and manifest.json that summarises them.

  <out>/receipts/plan.json     settings, number of chunks, lists that were read
  <out>/receipts/00012.json    progress file of one chunk (shard.py), with its own SHA-256
  <out>/manifest.json          {"settings", "sources", "counts", "reasons", "shards", "skipped"}; last

The files hold no hosts or numbers of workers, and of times only a hash of those of the source files: the
same data and settings give the same bytes. Sums and lists read one progress file at a time, so that memory
does not grow with the dataset.
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
NAME, _PROGRESS = "manifest.json", "receipts"
_SHARD = re.compile(r"(reconstruct|t2i|edit|understand)-\d{5,}(-\d{3})?\.(tar|array_record)")
_COUNTS = ("items", "written", "skipped", "long_prompts", "bytes", "shards")


class ManifestError(ValueError):
  """A broken or conflicting manifest or plan; the message has the remedy."""


def write_progress(out: epath.PathLike, progress: Mapping[str, Any]) -> None:
  """Writes the progress file of a chunk (shard.make has its entries)."""
  data = json.dumps({"receipt": progress, "sha256": _digest(progress)}).encode()
  writers.write_atomically(_folder(out), _progress_name(progress["chunk"]), data)


def _digest(progress: Any) -> str:
  return hashlib.sha256(json.dumps(progress, sort_keys=True).encode()).hexdigest()


def read_progress(out: epath.PathLike, number: int) -> dict[str, Any] | None:
  """Reads the progress file of a chunk; returns None if it is missing or broken."""
  path = _folder(out) / _progress_name(number)
  if not path.exists():
    return None
  try:
    content = _parse(path)
  except ManifestError:
    return None  # the chunk is made again
  return content["receipt"] if content.get("sha256") == _digest(content.get("receipt")) else None


def done(out: epath.PathLike, number: int, digest: str, *, in_place: bool) -> dict[str, Any] | None:
  """Returns the progress of a chunk of this input if its shards exist with their full length, else None.

  Args:
    out: folder of the preparation.
    number: of the chunk.
    digest: hash of the chunk's input.
    in_place: shards are tars outside of `out`.
  """
  progress = read_progress(out, number)
  if progress is None or progress["input"] != digest:
    return None
  for shard in [] if in_place else progress["shards"]:
    path = epath.Path(out) / shard["name"]
    if not path.exists() or path.stat().length != shard["bytes"]:
      return None
  return progress


def write_plan(out: epath.PathLike, plan: Mapping[str, Any]) -> None:
  """Writes the plan {"settings", "chunks": number, or None before a run has ended, "sources"}."""
  writers.write_atomically(_folder(out), "plan.json", json.dumps(plan, indent=2).encode())


def read_plan(out: epath.PathLike) -> dict[str, Any] | None:
  """Reads the plan of a preparation that was begun; returns None if there is none.

  Raises:
    ManifestError: for a broken plan.
  """
  path = _folder(out) / "plan.json"
  if not path.exists():
    return None
  plan = _parse(path)
  if not isinstance(plan.get("settings"), dict) or not isinstance(plan.get("sources"), list):
    raise ManifestError(f"{path} is not the plan of a preparation; --overwrite starts from scratch")
  return plan


def begin(out: epath.PathLike, settings: Mapping[str, Any], *, overwrite: bool) -> None:
  """Begins or continues a preparation.

  Args:
    out: folder of the preparation.
    settings: everything that the bytes depend on.
    overwrite: remove the result of other settings from `out`.

  Raises:
    ManifestError: if `out` holds data of other settings.
  """
  folder = epath.Path(out)
  folder.mkdir(parents=True, exist_ok=True)
  in_place = settings["layout"] == "index"
  if overwrite:
    _remove(folder, shards=not in_place)
  before = read_plan(out)
  settings = json.loads(json.dumps(settings))
  # A run that wrote no record, e.g. of a wrong --source, does not bind the next one.
  if before is not None and before["settings"] != settings and not _holds_records(folder):
    for path in _progress_files(folder):
      path.unlink()
    before = None
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


def _holds_records(folder: epath.Path) -> bool:
  """Returns whether a chunk of a preparation wrote a record, or its progress file is broken."""
  for path in _progress_files(folder):
    progress = read_progress(folder, int(path.stem))
    if progress is None or progress["written"]:
      return True
  return False


def _progress_files(folder: epath.Path) -> list[epath.Path]:
  return [path for path in (folder / _PROGRESS).glob("*.json") if path.stem.isdigit()]


def mark_unfinished(out: epath.PathLike) -> None:
  """Removes the manifest before chunks are made: a manifest exists only while it is true."""
  (epath.Path(out) / NAME).unlink(missing_ok=True)
  plan = read_plan(out)
  if plan is not None and plan.get("chunks") is not None:
    write_plan(out, plan | {"chunks": None, "sources": []})


def _remove(folder: epath.Path, *, shards: bool) -> None:
  """Removes the files of a preparation, and nothing else.

  Args:
    folder: of the preparation.
    shards: also the shards; False for an index of tars, which stay.

  Raises:
    ManifestError: if the tars to be indexed are the result of a preparation.
  """
  path = folder / _PROGRESS / "plan.json"
  if not shards and path.exists() and b'"layout": "index"' not in path.read_bytes():
    raise ManifestError(f"{folder} is the result of another preparation, whose manifest an index would "
                        "replace; choose another --out")
  if shards:
    for path in [*folder.glob("*.tar"), *folder.glob("*.array_record")]:
      if _SHARD.fullmatch(path.name):
        path.unlink()
  (folder / NAME).unlink(missing_ok=True)
  for name in (_PROGRESS, writers.PARTIAL, "plan"):
    if (folder / name).exists():
      (folder / name).rmtree()


def merge(out: epath.PathLike) -> dict[str, Any]:
  """Summarises the progress files of all chunks in manifest.json and removes leftovers.

  Returns:
    The manifest without its lists of shards and skipped items.

  Raises:
    ManifestError: if chunks are missing, with their numbers.
  """
  plan = read_plan(out)
  if plan is None:
    raise ManifestError(f"{out} holds no preparation ({_PROGRESS}/plan.json is missing)")
  chunks = plan.get("chunks")
  if not isinstance(chunks, int) or chunks < 0:
    raise ManifestError(f"{out}: a run or a job has not finished; run it again")
  counts: dict[str, int] = dict.fromkeys(_COUNTS, 0)
  reasons: collections.Counter = collections.Counter()
  missing, names = [], set()
  for number in range(chunks):
    progress = read_progress(out, number)
    if progress is None:
      missing.append(number)
      continue
    for name in ("items", "written", "long_prompts"):
      counts[name] += progress[name]
    counts["skipped"] += len(progress["skipped"])
    counts["shards"] += len(progress["shards"])
    counts["bytes"] += sum(s["bytes"] for s in progress["shards"])
    reasons.update(why.partition(":")[0] for _, why in progress["skipped"])
    names.update(s["name"] for s in progress["shards"])
  if missing:
    raise ManifestError(
        f"{out}: {len(missing)} of {chunks} chunks are missing: {', '.join(map(str, missing[:20]))}"
        f"{' …' if len(missing) > 20 else ''}. Chunk k belongs to --shard=i/n with i = k modulo n")
  head = {"format": FORMAT, "settings": plan["settings"], "sources": plan["sources"], "counts": counts,
          "reasons": dict(sorted(reasons.items()))}
  _write(out, chunks, head)
  _clear(epath.Path(out), chunks, names, shards=plan["settings"].get("layout") != "index")
  return head


def _write(out: epath.PathLike, chunks: int, head: Mapping[str, Any]) -> None:
  """Writes manifest.json, its lists chunk by chunk, one entry a line."""
  folder = epath.Path(out)
  temporary = folder / writers.PARTIAL / NAME
  temporary.parent.mkdir(parents=True, exist_ok=True)
  with temporary.open("w") as f:
    f.write(json.dumps(head, indent=2).removesuffix("\n}"))
    for name in ("shards", "skipped"):
      f.write(f',\n  "{name}": [')
      separator = "\n    "
      for number in range(chunks):
        for entry in (read_progress(out, number) or {name: []})[name]:
          if name == "skipped":
            entry = {"item": entry[0], "why": entry[1]}
          f.write(separator + json.dumps(entry))
          separator = ",\n    "
      f.write("\n  ]")
    f.write("\n}\n")
  temporary.replace(folder / NAME)


def _clear(folder: epath.Path, chunks: int, names: set[str], *, shards: bool) -> None:
  """Removes temporary files, and the chunks and shards of an earlier, longer list.

  Args:
    folder: of the preparation.
    chunks: number of chunks.
    names: of the shards.
    shards: whether shards may be removed; False for an index of tars, which stay.
  """
  for path in (folder / _PROGRESS).glob("*.json"):
    if path.stem.isdigit() and int(path.stem) >= chunks:
      path.unlink()
  for path in [*folder.glob("*.tar"), *folder.glob("*.array_record")] if shards else []:
    if path.name not in names and _SHARD.fullmatch(path.name):
      path.unlink()
  for partial in (folder / writers.PARTIAL, folder / _PROGRESS / writers.PARTIAL):
    if partial.exists():
      partial.rmtree()


def load(out: epath.PathLike) -> dict[str, Any]:
  """Reads and checks a manifest.

  Args:
    out: folder of the preparation, or path of the manifest.

  Raises:
    FileNotFoundError: if there is none.
    ManifestError: if it is broken.
  """
  path = epath.Path(out)
  if path.name != NAME:
    path /= NAME
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist: the preparation has not finished; run it again")
  content = _parse(path)
  valid = all(isinstance(content.get(k), t) for k, t in (
      ("settings", dict), ("counts", dict), ("reasons", dict), ("shards", list), ("skipped", list)))
  if not valid or content.get("format") != FORMAT:
    raise ManifestError(f"{path} is not a manifest of format {FORMAT}; run the preparation again")
  for shard in content["shards"]:
    _check_shard(shard, path)
  return content


def check(out: epath.PathLike) -> Iterator[str]:
  """Compares the shards with their manifest; yields a message for each that differs.

  Raises:
    FileNotFoundError, ManifestError: see `load`.
  """
  content = load(out)
  folder = epath.Path(out) if epath.Path(out).name != NAME else epath.Path(out).parent
  in_place = content["settings"].get("layout") == "index"
  for shard in content["shards"]:
    if not in_place and not _SHARD.fullmatch(shard["name"]):
      raise ManifestError(f"{folder / NAME}: {shard['name']!r} is not the name of a shard")
    path = epath.Path(shard["name"]) if in_place else folder / shard["name"]
    if not path.is_file():
      yield f"{path} is missing"
    elif (length := path.stat().length) != shard["bytes"]:
      yield f"{path} has {length} bytes, not {shard['bytes']}"
    elif shard["sha256"] and writers.file_hash(path)[1] != shard["sha256"]:
      yield f"{path}: the SHA-256 differs"


def _folder(out: epath.PathLike) -> epath.Path:
  return epath.Path(out) / _PROGRESS


def _progress_name(number: int) -> str:
  return f"{number:05d}.json"


def _parse(path: epath.Path) -> dict[str, Any]:
  try:
    content = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise ManifestError(f"{path} is broken ({error}); run the preparation again, with --overwrite "
                        "if it is refused") from None
  if not isinstance(content, dict):
    raise ManifestError(f"{path} does not hold a JSON object; run the preparation again")
  return content


def _check_shard(shard: Any, path: epath.Path) -> None:
  if not (isinstance(shard, dict) and isinstance(shard.get("name"), str)
          and isinstance(shard.get("records"), int) and isinstance(shard.get("bytes"), int)
          and isinstance(shard.get("sha256"), (str, type(None)))):
    raise ManifestError(f"{path}: {str(shard)[:80]!r} is not the entry of a shard")
