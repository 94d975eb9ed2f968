"""The interface of a benchmark: items, layout, judge requests, parser and aggregation.

Three steps that meet only in files: *make* writes images or answers in the benchmark's own layout, *judge*
asks a detector or a chat model, *aggregate* computes the score. Each starts from files that others made.
"""

import abc
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
import math
from typing import Any

import numpy as np

from unilip_jax.common import registry
from unilip_jax.scores import records, requests

RULES = ("official", "strict")

_BENCHMARKS = {
    "geneval": "geneval:GenEval", "geneval-long": "geneval:GenEvalLong", "geneval-hf": "geneval:GenEvalHf",
    "wise": "wise:Wise", "wise-rewrite": "wise:WiseRewritten", "wise-verified": "wise:WiseVerified",
    "imgedit": "imgedit:ImgEdit", "imgedit-hard": "imgedit:ImgEditHard",
    "mme": "mme:Mme", "mmbench": "multiple_choice:MMBench", "seed": "multiple_choice:Seed",
    "ai2d": "multiple_choice:Ai2d", "mmvp": "mmvp:Mmvp", "mmmu": "mmmu:Mmmu", "mmvet": "mmvet:MmVet",
    "dpg": "dpg:Dpg", "dpg-1": "dpg:DpgOne",
    "gedit": "gedit:GEdit", "gedit-cn": "gedit:GEditChinese",
}
for _name, _target in _BENCHMARKS.items():
  registry.register("benchmark", _name, f"unilip_jax.scores.{_target}")


@dataclasses.dataclass(frozen=True)
class Published:
  """Holds a published score.

  Attributes:
    system: whose score.
    score: on the scale of `Score.score`.
    source: where it is published.
    note: judge, prompts or variant, if the source states them.
  """

  system: str
  score: float
  source: str
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Item:
  """Holds one prompt, instruction or question.

  Attributes:
    id: unique within the benchmark; image k of item i is named by (i, k).
    prompt: text of the benchmark, before the model's own template.
    category: as in `Score.categories`.
    images: input images: path of a file, or a file's bytes.
    record: as read from the benchmark's file.
  """

  id: str
  prompt: str
  category: str
  images: tuple[str | bytes, ...] = ()
  record: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Judgement:
  """Holds what a judge answered about image k of an item.

  Attributes:
    item_id, k: of the image (understanding: k is 0).
    answers: {Request.key: raw text of the last try}; None where no answer came.
    scores: parsed; None if an answer is missing, refused or malformed.
    problem: "" or why scores is None: "refused", "malformed", "failed: ...".
  """

  item_id: str
  k: int
  answers: Mapping[str, str | None]
  scores: Mapping[str, float] | None
  problem: str = ""


@dataclasses.dataclass(frozen=True)
class Value:
  """Holds the value of one scored record, for bootstrap intervals over prompts.

  Attributes:
    id: of the item; several values of one item are resampled together.
    category: as in `Score.categories`.
    value: on the scale of `Score.score`.
  """

  id: str
  category: str
  value: float


@dataclasses.dataclass(frozen=True)
class Score:
  """Holds an aggregated score.

  Attributes:
    score: overall, as the official scorer of these files computes it; None if it gives none. A fraction
      where the benchmark is one.
    categories: {category: score}.
    n: records in the score; with strict rules also those that count 0.
    missing: expected records that are absent.
    malformed: records that are present and unreadable.
    rules: "official" (the official scorer, bugs included) or "strict" (missing and malformed count 0).
    variants: every overall rule in use, by name.
    published_variant: the name in `variants` that published numbers used.
    messages: what was skipped, doubled or absent, each named.
    values: of each scored record.
    details: other numbers that the official scorer prints.
  """

  score: float | None
  categories: Mapping[str, float | None]
  n: int
  missing: int
  malformed: int
  rules: str
  variants: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
  published_variant: str = ""
  messages: tuple[str, ...] = ()
  values: tuple[Value, ...] = ()
  details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def as_json(self) -> dict[str, Any]:
    """Returns what `evals aggregate --json` prints: all fields except `values`; NaN becomes None."""
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "values"}
    return _finite(fields)


