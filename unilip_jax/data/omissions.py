"""Counts what a source leaves out, and names files by what a person would take them for.

Everything that is left out has a reason and is counted. A reason is bad if a record is lost by it: an image
without its text, a name that no rule reads. Hidden files, those of operating systems and files of other
kinds (lists, licences) are counted too, but are not bad.
"""

from collections.abc import Mapping, Sequence
import dataclasses

HIDDEN = "hidden or system file"
OTHER = "file of another kind"
EMPTY = "empty file"
REPEATED = "repeated: an earlier member has this name"
SECOND = "second file of one part: another one is read"

# In lower case. Those that begin with a dot (._x, .DS_Store) are hidden anyway.
_SYSTEM = frozenset((
    "__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db",
    "ehthumbs.db", "desktop.ini", "icon\r"))
_NOT_DATA = frozenset((
    "readme", "license", "licence", "copying", "notice", "citation", "changelog", "authors", "credits",
    "makefile", "dockerfile", "metadata", "annotations", "classes", "labels", "captions", "prompts",
    "train", "val", "test", "list", "filelist", "urls", "info", "dataset", "requirements"))
_UNREAD_IMAGES = frozenset((
    "heic", "heif", "avif", "jxl", "jp2", "j2k", "jpx", "jpf", "svg", "psd", "ico", "tga", "dib", "pcx",
    "exr", "hdr", "dds", "eps", "cr2", "cr3", "nef", "arw", "dng", "raw"))
_OTHER_SIZES = frozenset(("jpg_orig", "jpg_medium", "jpg_small", "png_large"))


@dataclasses.dataclass
class _Row:
  count: int
  example: str
  bad: bool


class Omissions:
  """Counts by reason, with the first example of each."""

  def __init__(self):
    self._rows: dict[str, _Row] = {}

  def add(self, reason: str, example: str, count: int = 1, *, bad: bool = True) -> None:
    """Counts what is left out for a reason.

    Args:
      reason: e.g. "no text".
      example: name of the file, record or folder; kept if it is the first.
      count: how many.
      bad: whether records are lost.
    """
    row = self._rows.setdefault(reason, _Row(0, example, bad))
    row.count += count

  def explain(self, reason: str, remedy: str) -> None:
    """Adds a remedy to a reason, if something was left out for it."""
    if reason in self._rows:
      self._rows[f"{reason} ({remedy})"] = self._rows.pop(reason)

  def count(self, reason: str) -> int:
    """Returns how many were left out for a reason."""
    return self._rows[reason].count if reason in self._rows else 0

  @property
  def bad(self) -> int:
    """Number of records that are lost."""
    return sum(row.count for row in self._rows.values() if row.bad)

  def __bool__(self) -> bool:
    return bool(self._rows)

  def __str__(self) -> str:
    """Returns the reasons, those that lose records first."""
    rows = sorted(self._rows.items(), key=lambda item: (not item[1].bad, -item[1].count))
    return "; ".join(f"{row.count} × {reason}, first: {row.example}" for reason, row in rows)


def is_hidden(name: str) -> bool:
  """Returns whether a path below a source's root is hidden, or written by an operating system."""
  return any((part.startswith(".") and part.strip(".")) or part.lower() in _SYSTEM
             for part in name.split("/"))


def lacks(part: str, suffixes: Sequence[str]) -> str:
  """Returns the reason of a record without a part."""
  names = ", ".join(suffixes)
  return f"no {part} under the suffix{'es' if len(suffixes) > 1 else ''} {names}"


def of_incomplete(name: str, part: str, suffixes: Sequence[str]) -> tuple[str, bool]:
  """Returns (reason, whether it is bad) of a file whose record has no `part`."""
  return (OTHER, False) if _is_document(name) else (lacks(part, suffixes), True)


def unread_format(name: str) -> str:
  """Returns the reason why a file's image format is not read; "" for other suffixes."""
  suffix = name.rpartition("/")[2].rpartition(".")[2].lower()
  return (f"{suffix.upper()} files are not read: convert them to JPEG or PNG" if suffix in _UNREAD_IMAGES
          else "")


def of_stranger(name: str, parts: Mapping[str, Sequence[str]], images: Sequence[str]) -> tuple[str, bool]:
  """Returns (reason, whether it is bad) of a file that is no part of a record.

  Args:
    name: of the file.
    parts: of a record, as in sources.PARTS.
    images: suffixes of images.
  """
  stem, dot, suffix = name.rpartition("/")[2].lower().rpartition(".")
  if not _is_document(name) and (reason := unread_format(name)):
    return reason, True
  if not _is_document(name) and (suffix in images or suffix in _OTHER_SIZES):
    part = next((p for p in parts if "image" in p), next(iter(parts)))
    return lacks(part, parts[part]), True
  if (dot and stem and suffix.isalnum() and not suffix.isdigit()) or _is_document(name):
    return OTHER, False
  return "no known suffix", True


def _is_document(name: str) -> bool:
  """Returns whether a name is that of a document or list next to data, such as README.txt or train.txt."""
  stem, _, suffix = name.rpartition("/")[2].lower().partition(".")
  return stem in _NOT_DATA and suffix in ("", "txt", "json", "md")
