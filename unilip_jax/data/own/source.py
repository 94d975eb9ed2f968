"""Opens users' own data as a source of the kind "own", and tells what it can train."""

from collections.abc import Sequence
import tarfile

from etils import epath

from unilip_jax.data import decode, omissions, source_kinds, sources
from unilip_jax.data.own import columns, images, layouts, rows, tables

_TABLES = {"parquet": tables.ParquetTable, "arrow": tables.ArrowTable}
_NOT_NAMED = "image that the list does not name in the columns that are read"
_FIRST_MEMBERS = 64  # of a tar, which tell what its samples are


def open_own(
    path: str, example: str, folders: sources.Folders, *, prompt: str = "", caption: str = "",
    layout: str = "") -> sources.Source:
  """Opens a folder or file.

  Args:
    path: local or gs://.
    example: a key of sources.PARTS.
    folders: of tar indices.
    prompt: of images without a caption.
    caption: column of captions or instructions; "" finds it.
    layout: one of configs.checks.OWN_LAYOUTS; "" detects it.

  Raises:
    FileNotFoundError: if the path does not exist.
    ValueError: if it holds nothing that is known, or what it holds is ambiguous.
  """
  found = layouts.detect(path, layout)
  if found.kind == "images":
    return images.Images(found.path, example, prompt)
  if found.kind == "tar":
    return source_kinds.TarSource(found.files, folders.index, sources.PARTS[example])
  left_out = omissions.Omissions()
  source = rows.Rows(_table(found, left_out), example, left_out, caption=caption, prompt=prompt)
  if found.images:
    named = source.files()
    for image in found.images:
      if image not in named:
        left_out.add(_NOT_NAMED, image, bad=False)
  return source


def check_own(path: str, *, prompt: str = "", caption: str = "", layout: str = "") -> None:
  """Checks that the layout is known and a list has the columns; see sources.check_source."""
  for name, value in (("prompt", prompt), ("caption", caption), ("layout", layout)):
    if not isinstance(value, str):
      raise ValueError(f"the option {name}={value!r} is no text")
  serves(layouts.detect(path, layout), prompt)


def _table(found: layouts.Layout, left_out: omissions.Omissions) -> tables.Table:
  if found.kind == "list":
    return tables.MemoryTable(found.files, left_out)
  return _TABLES[found.kind](found.files)


def serves(found: layouts.Layout, prompt: str = "") -> tuple[str, ...]:
  """Returns the kinds of examples that data can train, the most special first.

  Args:
    found: see layouts.detect.
    prompt: of images without a caption.

  Raises:
    ValueError: for a list that cannot be read.
  """
  if found.kind == "tar":
    return _of_suffixes(_tar_suffixes(found.files[0]))
  if found.kind == "images":
    return _of_images(found.path, prompt)
  return columns.serves(_table(found, omissions.Omissions()).columns)


def _of_images(path: str, prompt: str) -> tuple[str, ...]:
  """Returns what images with the files of their names can train."""
  kinds = []
  for example in ("edit", "t2i"):
    source = images.Images(path, example, prompt)
    if len(source):
      kinds.append(example)
      if example == "edit":
        break
  talk = images.Images(path, "understand")
  if len(talk) and _is_conversation(talk):
    return ("understand", "reconstruct")
  return (*kinds, "reconstruct")


def _is_conversation(source: sources.Source) -> bool:
  try:
    return bool(source[0].parts["turns"])
  except (OSError, decode.BadRecordError):
    return False


def _tar_suffixes(path: str) -> set[str]:
  """Returns the suffixes of the first members of a tar."""
  try:
    with epath.Path(path).open("rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
      names = [m.name.rpartition("/")[2] for m, _ in zip(tar, range(_FIRST_MEMBERS)) if m.isfile()]
  except tarfile.TarError as error:
    raise ValueError(f"{path} is no tar, compressed, or damaged: {error}") from error
  return {name.partition(".")[2].lower() for name in names if not omissions.is_hidden(name)}


def _of_suffixes(suffixes: set[str]) -> tuple[str, ...]:
  """Returns the kinds of examples whose parts all have a file among the suffixes."""
  complete = lambda parts: all(suffixes & {*allowed} for allowed in parts.values())
  order: Sequence[str] = ("edit", "t2i", "understand", "reconstruct")
  return tuple(example for example in order if complete(sources.PARTS[example]))
