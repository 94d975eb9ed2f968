"""One chunk of items to its shards and its receipt.

A chunk is `records_per_shard` items in the list's order. It becomes one shard, or several where
`max_shard_bytes` is reached, and a receipt: a JSON file that says what was read, written and skipped, and
comes last. A chunk with a receipt is done.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
from typing import Any

from etils import epath

from unilip_jax.data import sources, tar_index
from unilip_jax.data.prepare import items as items_lib
from unilip_jax.data.prepare import manifest, readers, record, writers


@dataclasses.dataclass(frozen=True)
class Job:
  """What is written, and where to; goes to worker processes.

  Attributes:
    out: folder, local or gs://.
    layout: of writers.LAYOUTS, or "index": tars stay where they are and get an index.
    rules: what is done to a record.
    max_shard_bytes: a shard that would grow larger ends, and another begins; 0: never.
    index_dir: where tar indices are cached.
    checksums: of the tars that get an index; reads them wholly.
  """

  out: str
  layout: str
  rules: record.Rules
  max_shard_bytes: int = 0
  index_dir: str = ""
  checksums: bool = False


@dataclasses.dataclass(frozen=True)
class Chunk:
  """A piece of work.

  Attributes:
    number: from 0.
    text: the items as JSON; or path, newline, size and time of a tar that gets an index.
  """

  number: int
  text: str

  @property
  def digest(self) -> str:
    return hashlib.sha256(self.text.encode(errors="surrogatepass")).hexdigest()


class RecordError(OSError):
  """A file that is there and cannot be read; the message names the record."""


def make(chunk: Chunk, job: Job) -> dict[str, Any]:
  """Writes a chunk's shards, then its receipt.

  Returns:
    The receipt: {"chunk", "input", "items", "written", "long_prompts", "shards": [{"name", "records",
    "bytes", "sha256"}], "skipped": [[name, why], …]}.

  Raises:
    OSError: if something cannot be read or written; nothing half is left under a shard's name.
  """
  receipt = {"chunk": chunk.number, "input": chunk.digest, "items": 0, "written": 0, "long_prompts": 0,
             "shards": [], "skipped": []}
  try:
    if job.layout == "index":
      _index(chunk.text.rpartition("\n")[0], job, receipt)
    else:
      _convert(items_lib.from_json(chunk.text), chunk.number, job, receipt)
    manifest.write_receipt(job.out, receipt)
  except RecordError:
    raise
  except OSError as error:
    raise OSError(f"{job.out}, chunk {chunk.number}: {error}. Mend that; the same command goes on from "
                  "here") from error
  return receipt


def _convert(items: Sequence[items_lib.Item], number: int, job: Job, receipt: dict[str, Any]) -> None:
  """Makes samples of the items and writes them."""
  folder = epath.Path(job.out)
  writer, records, filled = None, 0, 0
  receipt["items"] = len(items)

  def finish() -> None:
    length, digest = writer.finish()
    receipt["shards"].append({"name": name, "records": records, "bytes": length, "sha256": digest})

  try:
    for item in items:
      sample = _sample(item, job.rules, receipt)
      if sample is None:
        continue
      more = writers.payload(sample)
      if records and job.max_shard_bytes and filled + more > job.max_shard_bytes:
        finish()
        writer = None
      if writer is None:
        part = f"-{len(receipt['shards']):03d}" if receipt["shards"] else ""
        name = f"{job.rules.kind}-{number:05d}{part}.{writers.LAYOUTS[job.layout]}"
        writer, records, filled = writers.open_shard(job.layout, folder, name), 0, 0
      writer.add(sample)
      records, filled = records + 1, filled + more
      receipt["written"] += 1
      receipt["long_prompts"] += sample.long_prompt
    if writer is not None:
      finish()
      writer = None
  finally:
    if writer is not None:
      writer.abort()


def _sample(
    item: items_lib.Item, rules: record.Rules, receipt: dict[str, Any]) -> record.Sample | None:
  """The item's sample; or None, and the reason goes into the receipt."""
  try:
    return record.make(item, rules)
  except record.Skipped as why:
    receipt["skipped"].append([item.name, str(why)])
    return None
  except OSError as error:
    raise RecordError(f"{item.name}: {error}. Mend it or take it off the list; the same command "
                      "goes on from here") from error


def _index(path: str, job: Job, receipt: dict[str, Any]) -> None:
  """Indexes a tar where it lies; with verify="full" also decodes what it holds."""
  index = tar_index.load(path, job.index_dir)
  receipt["items"] = len(index) + len(index.faults) + bool(index.problem)
  for fault in index.faults:
    member, _, why = fault.partition(": ")
    receipt["skipped"].append([f"{path}:{member}", why])
  for row in range(len(index)):
    item = readers.tar_item(path, index, row, row, job.rules.kind)
    if item.problem:
      receipt["skipped"].append([item.name, item.problem])
    elif job.rules.verify == "header" or (sample := _sample(item, job.rules, receipt)) is not None:
      receipt["written"] += 1
      receipt["long_prompts"] += job.rules.verify == "full" and sample.long_prompt
  if index.problem:
    receipt["skipped"].append([path, f"broken tar: {index.problem}"])
  length, digest = epath.Path(path).stat().length, None
  if job.checksums:
    length, digest = writers.file_hash(epath.Path(path))
  receipt["shards"].append(
      {"name": path, "records": receipt["written"], "bytes": length, "sha256": digest})


def chunks_of_tars(pattern: str) -> list[Chunk]:
  """A chunk for each tar that gets an index: its path, and what changes when the tar does."""
  return [Chunk(i, f"{path}\n{tar_index.stamp_of(path)}")
          for i, path in enumerate(sources.expand(pattern))]
