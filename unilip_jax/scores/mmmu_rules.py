"""MMMU's official reading of answers: letters; strings and numbers of open questions (arXiv 2311.16502)."""

from collections.abc import Mapping, Sequence
import random
import re

_OUTER = (",", ".", "!", "?", ";", ":", "'")
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = (":", ",", ".", "!", "?", ";", "'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # with commas
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # scientific
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"))
_MANY_WORDS = 5


def choose(answer: str, options: Mapping[str, str], generator: random.Random | None = None) -> str | None:
  """Reads the letter of a multiple-choice answer.

  A letter in brackets, else between blanks, else an option's text in an answer of more than 5 words; of
  several the last occurrence wins.

  Args:
    answer: raw text.
    options: {letter: text}.
    generator: the official code chooses at random if nothing is found (seed 42 at import). None returns
      None instead.
  """
  for mark in _OUTER:
    answer = answer.strip(mark)
  answer = f" {answer} "
  for form in ("({})", " {} "):
    places = {letter: answer.rfind(form.format(letter)) for letter in options}
    if found := {letter: place for letter, place in places.items() if place >= 0}:
      return _last(found)
  if len(answer.split()) > _MANY_WORDS:
    text = answer.lower()
    places = {letter: text.rfind(option.lower()) for letter, option in options.items()}
    if found := {letter: place for letter, place in places.items() if place >= 0}:
      return _last(found)
  return generator.choice(list(options)) if generator else None


def parse_open(answer: str) -> list[str | float]:
  """Reads an open answer: its key parts and the numbers in them, normalised, without repetitions."""
  parts = _key_parts(answer)
  numbers = [n for part in parts for pattern in _NUMBERS for n in pattern.findall(part)]
  return list(dict.fromkeys(value for text in [*parts, *numbers] for value in normalize(text)))


def is_open_right(gold: str | Sequence[str], values: Sequence[str | float]) -> bool:
  """Whether a normalised gold text is contained in a value, or a value equals a gold number."""
  golds = [v for text in ([gold] if isinstance(gold, str) else gold) for v in normalize(text)]
  for value in values:
    if isinstance(value, str):
      if any(isinstance(g, str) and g in value for g in golds):
        return True
    elif value in golds:
      return True
  return False


def normalize(text: str) -> list[str | float]:
  """A number rounded to 2 decimals, or text in lower case; one character gets a blank on either side."""
  text = text.strip()
  try:
    return [round(float(text.replace(",", "")), 2)]
  except ValueError:
    text = text.lower()
  return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _key_parts(answer: str) -> list[str]:
  """What follows the indicator words in each line, the shortest of them; the answer if there are none."""
  answer = answer.strip().strip(".").lower()
  lines = answer.split("\n")
  parts = []
  for number, line in enumerate(lines):
    indicators = [*_INDICATORS, "="] if number == len(lines) - 1 else _INDICATORS
    shortest = ""
    for indicator in indicators:
      if indicator in line:
        tail = line.split(indicator)[-1].strip()
        if not shortest or len(tail) < len(shortest):
          shortest = tail
    if shortest and shortest not in _TRIVIAL:
      parts.append(shortest)
  return parts or [answer]


def _last(places: Mapping[str, int]) -> str:
  return max(places, key=places.get)
