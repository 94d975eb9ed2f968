"""Kills commands at random moments and runs them again: `python -m tests.campaigns.kill --kills=200`.

train, eval, prepare, import and export run at micro size in forked children (forks.py). A kill is SIGKILL.
Its moment is drawn in three steps: a phase (phases.py), one of its occurrences, and a fraction of the time
until the next phase; all uniform, as measured in an uninterrupted run; every third one is at any moment of
the run. A chain is a command that is
killed one to three times and then finishes. Its files are compared with those of the uninterrupted run:
arrays bit for bit, metrics by value, everything else by bytes; nothing may be left over.
"""

import argparse
import collections
from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time
from typing import Any

from tests.campaigns import forks, phases

_WAIT = 240
_STEPS = 6
_MOMENTS = 1 / 3  # of the kills at any moment of the run, whatever the phase
_FIELDS = {"total_steps": _STEPS, "checkpoint_every_steps": 2, "sample_every_steps": 3,
           "eval__every_steps": 3, "batch_size": 4, "eval__batch_size": 4}


@dataclasses.dataclass(frozen=True)
class Command:
  """A command of the campaign.

  Attributes:
    function: of runs.py.
    arguments: with {place} for the folder that it writes below.
    before: folders of the inputs that are copied to the place first, {name there: source}.
  """

  function: str
  arguments: Sequence[Any]
  before: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)


