"""Scores a benchmark during training and with --mode=eval: protocol "benchmark" of `eval.sets`.

A row is (name, "benchmark", name of the benchmark, its own file or folder, {option: value}). Images are
made with the evaluated weights on the run's mesh into
<workdir>/benchmarks/<name>/<weights fingerprint>/images. They are scored if a judge is stated, or if
judgements are in the folder `judged` next to them; otherwise the log has the commands that score them.

Options: images_per_item and noise as of `evals make`; max_items, evenly spaced in each
category; judge_url, judge_model, judge_prompts and judge_budget as of `evals judge`.
"""

from collections.abc import Iterable, Iterator
import json
import math
from typing import Any

from absl import logging
from etils import epath
import jax

from unilip_jax.evals import base as evals_base
from unilip_jax.multihost import preemption, session
from unilip_jax.sampling import sampler
from unilip_jax.scores import base, judging, make, make_record, makers, provenance, result
from unilip_jax.tasks import base as tasks_base
from unilip_jax.weights import fingerprints

FOLDER = "benchmarks"
_OPTIONS = ("images_per_item", "noise", "max_items", "judge_url", "judge_model", "judge_prompts",
            "judge_budget")
_JUDGE_SECONDS = 24 * 3600.0  # that other processes wait for the one that asks the judge


def make_evaluator(row: evals_base.Row, context: evals_base.Context) -> evals_base.Evaluator:
  """Makes the evaluator of one benchmark.

  Args:
    row: see the module's docstring.
    context: its config's eval.batch_size, eval.seed, eval.max_examples and sample.* are used.

  Returns:
    An evaluator of images (how many there are) and, where they are judged, of score, the categories, n,
    missing and malformed.

  Raises:
    FileNotFoundError, ValueError: for a benchmark, file, option or task that does not suit.
  """
  config, task, options = context.config, context.task, dict(row.source.options)
  benchmark = base.find(row.source.kind)
  if unknown := sorted(options.keys() - set(_OPTIONS)):
    raise ValueError(f"eval.sets {row.name}: unknown options {unknown}; known: {', '.join(_OPTIONS)}")
  if benchmark.kind == "understanding":
    raise ValueError(f"eval.sets {row.name}: {benchmark.name} asks for answers; use `evals make`")
  if not isinstance(task, tasks_base.GeneratesImages):
    raise ValueError(f"eval.sets {row.name}: stage {config.stage} generates no images")
  items = benchmark.read_items(row.source.path)
  chosen = _spaced(items, options.get("max_items") or config.eval.max_examples)
  settings = make.Settings(
      sampler.Options(**config.sample), config.eval.seed, options.get("noise", "shared"),
      config.image_size, options.get("images_per_item"))
  images = task.make_sampler(config.eval.batch_size, context.mesh)

  def evaluate(params: Any) -> dict[str, float]:
    fingerprint = fingerprints.fingerprint(params)
    folder = epath.Path(context.workdir) / FOLDER / row.name / fingerprint
    maker = makers.TaskMaker(images, params, config.eval.batch_size)
    absent = _from_first(f"{row.name} absent", lambda: _open(folder, maker))
    processes, process = jax.process_count(), jax.process_index()
    make.make_images(
        benchmark, items, folder / "images", maker, settings, absent=[tuple(key) for key in absent],
        writes=lambda position: position % processes == process, progress=_interruptible)
    session.all_gather_text(f"{row.name} made")
    metrics = _from_first(f"{row.name} scored", lambda: _score(folder))
    return {f"{row.name}/{metric}": value for metric, value in metrics.items()}

  def _open(folder: epath.Path, maker: makers.Maker) -> list[Any]:
    record = make.record(benchmark, settings, maker, config.dtype, False)
    out = make_record.open_folder(folder / "images", record | {
        "items": provenance.file_hashes(row.source.path), "items_sha256": provenance.items_digest(items),
        "items_made": len(chosen), "checkpoint": context.workdir, "weights_fingerprint": folder.name})
    return make.list_absent(benchmark, chosen, out, settings)

  def _score(folder: epath.Path) -> dict[str, float]:
    judged = folder / "judged"
    common = [f"--benchmark={benchmark.name}", f"--items={row.source.path}"]
    judge = [*common, f"--images={folder / 'images'}", f"--out={judged}"]
    if url := options.get("judge_url"):
      named = {"model": "judge_model", "prompts": "judge_prompts", "budget": "judge_budget"}
      judging.main([*judge, f"--base_url={url}", *(
          f"--{flag}={options[name]}" for flag, name in named.items() if name in options)])
    metrics = {"images": float(len(chosen) * (settings.images_per_item or benchmark.images_per_item))}
    if not judged.exists():
      step = ("unilip evals judge " + " ".join(judge) if benchmark.judge else
              f"run the official detector on {folder / 'images'}, its files into {judged}")
      logging.info("%s: images are in %s; score them: %s, then unilip evals aggregate %s --source=%s",
                   row.name, folder / "images", step, " ".join(common), judged)
      return metrics
    score = benchmark.aggregate(str(judged), items=row.source.path)
    result.write(str(judged), result.build(
        benchmark, score, str(judged), items=row.source.path, images=str(folder / "images")))
    return metrics | _metrics(score, benchmark, subset=len(chosen) < len(items))

  return evaluate


def _metrics(score: base.Score, benchmark: base.Benchmark, *, subset: bool) -> dict[str, float]:
  """Metrics of a score; that of a subset combines its values, since official rules may want all items."""
  groups: dict[str, list[float]] = {}
  for value in score.values:
    groups.setdefault(value.category, []).append(value.value)
  overall = benchmark.overall(groups) if subset else score.score
  metrics = {"n": float(score.n), "malformed": float(score.malformed)}
  if not subset:
    metrics["missing"] = float(score.missing)
  if overall is not None and math.isfinite(overall):
    metrics["score"] = float(overall)
  return metrics | {f"score/{name}": float(v) for name, v in score.categories.items() if v is not None}


def _spaced(items: list[base.Item], count: int | None) -> list[base.Item]:
  """Returns about `count` items, evenly spaced in each category, at least one of each; all without it."""
  if not count or count >= len(items):
    return items
  categories: dict[str, list[base.Item]] = {}
  for item in items:
    categories.setdefault(item.category, []).append(item)
  chosen: set[str] = set()
  for group in categories.values():
    number = max(1, round(count * len(group) / len(items)))
    chosen |= {group[i * len(group) // number].id for i in range(number)}
  return [item for item in items if item.id in chosen]


def _interruptible(batches: Iterable[Any]) -> Iterator[Any]:
  """Yields batches; lets a run stop between them, and restarts its timeouts."""
  for batch in batches:
    preemption.preemption_point()
    yield batch


def _from_first(name: str, function) -> Any:
  """Calls a function in process 0 and returns its JSON-ready value in all."""
  text = json.dumps(function()) if jax.process_index() == 0 else ""
  return json.loads(session.all_gather_text(name, text, _JUDGE_SECONDS)[0])
