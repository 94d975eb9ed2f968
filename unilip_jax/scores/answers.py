"""Answers of understanding benchmarks: stored one by one while they are made, and read again."""

from etils import epath

from unilip_jax.common import json_file, paths
from unilip_jax.scores import append_log

PREDICTIONS = "predictions.tsv"  # of all items, in the form that `aggregate` reads
_PREFIX = "answers-"


def log_name(process: int, processes: int) -> str:
  """Name of the file to which a process appends its answers."""
  return f"{_PREFIX}{process}-of-{processes}.jsonl"


def read_logs(folder: epath.PathLike) -> dict[str, str]:
  """Reads {item id: answer} from the files of all processes."""
  answers: dict[str, str] = {}
  for path in sorted(epath.Path(folder).glob(f"{_PREFIX}*.jsonl")):
    answers |= {record["id"]: record["answer"] for record in append_log.read(path)}
  return answers


def read(path: epath.PathLike) -> dict[str, str]:
  """Reads answers.

  Args:
    path: a folder that `make` wrote, or a JSON file {id: answer}.

  Raises:
    FileNotFoundError: if there are none.
    ValueError: for a file of another form.
  """
  place = paths.path(path)
  if place.is_dir():
    answers = read_logs(place)
    if not answers:
      raise FileNotFoundError(
          f"{place} holds no {_PREFIX}*.jsonl of `make`; give a JSON file {{id: answer}}")
    return answers
  content = json_file.read(place, remedy="answers are a folder of `make`, or a JSON file {id: answer}")
  if not all(isinstance(v, str) for v in content.values()):
    raise ValueError(f"{place} is not a JSON object {{id: answer}} of strings")
  return content
