"""Finds the words of prompts that the included weights were never shown: they learned Shapes alone."""

from collections.abc import Iterable, Sequence
import functools
import re

from unilip_jax.data import text as text_lib
from unilip_jax.shapes import language, paraphrases

_WORD = re.compile(r"[^\W\d_]+")
# Words of questions and requests that name nothing in an image.
_FRAME = frozenset(_WORD.findall(
    "in it its this that these those which who what how do does did you your i my me we us and or not "
    "with without please could would will should may image picture create give "
    "tell say see count if both each every all any some one only just smaller"))
_EXAMPLE = "a large red circle at the top left on a navy background"


def note(texts: Iterable[str]) -> str:
  """Says which words of prompts the included weights do not know; "" if they know all.

  A word is known if it is one token of Shapes' tokenizer (shapes/make_tokenizer.py), or frames a request.
  """
  unknown = unknown_words(texts)
  if not unknown:
    return ""
  words = ", ".join(repr(word) for word in unknown[:5]) + (", …" if len(unknown) > 5 else "")
  return (f"these small included weights know coloured shapes alone and were never shown {words}: the "
          f"result ignores such words. A prompt that they know: {_EXAMPLE!r} (docs/quickstart.md)")


def unknown_words(texts: Iterable[str]) -> list[str]:
  """Lists the unknown words, each once, in the order of the texts."""
  found = dict.fromkeys(word for text in texts for word in _WORD.findall(text.lower()))
  return [word for word in found if len(word) > 1 and not _is_known(word)]


def _is_known(word: str) -> bool:
  forms = (word, f" {word}", word.capitalize())
  return word in _frame_words() or any(len(_tokenizer().encode(form)) == 1 for form in forms)


@functools.cache
def _tokenizer() -> text_lib.Text:
  return text_lib.Text("shapes")


@functools.cache
def _frame_words() -> frozenset[str]:
  ways: Sequence[str] = (*paraphrases.PROMPTS, *paraphrases.EDITS)
  return _FRAME | {*language.NUMBERS} | {word for way in ways for word in _WORD.findall(way)}
