"""One root for everything that a run reads: --config.root=gs://bucket/unilip.

Relative inputs (weights, tokenizer, data, evaluation sets, the run to start from) lie below it. Absolute
paths, other schemes and names of included weights stay as they are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from unilip_jax.common import paths
from unilip_jax.configs import base

_INCLUDED = "shapes"  # prefix of weights, tokenizer and data that come with the package
# Fields that hold paths, comma-separated ones too; and rows with the place of (kind, path).
_PATHS = (
    "init_from", "resume", "loss.perceptual_weights", "text.tokenizer", "eval.llm", "eval.inception",
    "data.latents_dir", "data.own")
_ROWS = {"data.train": 0, "data.edit": 0, "eval.sets": 2}
_BENCHMARK = "benchmark"  # protocol of eval.sets whose kind is the benchmark, and whose path its items
_PROMPTS = "judge_prompts"  # an option of such a row that is a path, too


def apply(config: Any) -> Any:
  """Prefixes the relative inputs of `config` with its root, in place; a second time changes nothing.

  Returns:
    `config`.
  """
  root = config.root.rstrip("/")
  if root:
    _rewrite(config, lambda path: path if path.startswith(f"{root}/") else f"{root}/{path}")
  return config


def inputs(config: Any) -> Iterator[tuple[str, str]]:
  """Yields (field, path) of what a run reads, files of the package left out; after `apply`."""
  found: list[tuple[str, str]] = []
  for name in _PATHS:
    if name != "data.latents_dir":  # the run fills it
      found += [(name, part) for part in paths.split(base.field(config, name))]
  for name, at in _ROWS.items():
    for row in base.field(config, name):
      if _has_path(row, at):
        found += [(name, part) for part in paths.split(row[at + 1])]
        found += [(name, word[_PROMPTS]) for word in row[at + 2:]  # a weight or options
                  if isinstance(word, Mapping) and word.get(_PROMPTS)]
  if config.sample_every_steps and config.sample_set and config.sample_set[1] in base.PATH_KINDS:
    found += [("sample_set", part) for part in paths.split(config.sample_set[2])]
  seen = set()
  for name, path in found:
    if path not in seen and not path.startswith(_INCLUDED):
      seen.add(path)
      yield name, path


def is_relative(path: str) -> bool:
  """Returns whether a path is one below the root."""
  return bool(path) and "://" not in path and not path.startswith(("/", "~", _INCLUDED))


def _has_path(row: Sequence[Any], at: int) -> bool:
  """Tells whether a path follows the kind, which is at place `at` of a row."""
  is_benchmark = at > 0 and row[at - 1] == _BENCHMARK and not row[at].startswith(_INCLUDED)
  return row[at] in base.PATH_KINDS or is_benchmark


def _rewrite(config: Any, place: Callable[[str], str]) -> None:
  below = lambda text: ",".join(place(p) if is_relative(p) else p for p in paths.split(text))

  def options_below(word: Any) -> Any:
    if not isinstance(word, Mapping):  # a weight
      return word
    return {name: below(value) if name == _PROMPTS else value for name, value in word.items()}

  row_below = lambda row, at: tuple(row) if not _has_path(row, at) else (
      *row[:at + 1], below(row[at + 1]), *map(options_below, row[at + 2:]))
  with config.unlocked():
    for name in _PATHS:
      base.set_field(config, name, below(base.field(config, name)))
    for name, at in _ROWS.items():
      base.set_field(config, name, tuple(row_below(row, at) for row in base.field(config, name)))
    if config.sample_set:
      config.sample_set = row_below(config.sample_set, 1)
