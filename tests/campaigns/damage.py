"""Damages files at random and reads them: `python -m tests.campaigns.damage --mutations=2000 --seed=0`.

Each mutation changes one file of a subject (subjects.py) in one way (mutations.py), then reads it with its
public reader. Outcomes:

  sound       the result is that of the undamaged file
  fallback    less, or an older checkpoint, and the log says so
  error       an error for the user, which names the file or its folder
  unverified  a value changed that has no checksum in its format (a caption, a number in JSON)

and the failures:

  unnamed     an error for the user that does not name the file
  silent      less, or an older checkpoint, without a word
  garbage     other values where the format has a checksum
  foreign     an exception that prints as a stack trace
  hang        more than 20 seconds
  memory      more than 2 GB
  crash       the process ended

One seed gives the same mutations on every machine. `--only="pth,tars"` takes some subjects;
`--show=20` prints the first failures, with the seed of each.
"""

import argparse
import collections
import dataclasses
import functools
import json
import logging as stdlib_logging
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
import time
import traceback
from typing import Any

from tests.campaigns import mutations

GOOD = ("sound", "fallback", "error", "unverified")
BAD = ("unnamed", "silent", "garbage", "foreign", "hang", "memory", "crash")
SECONDS, BYTES = 20, 2 * 10**9
_BUILD_SECONDS = 300


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a mutation led to."""

  seed: int
  subject: str
  mutation: str
  file: str
  outcome: str
  detail: str = ""


class _Notes(stdlib_logging.Handler):
  """Collects warnings and errors of the log."""

  def __init__(self):
    super().__init__(stdlib_logging.WARNING)
    self.texts: list[str] = []

  def emit(self, record: stdlib_logging.LogRecord) -> None:
    if "/orbax/" not in record.pathname:
      self.texts.append(record.getMessage())


class Reader:
  """Builds, damages and reads subjects below one folder; lives in a worker process."""

  def __init__(self, work: pathlib.Path):
    import jax

    from tests import micro

    jax.config.update("jax_platforms", "cpu")
    micro.install()
    self._work, self._expected = work, {}
    self._notes = _Notes()
    stdlib_logging.getLogger().addHandler(self._notes)

  def run(self, seed: int, name: str) -> Outcome:
    """Does one mutation of a subject."""
    import random

    from tests.campaigns import subjects

    subject, rng = subjects.SUBJECTS[name], random.Random(seed)
    root, backup = self._work / "now" / name, self._work / "backup" / name
    right, older = self._expect(name, subject, root, backup)
    mutations.reset(root, backup)
    files = [f for f in mutations.files_of(root) if subject.damage(f.relative_to(root).as_posix())]
    file, mutation = rng.choice(files), rng.choice(mutations.ALL)
    mutation(file, rng, files)
    done = lambda outcome, detail="": Outcome(
        seed, name, mutation.__name__, file.relative_to(root).as_posix(), outcome, detail[:500])
    _forget()
    self._notes.texts.clear()
    try:
      result = subject.read(root, self._notes.texts.append)
    except Exception as error:
      return done(*_judge_error(error, root))
    return done(*_judge(result, right, older, subject.free, self._notes.texts))

  def _expect(self, name, subject, root, backup) -> tuple[Any, Any]:
    """Builds a subject at its first use; returns (right result, older result or None)."""
    if name not in self._expected:
      if not backup.exists():
        shutil.rmtree(root, ignore_errors=True)
        root.parent.mkdir(parents=True, exist_ok=True)
        subject.build(root)
        shutil.copytree(root, backup)
      mutations.reset(root, backup)
      right = subject.read(root, lambda text: None)
      _forget()
      mutations.reset(root, backup)
      again = subject.read(root, lambda text: None)
      if right != again or not right:
        raise RuntimeError(f"{name}: two reads of the undamaged folder differ")
      older = None
      if subject.older is not None:
        _forget()
        mutations.reset(root, backup)
        older = subject.older(root, lambda text: None)
      self._expected[name] = right, older
    return self._expected[name]


def _forget() -> None:
  """Clears the package's caches of files: every read is that of a new process."""
  for name, module in list(sys.modules.items()):
    if name.startswith("unilip_jax"):
      for value in list(vars(module).values()):
        if isinstance(value, functools._lru_cache_wrapper):
          value.cache_clear()


def _judge(result, right, older, free, notes) -> tuple[str, str]:
  """Compares results; a new name is possible where no name has a checksum."""
  all_free = free("")
  if result == right:
    return "sound", ""
  told = "; ".join(notes)
  if older is not None and result == older:
    return ("fallback", told) if told else ("silent", "an older checkpoint")
  changed = sorted(name for name in result.keys() & right.keys() if result[name] != right[name])
  missing, added = sorted(right.keys() - result.keys()), sorted(result.keys() - right.keys())
  if wrong := [name for name in changed if not free(name)] + [name for name in added if not all_free]:
    return "garbage", f"{wrong[:3]} {told}"
  if missing and not (all_free and added):
    return ("fallback", told) if told else ("silent", f"missing {missing[:3]}")
  return "unverified", f"{changed[:3]}"


def _judge_error(error: Exception, root: pathlib.Path) -> tuple[str, str]:
  from unilip_jax.common import errors

  is_user_error = getattr(errors, "is_user_error", lambda e: isinstance(e, errors.USER_ERRORS))
  text = f"{type(error).__name__}: {error}"
  if not is_user_error(error):
    where = traceback.extract_tb(error.__traceback__)[-1]
    return "foreign", f"{text} at {where.filename}:{where.lineno}"
  return ("error" if str(root) in errors.explain(error) else "unnamed"), text


