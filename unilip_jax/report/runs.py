"""Reads a workdir for the report: config, starts, metrics, results, sample grids, showcase of a run."""

import dataclasses
from typing import Any

from etils import epath
import numpy as np

from unilip_jax.common import json_file
from unilip_jax.report import plots
from unilip_jax.training import ledger, metrics, run_files

# Stages in the order in which they follow each other; other runs come last.
_PIPELINE = (
    "tiny_mllm", "tiny_dcae", "tiny_sana", "stage1", "stage2", "stage448", "gen1", "gen2", "gen3", "reca",
    "few_step", "rl_nft", "rl_grpo", "lora", "lora_chat")
_MAX_GRIDS = 8  # sample grids per run, spread over the steps


@dataclasses.dataclass(frozen=True)
class Run:
  """Contents of a workdir; parts that are absent are empty."""

  name: str
  colour: str
  config: dict[str, Any]
  rows: list[dict[str, Any]]  # of metrics.jsonl, by step
  results: dict[str, Any]  # results.json
  grids: list[tuple[int, bytes]]  # (step, PNG)
  showcase: dict[str, list[dict[str, Any]]]  # {ability: entries}, see experiments/showcase.py
  record: dict[str, Any] = dataclasses.field(default_factory=dict)  # run.json

  def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one term: two float64[points]."""
    points = [(row["step"], row[key]) for row in self.rows if key in row]
    steps, values = zip(*points) if points else ((), ())
    return np.asarray(steps, float), np.asarray(values, float)

  def last(self, key: str) -> float | None:
    """The newest value of a term; None without one."""
    return next((row[key] for row in reversed(self.rows) if key in row), None)

  def place(self) -> int:
    """The stage's place in the pipeline."""
    stage = self.config.get("stage")
    return _PIPELINE.index(stage) if stage in _PIPELINE else len(_PIPELINE)

  def seconds(self) -> dict[str, float]:
    """{entry: seconds} of the ledger in its order; empty for runs of versions without one."""
    row = next((r for r in reversed(self.rows) if any(k.startswith(ledger.PREFIX) for k in r)), {})
    return {entry: row[ledger.PREFIX + entry] for entry in ledger.ENTRIES if ledger.PREFIX + entry in row}

  def scores(self) -> dict[str, float]:
    """{"<set>/<metric>": value} of results.json if it exists, else of the last evaluation."""
    if self.results:
      return {k: float(v) for k, v in self.results["metrics"].items()}
    return {k: v for row in self.rows for k, v in metrics.evaluation(row).items()}


def read(workdir: str, name: str, colour: str) -> Run:
  """Reads a workdir.

  Raises:
    FileNotFoundError: if it holds neither metrics.jsonl nor results.json.
  """
  folder = epath.Path(workdir)

  def read_json(file: str, kinds: json_file.Kinds) -> dict[str, Any]:
    return json_file.read(
        folder / file, remedy="run the command that wrote it again, or delete it",
        kinds=kinds) if (folder / file).exists() else {}

  results = read_json("results.json", {"metrics": dict})
  has_metrics = (folder / metrics.FILE).exists()
  if not results and not has_metrics:
    raise FileNotFoundError(
        f"{workdir} holds neither {metrics.FILE} nor results.json: is it the workdir of a run?")
  samples = folder / "samples"
  files = sorted(samples.glob("step_*.png")) if samples.exists() else []
  if len(files) > _MAX_GRIDS:
    files = [files[round(i)] for i in np.linspace(0, len(files) - 1, _MAX_GRIDS)]
  return Run(
      name=name, colour=colour, config=read_json("config.json", {}) or results.get("config", {}),
      rows=metrics.read(workdir) if has_metrics else [], results=results,
      grids=[(int(f.stem.removeprefix("step_")), f.read_bytes()) for f in files],
      showcase=_read_showcase(folder / "showcase"), record=run_files.read(folder))


def _read_showcase(folder: epath.Path) -> dict[str, list[dict[str, Any]]]:
  """{ability: entries}, with data URLs instead of the images' files."""
  if not (folder / "showcase.json").exists():
    return {}
  abilities: dict[str, list[dict[str, Any]]] = {}
  for entry in json_file.read(folder / "showcase.json", remedy="delete it, or make the showcase again",
                              kinds={"entries": list})["entries"]:
    images = [(image["label"], plots.data_url((folder / image["file"]).read_bytes(), "image/png"))
              for image in entry["images"]]
    abilities.setdefault(entry["ability"], []).append(entry | {"images": images})
  return abilities
