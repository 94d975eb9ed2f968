"""MME as it is distributed: a folder for each task, with images and a text file of two questions each.

Five tasks have `images/` and `questions_answers_YN/`; in the others both lie in the task's folder. A text
file has the name of its image; its lines are a question, a tab, and Yes or No.
"""

from collections.abc import Iterator, Sequence

from etils import epath

from unilip_jax.scores import records, tables

_ROOTS = ("", "MME_Benchmark", "MME_Benchmark_release_version",
          "MME_Benchmark_release_version/MME_Benchmark")
_IMAGES, _QUESTIONS = "images", "questions_answers_YN"
_SUFFIXES = (".jpg", ".png", ".jpeg")
_PER_IMAGE = 2


def read(folder: epath.Path, tasks: Sequence[str]) -> Iterator[tuple[tables.Row, epath.Path]]:
  """Yields (row as in VLMEvalKit's table, path of the image) of each question.

  Args:
    folder: of the benchmark, or one that holds it.
    tasks: names of the tasks' folders, in order; absent ones are left out.

  Raises:
    FileNotFoundError: without any task, or for questions without their image.
    ValueError: for a malformed line, or another number of questions than two, naming the file.
  """
  root = next((folder / r for r in _ROOTS if any((folder / r / task).is_dir() for task in tasks)), None)
  if root is None:
    raise FileNotFoundError(f"{folder} holds neither MME.tsv nor folders of MME's tasks ({tasks[0]}, …)")
  index = 0
  for task in tasks:
    place = root / task
    if not place.is_dir():
      continue
    split = (place / _QUESTIONS).is_dir()
    for file in sorted((place / _QUESTIONS if split else place).glob("*.txt")):
      image = _image_of(file, place / _IMAGES if split else place)
      for question, answer in _questions(file, f"{task}/{file.name}"):
        yield {"index": str(index), "category": task, "image_path": f"{task}/{image.name}",
               "question": question, "answer": answer}, image
        index += 1


def _image_of(file: epath.Path, folder: epath.Path) -> epath.Path:
  for suffix in _SUFFIXES:
    if (image := folder / f"{file.stem}{suffix}").exists():
      return image
  raise FileNotFoundError(
      f"no image {folder / file.stem} ({', '.join(_SUFFIXES)}) for the questions {file}")


def _questions(file: epath.Path, name: str) -> list[tuple[str, str]]:
  found = []
  for number, line in records.json_lines(file):
    if not line.strip():
      continue
    fields = [field.strip() for field in line.split("\t")]
    if len(fields) != 2 or fields[1] not in ("Yes", "No"):
      raise ValueError(f"{name}, line {number}: malformed: {line!r} is no question, tab, and Yes or No")
    found.append((fields[0], fields[1]))
  if len(found) != _PER_IMAGE:
    raise ValueError(f"{name} holds {len(found)} questions; an image of MME has {_PER_IMAGE}")
  return found
