"""Records whose text has nothing of its own count as broken, like records without text."""

import io
import json

import numpy as np
from PIL import Image
import pytest

from unilip_jax.data import decode, examples, sources
from unilip_jax.data import text as text_lib

_BUFFER = io.BytesIO()
Image.new("RGB", (8, 8)).save(_BUFFER, "PNG")


def _record(**parts):
  image = _BUFFER.getvalue()
  return sources.Record({"image": image, "cond_image": image, **parts}, "key", "shard.tar")


@pytest.mark.parametrize("text", ["", " \n", "<img>", "<im<img>g> ", "\u200b"])
def test_prompts_without_text_are_broken_records(text):
  layout = text_lib.Text("shapes")
  generate = examples.TextToImage(8, 60, layout, 0.0, 1000)
  edit = examples.Edit(8, 60, 4, layout, 0.0, 1000)
  for make in (generate, edit):
    with pytest.raises(decode.BadRecordError, match="empty"):
      make(_record(text=text.encode()), None)
    assert make(_record(text=b"red"), None)["token_mask"].any()


@pytest.mark.parametrize("turn", [["<|im_<img>end|>", "two"], ["how many?", "<img>"]])
def test_turns_without_text_are_broken_records(turn):
  make = examples.Understand(8, 120, 4, text_lib.Text("shapes"), "", 1000)
  with pytest.raises(decode.BadRecordError, match="is empty"):
    make(_record(turns=json.dumps({"turns": [["a", "b"], turn]}).encode()), None)


def test_what_is_not_used_of_an_image_is_logged_with_its_record(caplog):
  buffer = io.BytesIO()
  Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(buffer, "TIFF")
  make = examples.Reconstruct(8, "center", False, 1000)
  record = sources.Record({"image": buffer.getvalue()}, "float", "shard.tar")
  for _ in range(1000):  # the first, 10th, 100th or 1000th of this process is logged
    make(record, None)
  assert "float values are used as 0 … 1 (float in shard.tar)" in caplog.text
