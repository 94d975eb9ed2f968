"""Sets the rows of a config from `data.own`: training data, share of edits, sample grids, evaluation."""

from collections.abc import Iterator
import importlib
import importlib.util
import os
from typing import Any

from absl import logging

from unilip_jax.common import paths
from unilip_jax.configs import base, roots
from unilip_jax.data.own import layouts, source

KIND = "own"  # of a row
# Kinds of examples that a stage can train on, by its data.example; generation trains on pairs or edits.
_STAGES = {"reconstruct": ("reconstruct",), "t2i": ("t2i", "edit"), "understand": ("understand",)}
_NEEDS = {
    "reconstruct": "images", "understand": "conversations about images",
    "t2i": "images with captions, or edits. Images without captions need one prompt for all, e.g. "
           '--config.data.own_prompt="a photo of sks dog"'}


def apply(config: Any, workdir: str = "") -> Any:
  """Replaces the rows of training data by `data.own`, in place; a second time changes nothing.

  Generation trains on pairs (data.train) or on edits alone (data.edit, share 1), whichever the data is.
  Sample grids and sets of evaluation show the same data where they would read files of the stage's own.

  Args:
    config: of a stage; its root is applied. Uses stage, size, data.*, eval.sets and sample_set.
    workdir: of the run, which may not lie in its data; "" without a run.

  Returns:
    `config`.

  Raises:
    FileNotFoundError, ValueError: if the data does not exist, is ambiguous, or is not what the stage needs.
  """
  data = config.data
  if workdir:
    check_workdir(config, workdir)
  if not data.own or _row(config) in (*data.train, *data.edit):
    return config
  found = layouts.detect(data.own, data.own_layout)
  kinds = source.serves(found, data.own_prompt)
  example = next((kind for kind in kinds if kind in _STAGES[data.example]), "")
  if not example:
    raise ValueError(
        f"data.own={data.own} holds {found.note} ({found.kind}), which can train "
        f"{' or '.join(kinds) or 'nothing'}; {config.stage} needs {_NEEDS[data.example]}")
  logging.info(
      "data.own=%s is read as %s: %s, for the example %s", data.own, found.kind, found.note, example)
  with config.unlocked():
    _set_rows(config, example)
  return config


def check_workdir(config: Any, workdir: str) -> None:
  """Checks that a run does not write into its own data: its files would be read as records.

  Args:
    config: uses data.own.
    workdir: of the run; need not exist.

  Raises:
    ValueError: if the workdir is data.own or lies inside it.
  """
  if not config.data.own:
    return
  own, place = (os.path.realpath(p) if "://" not in p else p for p in (
      paths.absolute(config.data.own, "data.own"), paths.absolute(workdir, "--workdir")))
  if own == place or place.startswith(f"{own}/"):
    raise ValueError(f"--workdir={workdir} lies in data.own={config.data.own}: what the run writes would "
                     "be read as training data; give another folder, e.g. --workdir=runs/mine")


def _row(config: Any) -> tuple[Any, ...]:
  """Returns the row of `data.own` in data.train or data.edit."""
  return (KIND, *_spec(config)[:1], 1.0, *_spec(config)[1:])


def _spec(config: Any) -> tuple[Any, ...]:
  """Returns (path,) or (path, {option: value})."""
  data = config.data
  named = {"prompt": data.own_prompt, "caption": data.own_caption, "layout": data.own_layout}
  options = {name: value for name, value in named.items() if value}
  return (paths.expand(data.own, "data.own"), *([options] if options else []))


def _set_rows(config: Any, example: str) -> None:
  data, rows = config.data, (_row(config),)
  if data.example == "t2i":
    data.train, data.edit = (rows, ()) if example == "t2i" else ((), rows)
    data.edit_share = float(example == "edit")
  else:
    data.train = rows
  if example != "understand" and _is_of_stage(config, "sample_set"):
    config.sample_set = (example, KIND, *_spec(config))
  if _is_of_stage(config, "eval.sets"):
    kept = tuple(row for row in config.eval.sets if row[2] not in base.PATH_KINDS)
    if len(kept) < len(config.eval.sets):
      logging.warning("eval.sets: the sets of the stage, %s, are replaced by the images of data.own; set "
                      "--config.eval.sets for others", ", ".join(_names(config.eval.sets, kept)))
      kept += (("own", "native", KIND, *_spec(config)),) if example == "reconstruct" else ()
    config.eval.sets = tuple(_of_shapes(row) for row in kept)
    if shapes := [row[0] for row in config.eval.sets if row[2] == "shapes"]:
      logging.warning(
          "eval.sets: %s score Shapes: whether old knowledge is kept, not what is learned from data.own; "
          '--config.eval.sets="()" turns evaluation off', ", ".join(shapes))


def _of_shapes(row: Any) -> Any:
  """Returns a row of eval.sets; the log and the report name one of Shapes so, next to own data."""
  return row if row[2] != "shapes" or row[0] == "shapes" else (f"shapes_{row[0]}", *row[1:])


def _names(rows: Any, kept: Any) -> Iterator[str]:
  return (row[0] for row in rows if row not in kept)


def _is_of_stage(config: Any, field: str) -> bool:
  """Returns whether a field has the value of the installed stage file: nobody has chosen another."""
  name = f"unilip_jax.configs.{config.stage}"
  if not config.stage.isidentifier() or importlib.util.find_spec(name) is None:
    return False
  stage = importlib.import_module(name)
  if not hasattr(stage, "get_config"):
    return False
  default = stage.get_config(config.size)
  default.root = config.root
  return _plain(base.field(roots.apply(default), field)) == _plain(base.field(config, field))


def _plain(value: Any) -> Any:
  """Returns rows without the difference of lists and tuples."""
  return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value
