"""Conversations of every common form are read; what is none is a ValueError with the reason."""

import json

import pytest

from unilip_jax.data import conversations


def _chat(question, answer="a"):
  return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize("entry", [
    {"turns": [["q", "a"]]},
    {"conversations": [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]},
    {"conversations": json.dumps([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}])},
    _chat("q"), _chat([{"type": "image"}, {"type": "text", "text": "q"}]),
])
def test_forms_are_equal(entry):
  assert conversations.turns_of(entry) == [["q", "a"]]
  assert conversations.parse(b"\xef\xbb\xbf" + json.dumps(entry).encode()) == [["q", "a"]]


@pytest.mark.parametrize(("entry", "reason"), [
    (_chat([{"type": "text", "text": 5}]), "neither a text nor an image"),
    (_chat(["q"]), "neither a text nor an image"),
    (_chat([{"type": "image"}, {"type": "image_url"}, {"type": "text", "text": "q"}]), "2 × <image>"),
    (_chat("<image> <image> compare"), "2 × <image>"),
    ({"conversations": "[" * 100_000}, "no JSON"),
    ({"turns": []}, "there are none"), ({"turns": [5]}, "not \\[question, answer\\]"),
])
def test_what_is_no_conversation_about_one_image_has_a_reason(entry, reason):
  with pytest.raises(ValueError, match=reason):
    conversations.turns_of(entry)


@pytest.mark.parametrize("data", [
    b"", b"[1", b"[]", b"\xff", b"[" * 100_000, b'{"turns": [["q \\ud800", "a"]]}'])
def test_a_file_that_is_no_conversation_is_an_error(data):
  with pytest.raises(ValueError, match=r"bad turns|surrogates not allowed"):
    conversations.parse(data)
