"""Makes the chunks of a dataset: in local processes, or every n-th chunk as one of n jobs.

Items are streamed: a few chunks of them are in memory at once, and one record in each process.
"""

from collections.abc import Iterable, Iterator, Mapping
import concurrent.futures
from concurrent.futures import process
import multiprocessing
import os
import signal
from typing import Any

from unilip_jax.common import child, progress_bar
from unilip_jax.data.prepare import items as items_lib
from unilip_jax.data.prepare import manifest, record, shard

_AHEAD = 2  # chunks submitted per process


class RunError(ValueError):
  """The machine failed, not the data; the message has the remedy."""


def make_chunks(items: Iterable[items_lib.Item], size: int) -> Iterator[shard.Chunk]:
  """Groups items into chunks of `size` items each."""
  group: list[items_lib.Item] = []
  number = 0
  for item in items:
    group.append(item)
    if len(group) == size:
      yield shard.Chunk(number, items_lib.to_json(group))
      group, number = [], number + 1
  if group:
    yield shard.Chunk(number, items_lib.to_json(group))


def run(
    chunks: Iterable[shard.Chunk], job: shard.Job, sources: list[dict[str, Any]],
    settings: Mapping[str, Any], *, workers: int, part: tuple[int, int] = (0, 1),
    overwrite: bool = False, progress: bool = True
) -> dict[str, Any] | None:
  """Makes the chunks that are not done.

  Args:
    chunks: all chunks of the dataset, in order.
    job: what to write.
    sources: the lists that `chunks` was read from; complete once `chunks` ends.
    settings: everything that the bytes depend on.
    workers: processes; 1 works in this one.
    part: (i, n): makes only the chunks i, i + n, i + 2n …; `manifest.merge` follows when all n are done.
    overwrite: start from scratch.
    progress: show a progress bar.

  Returns:
    The result of `manifest.merge`, or None for one part of several.

  Raises:
    RunError: if a process died.
    OSError: see shard.make.
    ManifestError: if the folder holds other data.
  """
  manifest.begin(job.out, settings, overwrite=overwrite)
  count, begun = 0, False
  bar = progress_bar.bar(unit=" records", disable=not progress, desc=os.path.basename(job.out.rstrip("/")))
  skipped = 0

  def pending() -> Iterator[shard.Chunk]:
    nonlocal count, begun
    for chunk in chunks:
      count += 1
      if chunk.number % part[1] == part[0] and not shard.is_done(chunk, job):
        if not begun:
          manifest.mark_unfinished(job.out)
        begun = True
        yield chunk

  def note(entries: Mapping[str, Any]) -> None:
    nonlocal skipped
    skipped += len(entries["skipped"])
    bar.set_postfix(chunk=entries["chunk"], skipped=skipped, refresh=False)
    bar.update(entries["items"])

  with bar:
    if workers <= 1:
      for chunk in pending():
        note(shard.make(chunk, job))
    else:
      _in_processes(pending(), job, workers, note)
  manifest.write_plan(
      job.out, {"settings": dict(settings), "chunks": count, "sources": sources})
  return manifest.merge(job.out) if part[1] == 1 else None


def _in_processes(chunks: Iterator[shard.Chunk], job: shard.Job, workers: int, note: Any) -> None:
  """Makes chunks in worker processes; calls `note` with the content of each progress file."""
  # Spawned, never forked: the parent may hold threads of file systems.
  context = multiprocessing.get_context("spawn")
  pool = concurrent.futures.ProcessPoolExecutor(
      workers, mp_context=context, initializer=child.end_with_parent)
  pending: set[concurrent.futures.Future] = set()
  try:
    for chunk in chunks:
      # Workers start here and inherit the mask: Ctrl-C reaches this process alone, and chunks that were
      # begun are finished.
      signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
      pending.add(pool.submit(shard.make, chunk, job))
      signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
      if len(pending) >= _AHEAD * workers:
        done, pending = concurrent.futures.wait(
            pending, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in done:
          note(future.result())
    for future in concurrent.futures.as_completed(pending):
      note(future.result())
  except process.BrokenProcessPool as error:
    raise RunError(
        "a worker process died, probably because the machine was out of memory: lower --workers and run "
        "the same command again; it continues where it stopped") from error
  finally:
    pool.shutdown(wait=True, cancel_futures=True)


def dry_run(items: Iterable[items_lib.Item], rules: record.Rules) -> dict[str, Any]:
  """Counts the records that a run would read; opens no image.

  Returns:
    {"items", "usable", "skipped", "bytes", "reasons", "examples": of skipped items}.
  """
  counts: dict[str, Any] = {"items": 0, "usable": 0, "skipped": 0, "bytes": 0, "reasons": {},
                            "examples": []}
  for item in items:
    counts["items"] += 1
    try:
      if item.problem:
        raise record.Skipped(item.problem)
      counts["bytes"] += sum(record.size(p, rules.max_file_bytes) for p in item.parts.values())
      counts["usable"] += 1
    except record.Skipped as why:
      counts["skipped"] += 1
      reason = str(why).partition(":")[0]
      counts["reasons"][reason] = counts["reasons"].get(reason, 0) + 1
      if len(counts["examples"]) < 5:
        counts["examples"].append(f"{item.name}: {why}")
  return counts
