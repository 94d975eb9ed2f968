"""Scores a benchmark during training and with --mode=eval: protocol "benchmark" of `eval.sets`.

A row is (name, "benchmark", name of the benchmark, its own file or folder, {option: value}). Images or
answers are made with the evaluated weights on the run's mesh into
<workdir>/benchmarks/<name>/<weights fingerprint>/images or answers. They are scored if no judge is needed,
a judge is stated, or judgements are in the folder `judged` next to them; otherwise the log has the commands
that score them.

Options: max_items, evenly spaced in each category, questions that count only together as one; judge_url,
judge_model, judge_prompts and judge_budget as of `evals judge`; images_per_item and noise, or
max_new_tokens and max_tiles, as of `evals make`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import json
import math
from typing import Any

from absl import logging
from etils import epath
import jax

from unilip_jax.data import text as text_lib
from unilip_jax.evals import answering
from unilip_jax.evals import base as evals_base
from unilip_jax.infer import chat as chat_lib
from unilip_jax.multihost import preemption, session
from unilip_jax.sampling import sampler
from unilip_jax.scores import answers as answers_lib
from unilip_jax.scores import base, judging, make, make_record, makers, provenance, result
from unilip_jax.tasks import base as tasks_base
from unilip_jax.weights import fingerprints

FOLDER = "benchmarks"
_OPTIONS = ("max_items", "judge_url", "judge_model", "judge_prompts", "judge_budget")
_IMAGE_OPTIONS, _ANSWER_OPTIONS = ("images_per_item", "noise"), ("max_new_tokens", "max_tiles")
_MAX_NEW_TOKENS = 256
_JUDGE_SECONDS = 24 * 3600.0  # that other processes wait for the one that asks the judge

# (evaluated weights, folder of this set and these weights) -> number of images or answers that it holds
Make = Callable[[Any, epath.Path], int]


def make_evaluator(row: evals_base.Row, context: evals_base.Context) -> evals_base.Evaluator:
  """Makes the evaluator of one benchmark.

  Args:
    row: see the module's docstring.
    context: its config's eval.batch_size, eval.seed, eval.max_examples, eval.llm, sample.* and text.* are
      used.

  Returns:
    An evaluator of images or answers (how many there are) and, where they are scored, of score, the
    categories, n, missing and malformed.

  Raises:
    FileNotFoundError, ValueError: for a benchmark, file, option or task that does not suit.
  """
  options = dict(row.source.options)
  benchmark = base.reading_once(base.find(row.source.kind))
  answers = benchmark.kind == "understanding"
  known = (*_OPTIONS, *(_ANSWER_OPTIONS if answers else _IMAGE_OPTIONS))
  if unknown := sorted(options.keys() - set(known)):
    raise ValueError(f"eval.sets {row.name}: unknown options {unknown}; known: {', '.join(known)}")
  items = benchmark.read_items(row.source.path)
  chosen = _spaced(benchmark, items, options.get("max_items") or context.config.eval.max_examples)
  common = {"items": provenance.file_hashes(row.source.path), "items_made": len(chosen),
            "items_sha256": provenance.items_digest(items), "checkpoint": context.workdir}
  make_all = (_answers(row, context, benchmark, chosen, common) if answers
              else _images(row, context, benchmark, items, chosen, common))
  kind = "answers" if answers else "images"

  def evaluate(params: Any) -> dict[str, float]:
    folder = epath.Path(context.workdir) / FOLDER / row.name / fingerprints.fingerprint(params)
    count = make_all(params, folder / kind)
    session.all_gather_text(f"{row.name} made")
    metrics = _from_first(f"{row.name} scored", lambda: _score(
        row, benchmark, folder, kind, None if len(chosen) == len(items) else {i.id for i in chosen}))
    return {f"{row.name}/{metric}": value for metric, value in ({kind: float(count)} | metrics).items()}

  return evaluate


def _images(
    row: evals_base.Row, context: evals_base.Context, benchmark: base.Benchmark,
    items: Sequence[base.Item], chosen: Sequence[base.Item], common: Mapping[str, Any]) -> Make:
  """Makes the function that makes images.

  Raises:
    ValueError: for a task that generates none.
  """
  config, task, options = context.config, context.task, dict(row.source.options)
  if not isinstance(task, tasks_base.GeneratesImages):
    raise ValueError(f"eval.sets {row.name}: stage {config.stage} generates no images")
  settings = make.Settings(
      sampler.Options(**config.sample), config.eval.seed, options.get("noise", "shared"),
      config.image_size, options.get("images_per_item"))
  images = task.make_sampler(config.eval.batch_size, context.mesh)

  def make_all(params: Any, folder: epath.Path) -> int:
    maker = makers.TaskMaker(images, params, config.eval.batch_size)

    def list_absent() -> list[Any]:
      record = make.record(benchmark, settings, maker, config.dtype, False)
      out = make_record.open_folder(
          folder, record | common | {"weights_fingerprint": folder.parent.name})
      return make.list_absent(benchmark, chosen, out, settings)

    absent = _from_first(f"{row.name} absent", list_absent)
    processes, process = jax.process_count(), jax.process_index()
    make.make_images(
        benchmark, items, folder, maker, settings, absent=[tuple(key) for key in absent],
        writes=lambda position: position % processes == process, progress=_interruptible)
    return len(chosen) * (settings.images_per_item or benchmark.images_per_item)

  return make_all


def _answers(
    row: evals_base.Row, context: evals_base.Context, benchmark: base.Benchmark,
    chosen: Sequence[base.Item], common: Mapping[str, Any]) -> Make:
  """Makes the function that makes answers; errors as of answering.find_task."""
  config, options = context.config, dict(row.source.options)
  task, complete = answering.find_task(row.name, context)
  limits = {"max_new_tokens": options.get("max_new_tokens", _MAX_NEW_TOKENS),
            "max_tiles": options.get("max_tiles", benchmark.max_tiles)}
  # As UniLIP.chat: the tower's own size. config.image_size is that of the stage's targets.
  sizes = {"image_size": task.preset.tokenizer.vit.image_size, "batch_size": config.eval.batch_size}
  chat = chat_lib.Chat(task.model, text_lib.Text(config.text.tokenizer), mesh=context.mesh, **sizes)

  def make_all(params: Any, folder: epath.Path) -> int:
    maker = makers.TaskAnswerer(chat, complete(params), system=config.text.system, **sizes)

    def list_done() -> list[str]:
      record = make.answers_record(benchmark, chosen, maker, config.dtype, False, **limits)
      out = make_record.open_folder(
          folder, record | common | {"weights_fingerprint": folder.parent.name})
      return list(answers_lib.read_logs(out))

    done = _from_first(f"{row.name} done", list_done)
    make.make_answers(benchmark, chosen, folder, maker, done=set(done), writes=jax.process_index() == 0,
                      progress=_interruptible, **limits)
    return len(chosen)

  return make_all


def _score(
    row: evals_base.Row, benchmark: base.Benchmark, folder: epath.Path, kind: str, subset: set[str] | None
) -> dict[str, float]:
  """Judges if an endpoint is stated; scores and writes the result if there is something to score.

  Args:
    row, benchmark: of the set.
    folder: holds the folder `kind`, "images" or "answers".
    kind: see `folder`.
    subset: ids of the items that were made; None for all.
  """
  options, made = dict(row.source.options), folder / kind
  judged = folder / "judged"
  if benchmark.scores_images or (kind == "answers" and benchmark.judge is None):
    judged = made
  common = [f"--benchmark={benchmark.name}", f"--items={row.source.path}"]
  judge = [*common, f"--{kind}={made}", f"--out={judged}"]
  if url := options.get("judge_url"):
    named = {"model": "judge_model", "prompts": "judge_prompts", "budget": "judge_budget"}
    judging.main([*judge, f"--base_url={url}", *(
        f"--{flag}={options[name]}" for flag, name in named.items() if name in options)])
  if not judged.exists():
    step = ("unilip evals judge " + " ".join(judge) if benchmark.judge else
            f"run the official detector on {made}, its files into {judged}")
    logging.info("%s: %s are in %s; score them: %s, then unilip evals aggregate %s --source=%s",
                 row.name, kind, made, step, " ".join(common), judged)
    return {}
  source = str(made / answers_lib.PREDICTIONS if judged == made and kind == "answers" else judged)
  score = benchmark.aggregate(source, items=row.source.path)
  result.write(str(judged), result.build(
      benchmark, score, source, items=row.source.path, images=str(made)))
  return _metrics(score, benchmark, subset)


def _metrics(score: base.Score, benchmark: base.Benchmark, subset: set[str] | None) -> dict[str, float]:
  """Metrics of a score; that of a subset combines its values, since official rules may want all items."""
  metrics = {"n": float(score.n), "malformed": float(score.malformed)}
  overall, categories = score.score, score.categories
  if subset is None:
    metrics["missing"] = float(score.missing)
  else:
    groups: dict[str, list[float]] = {}
    for value in score.values:
      # A judge's values are of items, and those of absent items may be 0.
      if benchmark.judge is None or value.id in subset:
        groups.setdefault(value.category, []).append(value.value)
    overall, categories = benchmark.overall(groups), {c: base.mean(v) for c, v in groups.items()}
  if overall is not None and math.isfinite(overall):
    metrics["score"] = float(overall)
  return metrics | {f"score/{name}": float(v) for name, v in categories.items() if v is not None}


def _spaced(
    benchmark: base.Benchmark, items: Sequence[base.Item], count: int | None) -> Sequence[base.Item]:
  """Returns about `count` items, evenly spaced in each category, at least one of each; all without it.

  Items that count only together are one.
  """
  if not count or count >= len(items):
    return items
  categories: dict[str, list[list[base.Item]]] = {}
  for unit in benchmark.units(items):
    categories.setdefault(unit[0].category, []).append(unit)
  chosen: set[str] = set()
  for group in categories.values():
    number = max(1, round(count * len(group) / len(items)))
    chosen |= {item.id for i in range(number) for item in group[i * len(group) // number]}
  return [item for item in items if item.id in chosen]


def _interruptible(batches: Iterable[Any]) -> Iterator[Any]:
  """Yields batches; lets a run stop between them, and restarts its timeouts."""
  for batch in batches:
    preemption.preemption_point()
    yield batch


def _from_first(name: str, function: Callable[[], Any]) -> Any:
  """Calls a function in process 0 and returns its JSON-ready value in all."""
  text = json.dumps(function()) if jax.process_index() == 0 else ""
  return json.loads(session.all_gather_text(name, text, _JUDGE_SECONDS)[0])
