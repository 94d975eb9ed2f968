"""Turns one chunk of items into its shards and its progress file.

A chunk is `records_per_shard` items in the list's order. It becomes one shard, or several if
`max_shard_bytes` is reached. The progress file, a JSON file that lists what was read, written and skipped,
is written last: a chunk with a progress file is done.
"""

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import hashlib
from typing import Any

from absl import logging
from etils import epath

from unilip_jax.data import files, tar_index
from unilip_jax.data.prepare import items as items_lib
from unilip_jax.data.prepare import manifest, readers, record, writers

_STATS = 8  # threads; file systems of networks answer slowly


@dataclasses.dataclass(frozen=True)
class Job:
  """What to write and where; sent to worker processes.

  Attributes:
    out: folder, local or gs://.
    layout: of writers.LAYOUTS, or "index": tars stay in place and are indexed.
    rules: for each record.
    max_shard_bytes: a shard that would grow larger ends, and another begins; 0: no limit.
    index_dir: cache folder of tar indices.
    checksums: hash the indexed tars, which reads them completely.
  """

  out: str
  layout: str
  rules: record.Rules
  max_shard_bytes: int = 0
  index_dir: str = ""
  checksums: bool = False


@dataclasses.dataclass(frozen=True)
class Chunk:
  """A unit of work.

  Attributes:
    number: from 0.
    text: the items as JSON; or path, newline, size and time of a tar to be indexed.
  """

  number: int
  text: str

  @property
  def digest(self) -> str:
    """SHA-256 of the text."""
    return hashlib.sha256(self.text.encode(errors="surrogatepass")).hexdigest()


class RecordError(OSError):
  """A file that exists and cannot be read; the message names the record."""


def make(chunk: Chunk, job: Job) -> dict[str, Any]:
  """Writes a chunk's shards, then its progress file.

  Returns:
    Content of the progress file: {"chunk", "input", "files": see `file_stamps`, "items", "written",
    "long_prompts", "shards": [{"name", "records", "bytes", "sha256"}], "skipped": [[name, reason], …]}.

  Raises:
    OSError: if a file cannot be read or written; no partial file has a shard's name.
  """
  progress = {"chunk": chunk.number, "input": chunk.digest, "files": file_stamps(chunk, job), "items": 0,
              "written": 0, "long_prompts": 0, "shards": [], "skipped": []}
  try:
    if job.layout == "index":
      _index(chunk.text.rpartition("\n")[0], job, progress)
    else:
      _convert(items_lib.from_json(chunk.text), chunk.number, job, progress)
    if file_stamps(chunk, job) != progress["files"]:
      raise OSError("source files changed while they were read")
    manifest.write_progress(job.out, progress)
  except RecordError:
    raise
  except OSError as error:
    raise OSError(f"{job.out}, chunk {chunk.number}: {error}. Fix that, then run the same command "
                  "again; it continues from here") from error
  return progress


def is_done(chunk: Chunk, job: Job) -> bool:
  """Returns whether a chunk was made of these items and these files, and its shards exist."""
  in_place = job.layout == "index"
  progress = manifest.done(job.out, chunk.number, chunk.digest, in_place=in_place)
  if progress is None:
    return False
  if "files" not in progress and not in_place:
    logging.warning("%s, chunk %d is made again: an earlier version noted neither size nor time of its "
                    "source files", job.out, chunk.number)
    return False
  if progress.get("files", "") != file_stamps(chunk, job):
    logging.warning("%s, chunk %d is made again: its source files changed", job.out, chunk.number)
    return False
  return True


def file_stamps(chunk: Chunk, job: Job) -> str:
  """Returns a hash of size and time of the files that a chunk's items name; "" for tars in place."""
  if job.layout == "index":
    return ""  # in the chunk's text
  paths = sorted({part[1] for item in items_lib.from_json(chunk.text) for part in item.parts.values()
                  if part[0] in ("file", "range")})
  with futures.ThreadPoolExecutor(_STATS) as pool:
    return hashlib.sha256("\n".join(pool.map(_stamp, paths)).encode()).hexdigest()


def _stamp(path: str) -> str:
  try:
    return files.stamp(path)
  except (OSError, ValueError) as error:
    return type(error).__name__  # the item is skipped or stops the run when it is read


def _convert(items: Sequence[items_lib.Item], number: int, job: Job, progress: dict[str, Any]) -> None:
  """Makes samples of the items and writes them."""
  folder = epath.Path(job.out)
  writer, records, filled = None, 0, 0
  progress["items"] = len(items)

  def finish() -> None:
    length, digest = writer.finish()
    progress["shards"].append({"name": name, "records": records, "bytes": length, "sha256": digest})

  try:
    for item in items:
      sample = _sample(item, job.rules, progress)
      if sample is None:
        continue
      more = writers.payload(sample)
      if records and job.max_shard_bytes and filled + more > job.max_shard_bytes:
        finish()
        writer = None
      if writer is None:
        part = f"-{len(progress['shards']):03d}" if progress["shards"] else ""
        name = f"{job.rules.kind}-{number:05d}{part}.{writers.LAYOUTS[job.layout]}"
        writer, records, filled = writers.open_shard(job.layout, folder, name), 0, 0
      writer.add(sample)
      records, filled = records + 1, filled + more
      progress["written"] += 1
      progress["long_prompts"] += sample.long_prompt
    if writer is not None:
      finish()
      writer = None
  finally:
    if writer is not None:
      writer.abort()


def _sample(
    item: items_lib.Item, rules: record.Rules, progress: dict[str, Any]) -> record.Sample | None:
  """Makes the item's sample; for a skipped item adds the reason to the progress and returns None."""
  try:
    return record.make(item, rules)
  except record.Skipped as why:
    progress["skipped"].append([item.name, str(why)])
    return None
  except OSError as error:
    raise RecordError(f"{item.name}: {error}. Fix it or remove it from the list, then run the "
                      "same command again; it continues from here") from error


def _index(path: str, job: Job, progress: dict[str, Any]) -> None:
  """Indexes a tar in place; with verify="full" also decodes its images."""
  index = tar_index.load(path, job.index_dir)
  progress["items"] = len(index) + len(index.faults) + bool(index.problem)
  progress["skipped"] += [[f"{path}:{member}", reason] for member, reason in index.faults]
  for row in range(len(index)):
    item = readers.tar_item(path, index, row, row, job.rules.kind)
    if item.problem:
      progress["skipped"].append([item.name, item.problem])
    elif job.rules.verify == "header" or (sample := _sample(item, job.rules, progress)) is not None:
      progress["written"] += 1
      progress["long_prompts"] += job.rules.verify == "full" and sample.long_prompt
  if index.problem:
    progress["skipped"].append([path, f"broken tar: {index.problem}"])
  length, digest = epath.Path(path).stat().length, None
  if job.checksums:
    length, digest = writers.file_hash(epath.Path(path))
  progress["shards"].append(
      {"name": path, "records": progress["written"], "bytes": length, "sha256": digest})


def chunks_of_tars(pattern: str) -> list[Chunk]:
  """Returns a chunk for each tar to be indexed: its path, and a stamp that changes with the tar."""
  return [Chunk(i, f"{path}\n{files.stamp(path)}")
          for i, path in enumerate(files.expand(pattern))]
