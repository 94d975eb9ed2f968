"""What a run writes about itself next to its metrics: its config, and the starts of its command.

run.json holds {"id", "count" of starts, "starts": [{time, command, commit, step, seed, machine, devices,
processes, versions}]}, oldest first. config.json holds the config, the origin of the first weights and the
tokenizer's SHA-256.
"""

import time
from typing import Any
import uuid

from absl import logging
from etils import epath
import jax
import ml_collections

from unilip_jax.common import atomic_io, json_file, machine
from unilip_jax.multihost import session
from unilip_jax.training import initial_state, samples
from unilip_jax.weights import language, sources

STARTS = "run.json"
_MAX_STARTS = 100  # kept: the first one and the newest


def open_folder(workdir: str) -> epath.Path:
  """Creates the workdir, checks that all hosts share it, and removes what killed processes left."""
  folder = epath.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  session.check_shared(folder)
  if session.index() == 0:
    for place in (folder, folder / samples.FOLDER):
      atomic_io.remove_leftovers(place)
  return folder


def remove_frozen(folder: epath.Path) -> None:
  """Removes frozen weights of a start that failed before its first checkpoint; they may be others."""
  steps = folder / sources.STEPS  # a damaged checkpoint that was set aside is one, too
  if jax.process_index() == 0 and (folder / sources.FROZEN).exists() and not (
      steps.exists() and any(steps.iterdir())):
    logging.warning("%s holds frozen weights and no checkpoint: they are written again", folder)
    (folder / sources.FROZEN).rmtree()
  session.all_gather_text("frozen weights of a failed start are removed")


def write(
    folder: epath.Path, config: ml_collections.ConfigDict, start: initial_state.Start, tokenizer: str
) -> dict[str, Any]:
  """Writes config.json and run.json, and keeps the tokenizer, on process 0.

  Args:
    folder: the workdir.
    config: of the run.
    start: where it begins.
    tokenizer: SHA-256, "" without one.

  Returns:
    What run.json says of this start, with the run's `id`; {} on other processes.
  """
  if jax.process_index():
    return {}
  language.keep_tokenizer(config, folder)
  _write_config(folder / language.CONFIG, config, start, tokenizer)
  try:
    record = read(folder)
  except ValueError as error:
    logging.error("%s; the earlier starts are lost", error)
    record = {}
  starts = [*record.get("starts", []), {
      "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
      "command": machine.command(), "commit": machine.commit(), "step": start.step, "seed": config.seed,
      "machine": machine.describe(),
      "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
      "processes": jax.process_count(), "versions": machine.versions()}]
  if len(starts) > _MAX_STARTS:
    starts = [starts[0], *starts[1 - _MAX_STARTS:]]
  record = {"id": record.get("id", uuid.uuid4().hex[:8]), "starts": starts,
            "count": record.get("count", 0) + 1}
  json_file.write(folder / STARTS, record)
  return starts[-1] | {"id": record["id"]}


def read(folder: epath.PathLike) -> dict[str, Any]:
  """Reads run.json; {} of a run without it."""
  path = epath.Path(folder) / STARTS
  if not path.exists():
    return {}
  return json_file.read(path, remedy="delete it: it only describes the starts of the run",
                        kinds={"id": str, "starts": list, "count": int})


def _write_config(
    path: epath.Path, config: ml_collections.ConfigDict, start: initial_state.Start, tokenizer: str
) -> None:
  origin = start.origin
  if start.continues and path.exists():
    try:
      origin = json_file.read(path, remedy="it is written again").get("started_from", origin)
    except ValueError as error:
      logging.error("%s; the origin of the first weights is lost", error)
  entries = {"started_from": origin} | ({language.HASH: tokenizer} if tokenizer else {})
  json_file.write(path, config.to_dict() | entries)
