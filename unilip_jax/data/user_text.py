"""Decodes texts as people store them: UTF-8 with or without a byte order mark, UTF-16 with one."""

import codecs

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def line(data: bytes) -> str:
  """Returns a text on one line, without the mark that editors of Windows write at its beginning.

  Raises:
    ValueError: for another encoding, or a text without words.
  """
  try:
    text = data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"broken text: not UTF-8: {error}") from error
  if not (words := " ".join(text.split())):
    raise ValueError("empty text")
  return words