class Benchmark(abc.ABC):
  """Describes a benchmark; one instance a name, without state.

  Attributes:
    name: in the registry and on command lines.
    kind: "generation", "editing", "understanding" or "reconstruction".
    revision: of the official code and data whose rules these are.
    license: of the data, as far as known; "" otherwise.
    images_per_item: image files (or answers) that the official protocol makes for each item.
    samples_per_image: samples in one image file: 1, or 4 in a 2×2 grid, row by row.
    published: scores to show next to a new one.
    judge: preset of the judge model; None if no chat model judges this benchmark.
    max_tiles: most tiles of an image that is asked about, without the thumbnail (VLMEvalKit's).
    first_image_scale: factor by which the first image of a question is enlarged before it is tiled.
    scores_images: whether `aggregate` takes the folder of images itself, without a judge's files.
    judge_files: what `read_prompts` needs and where to get it; "" if nothing.
  """

  name: str
  kind: str
  revision: str
  license: str = ""
  images_per_item: int = 1
  samples_per_image: int = 1
  max_tiles: int = 6
  first_image_scale: int = 1
  published: tuple[Published, ...] = ()
  judge: requests.Preset | None = None
  scores_images: bool = False
  judge_files: str = ""

  @property
  def tiles_per_side(self) -> int:
    """Samples in a row of an image file."""
    return math.isqrt(self.samples_per_image)

  def as_json(self) -> dict[str, Any]:
    """Returns name, revision and published scores."""
    return {"benchmark": self.name, "revision": self.revision,
            "published": [dataclasses.asdict(p) for p in self.published]}

  @abc.abstractmethod
  def read_items(self, source: str) -> list[Item]:
    """Reads the benchmark's own files.

    Args:
      source: file or folder, see docs/evals.md; local or gs:// path.

    Raises:
      FileNotFoundError: for an absent file.
      ValueError: for malformed records or repeated ids, each named.
    """

  def output_path(self, item: Item, k: int) -> str:
    """Path of image k of an item in the official layout, relative to the folder of images."""
    raise ValueError(f"{self.name} has no images to make: its items are answered in text")

  def side_files(self, item: Item) -> dict[str, bytes]:
    """{relative path: content} of files that the layout needs next to an item's images."""
    del item
    return {}

  def side_paths(self, item: Item) -> list[str]:
    """Paths of `side_files`."""
    return list(self.side_files(item))

  def units(self, items: Sequence[Item]) -> list[list[Item]]:
    """Groups items that count only together, e.g. both questions of a pair: a subset takes all or none."""
    return [[item] for item in items]

  def write_answers(self, path: str, items: Sequence[Item], answers: Mapping[str, str]) -> None:
    """Writes answers of an understanding benchmark in the form that `aggregate` reads.

    Args:
      path: file or folder, created.
      items: all items, in order.
      answers: {item id: answer}; absent ids are left out.
    """
    raise ValueError(f"{self.name} is scored on images, not on answers")

  def read_prompts(self, path: str) -> Any:
    """Reads the judge's prompts from the user's copy of the official file.

    Args:
      path: see `judge_files`.

    Raises:
      FileNotFoundError, ValueError: naming the file and where to get it.
    """
    raise ValueError(f"{self.name} is not judged by a chat model; see docs/evals.md for its judge")

  def judge_requests(
      self, item: Item, images: Sequence[bytes], prompts: Any, attempt: int = 0
  ) -> list[requests.Request]:
    """Builds the official judge's requests about one image (or answer) of an item.

    Args:
      item: the item.
      images: bytes of the one made image file, or for understanding the answer in UTF-8.
      prompts: from `read_prompts`.
      attempt: 0 for the first try; some protocols change prompt and temperature in later tries.

    Returns:
      Requests whose answers are parsed together, each with its own `key`.
    """
    raise ValueError(f"{self.name} is not judged by a chat model; see docs/evals.md for its judge")

  def parse(self, answers: Mapping[str, str]) -> dict[str, float] | None:
    """Parses a judge's raw answers ({Request.key: text}) by the official rule; None if malformed."""
    raise ValueError(f"{self.name} is not judged by a chat model; see docs/evals.md for its judge")

  def write_judgements(
      self, folder: str, items: Sequence[Item], judgements: Iterable[Judgement]) -> None:
    """Writes judgements in the official files, the form that `aggregate` reads."""
    raise ValueError(f"{self.name} is not judged by a chat model; see docs/evals.md for its judge")

  @abc.abstractmethod
  def aggregate(self, source: str, *, rules: str = "official", items: str | None = None) -> Score:
    """Scores the official scorer's own files.

    Args:
      source: file or folder, see docs/evals.md.
      rules: one of RULES.
      items: the benchmark's own files (as of `read_items`), to count what is missing exactly where
        `source` alone does not tell.
    """

  def overall(self, categories: Mapping[str, Sequence[float]]) -> float:
    """Combines the values of each category into the published variant of the score."""
    return mean([v for values in categories.values() for v in values])


def image_bytes(image: str | bytes) -> bytes:
  """Bytes of an input image of an Item.

  Raises:
    FileNotFoundError: naming the file.
  """
  return image if isinstance(image, bytes) else records.existing(image, "input image").read_bytes()


def find(name: str) -> Benchmark:
  """Returns the benchmark of a name.

  Raises:
    ValueError: for an unknown name, listing the known names.
  """
  return registry.find("benchmark", name)()


def reading_once(benchmark: Benchmark) -> Benchmark:
  """Makes a benchmark keep the items that it has read, for commands whose steps read the same files."""
  benchmark.read_items = functools.cache(benchmark.read_items)
  return benchmark


def names() -> list[str]:
  """Lists the names of all benchmarks."""
  return registry.names("benchmark")


def check_rules(rules: str) -> None:
  """Raises ValueError for unknown rules."""
  if rules not in RULES:
    raise ValueError(f"unknown rules {rules!r}; choose {' or '.join(RULES)}")


def mean(values: Iterable[float]) -> float:
  """Mean in float64 of Python's summation order; NaN for no values."""
  values = list(values)
  return sum(values) / len(values) if values else math.nan


def interval(
    benchmark: Benchmark, values: Sequence[Value], *, samples: int = 1000, level: float = 0.95,
    seed: int = 0) -> tuple[float, float]:
  """Bootstrap interval of the overall score over items, resampled within each category.

  Args:
    benchmark: whose `overall` combines values.
    values: of a Score.
    samples: bootstrap samples.
    level: of the interval.
    seed: of NumPy's generator.
  """
  clusters: dict[str, dict[str, list[float]]] = {}
  for value in values:
    clusters.setdefault(value.category, {}).setdefault(value.id, []).append(value.value)
  groups = {c: list(ids.values()) for c, ids in clusters.items()}
  generator = np.random.default_rng(seed)
  scores = []
  for _ in range(samples):
    sample = {c: [v for i in generator.integers(len(g), size=len(g)) for v in g[i]]
              for c, g in groups.items()}
    scores.append(benchmark.overall(sample))
  low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def _finite(value: Any) -> Any:
  """Replaces NaN and infinities by None, tuples by lists, for strict JSON."""
  if isinstance(value, Mapping):
    return {str(k): _finite(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