class Campaign:
  """Commands, their uninterrupted runs, and what came of the kills."""

  def __init__(self, server: forks.Server, folder: pathlib.Path, seed: int, names: Sequence[str]):
    self._server, self._folder, self._rng = server, folder, random.Random(seed)
    self._cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(folder / "xla")
    self.kills: collections.Counter = collections.Counter()
    self.at: collections.Counter = collections.Counter()
    self.chains: collections.Counter = collections.Counter()
    self.failures: list[dict[str, Any]] = []
    self._commands = self._make_commands(names)
    self._right: dict[str, dict[str, str]] = {}
    self._events: dict[str, list[phases.Event]] = {}

  def _make_commands(self, names: Sequence[str]) -> dict[str, Command]:
    """Returns all commands, after it has made what those of `names` read."""
    from tests import micro
    from tests.data.prepare import small_datasets

    inputs = self._folder / "inputs"
    images = str(micro.write_images(inputs / "images", 12))
    small_datasets.sharegpt4o(inputs / "share", 8)
    trains = Command("train", (self._cache, "stage1", images, "{place}/run", _FIELDS))
    exports = Command(
        "convert", ("export", "--checkpoint=shapes:stage2", "--format=components", "--out={place}/out"))
    for name, readers, command in (("run", {"eval"}, trains), ("published", {"import", "export"}, exports)):
      if readers.intersection(names):
        self._finish(self._start(command, inputs / name))
    run = inputs / "run/run"
    return {
        "train": trains,
        "eval": dataclasses.replace(trains, function="evaluates", before={"run": run}),
        "prepare": Command("prepare", (
            "sharegpt4o", f"--source={inputs / 'share'}", "--out={place}/out", "--workers=1", "--quiet",
            "--records_per_shard=2")),
        "import": Command("convert", (
            "import", f"--source={inputs / 'published/out'}", "--out={place}/out", "--overwrite")),
        "export": dataclasses.replace(
            exports, arguments=(*exports.arguments, "--overwrite"),
            before={"out": inputs / "published/out"})}

  def _start(self, command: Command, place: pathlib.Path) -> forks.Child:
    """Starts a command below a folder that exists."""
    place.mkdir(parents=True, exist_ok=True)
    arguments = [a.replace("{place}", str(place)) if isinstance(a, str) else a for a in command.arguments]
    events = place.with_name(place.name + ".phases")
    events.unlink(missing_ok=True)
    return self._server.start(
        f"tests.campaigns.runs:{command.function}", *arguments, log=place.with_name(place.name + ".log"),
        env={phases.VARIABLE: str(events)})

  def _finish(self, child: forks.Child) -> None:
    status = child.wait(_WAIT)
    if status:
      raise RuntimeError(f"status {status}: {child.output()[-1500:]}")

  def _reference(self, name: str) -> None:
    """Runs a command without kills, twice: the second time with compiled programs in the cache."""
    if name in self._right:
      return
    for turn in ("first", "right"):
      place = self._place(name, turn)
      self._finish(self._start(self._commands[name], place))
      events = phases.read(place.with_name(place.name + ".phases"))
      self._events[name] = [*events, phases.Event("end", time.monotonic())]
    self._right[name] = summary(place)
    if not self._right[name]:
      raise RuntimeError(f"{name} wrote nothing: {place}")

  def _place(self, name: str, turn: str) -> pathlib.Path:
    """Returns a new folder with what a command needs there; the same path every time, for equal files."""
    place = self._folder / name / "place"
    shutil.rmtree(place.parent, ignore_errors=True)
    for there, source in self._commands[name].before.items():
      shutil.copytree(source, place / there)
    return place

  def chain(self, name: str, kills: int) -> int:
    """Kills a command up to `kills` times and lets it finish; returns the number of kills."""
    self._reference(name)
    place, killed = self._place(name, "chain"), []
    begin = time.monotonic()
    try:
      for _ in range(kills):
        child = self._start(self._commands[name], place)
        phase = self._kill(name, child, place.with_name(place.name + ".phases"))
        if phase is None:
          break
        killed.append(phase)
      else:
        self._finish(self._start(self._commands[name], place))
      wrong = differences(self._right[name], summary(place))
    except (RuntimeError, TimeoutError, ValueError, OSError) as error:
      wrong = [str(error)]
    self.kills[name] += len(killed)
    self.at.update(phase for phase, _ in killed)
    self.chains[name] += 1
    if wrong:
      self.failures.append({"command": name, "kills": killed, "wrong": wrong[:6],
                            "seconds": round(time.monotonic() - begin, 1)})
    return len(killed)

  def _kill(self, name: str, child: forks.Child, file: pathlib.Path) -> tuple[str, float] | None:
    """Kills the child at a drawn moment; returns (phase, seconds into it), None if it ended before."""
    events = self._events[name]
    if self._rng.random() < _MOMENTS:
      phase, number = phases.START, 0
      delay = self._rng.random() * (events[-1].time - events[0].time)
    else:
      phase = self._rng.choice(sorted({e.name for e in events[:-1]}))
      places = [i for i, e in enumerate(events) if e.name == phase]
      number = self._rng.randrange(len(places))
      at = places[number]
      delay = self._rng.random() * (events[at + 1].time - events[at].time)
    deadline = time.monotonic() + _WAIT
    while True:
      found = [e for e in phases.read(file) if e.name == phase]
      if len(found) > number and time.monotonic() >= found[number].time + delay:
        break
      status = child.poll()
      if status is not None:
        if status:
          raise RuntimeError(f"status {status}: {child.output()[-1500:]}")
        return None
      if time.monotonic() > deadline:
        child.wait(0)
      time.sleep(0.002)
    if child.poll() is not None:
      return None
    child.kill()
    return phase, round(delay, 3)


def summary(place: pathlib.Path) -> dict[str, str]:
  """Returns {file: content or hash} of all that a command wrote."""
  from unilip_jax.common import tree
  from unilip_jax.training import ledger, run_files
  from unilip_jax.weights import orbax_io

  values: dict[str, str] = {}
  trees = {p.parent for p in place.rglob("_METADATA")}
  for folder in sorted(trees):
    arrays = tree.flatten(_as_dict(orbax_io.read_tree(folder)))
    values |= {f"{folder.relative_to(place)}/{name}": _hash(x.tobytes() + str(x.dtype).encode())
               for name, x in arrays.items() if x is not None}
  for file in sorted(p for p in place.rglob("*") if p.is_file()):
    name = file.relative_to(place).as_posix()
    if trees & set(file.parents) or "tensorboard/" in name or file.name in _UNSTABLE:
      continue  # arrays, event files and orbax' own times
    if file.name == "metrics.jsonl":
      rows = map(_stable_row, file.read_text().splitlines())
      # A run that is killed between the totals of its seconds and its end writes them twice.
      values[name] = "\n".join(row for row in rows if json.loads(row).keys() != {"step"})
    elif file.name in ("results.json", "manifest.json", "model.json"):
      values[name] = _stable_row(file.read_text())
    elif file.name == run_files.STARTS:
      values[name] = _sound_starts(json.loads(file.read_text()))
    elif file.name == ledger.FILE:  # seconds of this history; what stays is whether the run came to its end
      values[name] = f"ended: {json.loads(file.read_text())['ended']}"
    else:
      values[name] = _hash(file.read_bytes())
  return values


