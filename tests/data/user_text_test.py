"""Texts are read without the marks of editors, and never with replacement characters."""

import pytest

from unilip_jax.data import user_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_with_a_mark_give_one_text(encoding):
  assert user_text.line("ein  café\r\n am Meer\n".encode(encoding)) == "ein café am Meer"


@pytest.mark.parametrize("data", ["café".encode("latin-1"), b"", b" \n", b"\xef\xbb\xbf", b"\xff\xfea"])
def test_other_bytes_and_empty_texts_are_refused(data):
  with pytest.raises(ValueError, match=r"empty text|broken text"):
    user_text.line(data)
