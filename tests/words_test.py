"""Comments, docstrings, messages, scripts and documents avoid words that slow readers down.

The left column is what is refused, the right column what to write instead (CONTRIBUTING.md, "Words").
"""

from collections.abc import Iterator
import io
import pathlib
import re
import tokenize

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_INSTEAD = {
    r"twins?": "PyTorch reference",
    r"ours|theirs": "JAX, PyTorch, or the thing's name",
    r"anew": "again",
    r"in place of": "instead of",
    r"stands? beside": "next to, stored with",
    r"stand-ins?|stands? in for": "a small replacement for",
    r"by program": "automatically",
    r"passe[sd] over|passing over": "skipped",
    r"squash\w*": "stretch, resize without keeping the aspect ratio",
    r"ships|shipped|shipping": "included, pretrained weights",
    r"wish|wishes|wished": "requests; paraphrased prompts",
    r"(?-i:Blocks)(?= world|:|'s|$|[,.])": "Shapes",
    r"dear|dearest|dearer": "expensive",
    r"to mend": "user error",
    r"put plainly": "template prompts",
    r"pictures?": "image",
    r"rungs?": "targets",
}
_WORDS = re.compile(
    "|".join(rf"(?:\b(?:{words})(?!\w))" for words in _INSTEAD), re.IGNORECASE | re.MULTILINE)
_PATTERNS = ("*.md", "docs/**/*.md", "launch/*", "unilip_jax/**/*.py", "tests/**/*.py", "tests/**/*.md",
             "benchmarks/*.py", "benchmarks/*.md", "experiments/*.py", ".ci/run")
# (start of a file's name, word): old names that are translated or refused, and a reply of a model.
_ALLOWED = (
    ("unilip_jax/configs/renamed", "squash"),
    ("tests/configs/renamed", "squash"),
    ("tests/shapes/", "wishes"),
    ("docs/results/README.md", "wishes"),
    ("benchmarks/shapes_scores.py", "wishes"),
    ("tests/shapes/questions_test.py", "picture"),
    ("unilip_jax/shapes/vocabulary.py", "picture"),
    ("tests/words_test.py", ""),
)
_F_STRING = re.compile(r"[rbRB]?[fF]")


def _room(path: pathlib.Path) -> str:
  """A room of the package, a folder of tests or scripts, or one document."""
  parts = path.relative_to(_ROOT).parts
  if path.suffix == ".md":
    return "/".join(parts)
  return "/".join(parts[:2]).removesuffix(".py") if parts[0] in ("unilip_jax", "tests") else parts[0]


def _texts(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Yields (line, text) of a file: comments and strings of Python, every line of other files."""
  if path.suffix != ".py":
    yield from enumerate(path.read_text().splitlines(), 1)
    return
  strings = (tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
  for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
    if token.type in strings:
      text = token.string
      if _F_STRING.match(text):
        text = re.sub(r"\{[^{}]*\}", "{}", text)
      yield from enumerate(text.splitlines(), token.start[0])


def _instead(word: str) -> str:
  return next(text for words, text in _INSTEAD.items()
              if re.fullmatch(words.split("(?= ")[0], word, re.IGNORECASE))


def _is_allowed(name: str, word: str) -> bool:
  return any(name.startswith(file) and word.startswith(start) for file, start in _ALLOWED)


def _rooms() -> dict[str, list[pathlib.Path]]:
  rooms: dict[str, list[pathlib.Path]] = {}
  for path in sorted(p for pattern in _PATTERNS for p in _ROOT.glob(pattern) if p.is_file()):
    rooms.setdefault(_room(path), []).append(path)
  return rooms


@pytest.mark.parametrize(("room", "files"), _rooms().items(), ids=_rooms())
def test_readers_stumble_over_no_word(room, files):
  found = []
  for path in files:
    name = str(path.relative_to(_ROOT))
    for line, text in _texts(path):
      found += [f"{name}:{line}: {match[0]!r}; write: {_instead(match[0])}"
                for match in _WORDS.finditer(text) if not _is_allowed(name, match[0].lower())]
  assert not found, "\n".join([room, *found])


@pytest.mark.parametrize(("text", "word"), [
    ("a stand-in for InternVL3", "stand-in"), ("scenes of Blocks", "Blocks"), ("what ships", "ships"),
    ("dims squashed to", "squashed")])
def test_the_words_are_found(text, word):
  assert _WORDS.search(text)[0] == word
  assert _instead(word)


@pytest.mark.parametrize("text", [
    "blocks of the decoder", "DC-AE's Blocks are", "relationships", "a wishful x"])
def test_other_words_are_not(text):
  assert not _WORDS.search(text)