# The checksums of arrays' files: orbax names the files at random.
_UNSTABLE = ("_CHECKPOINT_METADATA", "checksums.json")


def _as_dict(value: Any) -> Any:
  """Turns lists and tuples into dicts, for `tree.flatten`."""
  if isinstance(value, list | tuple):
    value = {str(i): v for i, v in enumerate(value)}
  return {str(k): _as_dict(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _sound_starts(content: Mapping[str, Any]) -> str:
  """Returns "sound" for a run.json of which all starts are counted and no step falls, else the content."""
  steps = [start["step"] for start in content["starts"]]
  return "sound" if content["count"] == len(steps) and steps == sorted(steps) else json.dumps(content)


def _stable_row(text: str) -> str:
  """Returns a JSON object without times and speeds."""
  row = json.loads(text)
  return json.dumps({k: v for k, v in row.items() if k not in ("time", "machine", "crc32c", "checksum")
                     and not k.startswith(("rate/", "seconds/"))}, sort_keys=True)


def _hash(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()[:16]


def differences(right: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
  """Lists the files that are missing, left over or different; of rows also the first that differs."""
  wrong = []
  for name in sorted(right.keys() | found.keys()):
    if name not in found or name not in right:
      wrong.append(f"{name}: {'missing' if name not in found else 'left over'}")
    elif right[name] != found[name]:
      pairs = itertools.zip_longest(right[name].splitlines(), found[name].splitlines())
      row = next((f"; {b} for {a}" for a, b in pairs if a != b), "") if name.endswith(".jsonl") else ""
      wrong.append(f"{name}: differs{row}")
  return wrong


def main() -> int:
  """Runs the campaign; returns 1 if a chain failed."""
  from absl import logging

  from unilip_jax.common import machine

  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--kills", type=int, default=200)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", default="train,eval,prepare,import,export")
  parser.add_argument("--out", default="", help="JSON file")
  parser.add_argument("--keep", default="", help="folder for what failed chains left")
  args = parser.parse_args()
  logging.set_verbosity(logging.ERROR)  # orbax warns of every item that is read by itself
  names, begin = args.only.split(","), time.monotonic()
  rng = random.Random(args.seed)
  with tempfile.TemporaryDirectory(prefix="kill-") as folder, forks.Server() as server:
    campaign = Campaign(server, pathlib.Path(folder), args.seed, names)
    prepared = time.monotonic() - begin
    while (done := sum(campaign.kills.values())) < args.kills:
      name = min(names, key=lambda n: (campaign.kills[n], names.index(n)))
      failed = len(campaign.failures)
      campaign.chain(name, min(rng.randint(1, 3), args.kills - done))
      if args.keep and len(campaign.failures) > failed:
        shutil.copytree(pathlib.Path(folder) / name, pathlib.Path(args.keep) / f"{name}-{failed}")
  seconds = time.monotonic() - begin
  print("| command | kills | chains | failed chains |\n|---|---|---|---|")
  for name in names:
    failed = sum(f["command"] == name for f in campaign.failures)
    print(f"| {name} | {campaign.kills[name]} | {campaign.chains[name]} | {failed} |")
  print(f"{done} kills, {len(campaign.failures)} failed chains, {seconds:.0f} s "
        f"({prepared:.0f} s to prepare)")
  for failure in campaign.failures[:20]:
    print(json.dumps(failure))
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps({
        "command": f"python -m tests.campaigns.kill --kills={args.kills} --seed={args.seed}",
        "machine": f"{os.cpu_count()} cores {machine.processor()}", "seconds": round(seconds),
        "kills": campaign.kills, "phases": campaign.at, "chains": campaign.chains,
        "failures": campaign.failures}, indent=2) + "\n")
  return int(bool(campaign.failures))


if __name__ == "__main__":
  sys.exit(main())