def _work(pipe, folder: pathlib.Path) -> None:
  """Answers (seed, subject) with an Outcome until None comes."""
  for stream in (1, 2):  # outcomes go through the pipe
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
  reader = Reader(folder)
  while (job := pipe.recv()) is not None:
    try:
      answer = reader.run(*job)
    except BaseException:
      answer = Outcome(*job, "", "", "crash", "the campaign failed: " + traceback.format_exc()[-1500:])
    pipe.send(answer)


class _Worker:
  """A process with a Reader, watched from outside."""

  def __init__(self, folder: pathlib.Path):
    self._folder, self.job, self._seen = folder, None, set()
    self._start()

  def _start(self) -> None:
    context = multiprocessing.get_context("fork")  # the parent has started no JAX backend
    self._pipe, child = context.Pipe()
    self._process = context.Process(target=_work, args=(child, self._folder), daemon=True)
    self._process.start()
    child.close()

  def begin(self, seed: int, name: str) -> None:
    self.job, self._begun = (seed, name), time.monotonic()
    self._pipe.send(self.job)

  def poll(self) -> Outcome | None:
    """Returns the outcome of the job, None while it runs; replaces a process that ended or was ended."""
    try:
      if self._pipe.poll():
        answer = self._pipe.recv()
        self.job = None
        self._seen.add(answer.subject)
        return answer
    except (EOFError, ConnectionResetError):
      return self._replace("crash", f"exit status {self._process.exitcode}")
    seconds = time.monotonic() - self._begun
    limit = SECONDS if self.job[1] in self._seen else _BUILD_SECONDS
    if seconds > limit:
      return self._replace("hang", f"{seconds:.0f} s")
    if (size := _resident(self._process.pid)) > BYTES:
      return self._replace("memory", f"{size / 1e9:.1f} GB")
    return None

  def _replace(self, outcome: str, detail: str) -> Outcome:
    seed, name = self.job
    self.end()
    self._start()
    self.job = None
    return Outcome(seed, name, "", "", outcome, detail)

  def end(self) -> None:
    self._process.kill()
    self._process.join()


def _resident(pid: int) -> int:
  try:
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
  except (OSError, IndexError):
    return 0


def run(count: int, seed: int, names: list[str], workers: int, folder: pathlib.Path) -> list[Outcome]:
  """Does `count` mutations, spread evenly over the subjects."""
  jobs = collections.deque((seed * 1_000_000 + i, names[i % len(names)]) for i in range(count))
  pool = [_Worker(folder / str(i)) for i in range(workers)]
  outcomes: list[Outcome] = []
  try:
    while len(outcomes) < count:
      for worker in pool:
        if worker.job is None and jobs:
          worker.begin(*jobs.popleft())
        elif worker.job is not None and (outcome := worker.poll()) is not None:
          outcomes.append(outcome)
      time.sleep(0.002)
  finally:
    for worker in pool:
      worker.end()
  return sorted(outcomes, key=lambda o: o.seed)


def table(outcomes: list[Outcome]) -> str:
  """Formats the counts by subject as a Markdown table."""
  columns = [*GOOD, *BAD]
  rows = {name: collections.Counter(o.outcome for o in outcomes if o.subject == name)
          for name in dict.fromkeys(o.subject for o in outcomes)}
  rows["all"] = collections.Counter(o.outcome for o in outcomes)
  lines = [f"| file kind | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
  lines += [f"| {name} | {' | '.join(str(row[c] or '') for c in columns)} |" for name, row in rows.items()]
  return "\n".join(lines)


def main() -> int:
  """Runs the campaign; returns the number of failures, at most 1."""
  from tests.campaigns import subjects
  from unilip_jax.common import machine

  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--mutations", type=int, default=2000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", default="", help="comma-separated subjects")
  parser.add_argument("--workers", type=int, default=os.cpu_count())
  parser.add_argument("--show", type=int, default=10, help="failures to print")
  parser.add_argument("--out", default="", help="JSON file")
  args = parser.parse_args()
  names = args.only.split(",") if args.only else list(subjects.SUBJECTS)
  begin = time.monotonic()
  with tempfile.TemporaryDirectory(prefix="damage-") as folder:
    outcomes = run(args.mutations, args.seed, names, args.workers, pathlib.Path(folder))
  seconds = time.monotonic() - begin
  failures = [o for o in outcomes if o.outcome in BAD]
  print(table(outcomes))
  print(f"{len(outcomes)} mutations, {len(failures)} failures, {seconds:.0f} s")
  for o in failures[:args.show]:
    print(f"{o.outcome}: seed {o.seed}, {o.mutation} {o.subject}/{o.file}: {o.detail}")
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps({
        "command": f"python -m tests.campaigns.damage --mutations={args.mutations} --seed={args.seed}",
        "machine": f"{os.cpu_count()} cores {machine.processor()}", "seconds": round(seconds),
        "counts": collections.Counter(o.outcome for o in outcomes),
        "by_subject": {
            n: collections.Counter(o.outcome for o in outcomes if o.subject == n) for n in names},
        "failures": [dataclasses.asdict(o) for o in failures]}, indent=2) + "\n")
  return min(1, len(failures))


if __name__ == "__main__":
  sys.exit(main())
