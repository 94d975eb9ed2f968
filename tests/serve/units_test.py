"""Parts of the server by themselves: growing texts, fields, data URLs and images."""

import numpy as np
import pytest

from tests.serve import fakes
from unilip_jax.serve import answers, api_errors, engine, fields, metrics, uploads

_STOP = 0


def _stream(ids, stops=(), every=1, complete=True):
  """(texts in order, the stream) of an answer whose tokens are bytes."""
  text = answers.TextStream(lambda own: bytes(own).decode("utf-8", "replace"), _STOP, stops)
  ends = [*range(every, len(ids), every), len(ids)]
  return [text.update(ids[:n], complete and n == len(ids)) for n in ends], text


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_a_growing_text_is_never_taken_back(every):
  whole = "  größer als 日本 \n\n und  kleiner "
  parts, text = _stream(list(whole.encode()), every=every)
  assert "".join(parts) == whole.strip()
  assert text.finish_reason == "length"
  assert text.tokens == len(whole.encode())


@pytest.mark.parametrize("every", [1, 2, 5])
def test_nothing_from_a_stop_text_on_is_sent(every):
  parts, text = _stream(list(b"one stone stop two"), ["stop", "zzz"], every)
  assert "".join(parts) == "one stone"
  assert text.finish_reason == "stop"


def test_the_beginning_of_a_stop_text_is_sent_when_it_was_none():
  parts, _ = _stream(list(b"a stone"), ["stop"])
  assert "".join(parts) == "a stone"


def test_an_answer_ends_at_the_stop_token():
  parts, text = _stream([*b"yes", _STOP, *b"noise"], every=20)
  assert (parts, text.finish_reason, text.tokens) == (["yes"], "stop", 3)


def test_values_of_forms_are_texts_and_of_json_typed():
  form = fields.Fields({"n": "3", "g": "2.5", "f": "true", "e": "", "s": "-7"}, form=True)
  assert (form.integer("n", 1, 9), form.number("g", 0, 9, 1.0), form.flag("f")) == (3, 2.5, True)
  assert (form.integer("e", 1, 9, 4), form.seed("s")) == (4, -7)
  body = fields.Fields({"n": 3.0, "t": "3", "extra_body": {"n": 5, "m": 6}})
  assert (body.integer("n", 1, 9), body.integer("m", 1, 9)) == (3, 6)  # the top level first
  for name, kind in (
      ("t", body.flag), ("t", lambda n: body.integer(n, 1, 9)), ("n", lambda n: body.text(n, 9))):
    with pytest.raises(api_errors.ApiError) as error:
      kind(name)
    assert error.value.code == f"invalid_{name}"


def test_a_refused_field_may_have_its_neutral_value():
  for value in (None, "", [], {}, False, 1):
    fields.Fields({"n": value}).refuse("n", "no", 1)
  for value in (2, "x", [0], {"a": 1}, True):
    with pytest.raises(api_errors.ApiError, match="n: no"):
      fields.Fields({"n": value}).refuse("n", "no", 2 if value is True else 1)


@pytest.mark.parametrize("kind", uploads.FORMATS)
def test_images_survive_as_data_urls(kind):
  pixels = fakes.image_of("", 0)
  data = uploads.encode(pixels, kind, 100)
  url = f"data:image/{kind};charset=x;base64," + uploads.as_base64(data)
  read = uploads.from_url(url[:60] + "\n" + url[60:], "messages", 10**6)
  assert read.shape == pixels.shape
  if kind == "png":
    np.testing.assert_array_equal(read, pixels)


def test_pixels_are_counted_before_they_are_decoded():
  data = uploads.encode(fakes.image_of("", 0))
  with pytest.raises(api_errors.ApiError, match="28×28 pixels, at most 783"):
    uploads.from_bytes(data[:60], "image", 783)  # the header alone is there


@pytest.mark.parametrize("page", [True, False])
def test_only_a_page_compiles_reconstruction(page, caplog):
  caplog.set_level("INFO", logger="absl")
  rows = fakes.Rows()
  engine.Engine({"unilip": rows}, metrics.Metrics()).warm_up((20,), 4.5, page=page)
  assert ("reconstruct" in {kind for kind, _ in rows.batches}) == page
  assert {kind for kind, _ in rows.batches} | {"reconstruct"} == set(rows.abilities)
  total = len(rows.abilities) - (not page)
  assert [f"compiling {i} of {total}: " in caplog.text for i in range(1, total + 1)] == [True] * total
