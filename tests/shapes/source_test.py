"""Options of the source: a split's scenes by count, size of their objects, and words of their prompts."""

import collections

import pytest

from tests import opened
from unilip_jax.data import decode


def _open(tmp_path, path, example, **options):
  return opened.source("shapes", path, example=example, render=str(tmp_path), index=str(tmp_path / "i"),
                       **options)


def test_objects_have_the_chosen_size(tmp_path):
  large = _open(tmp_path, "test", "understand", count=6, sizes=("large",))
  turns = [large[i].parts["turns"] for i in range(len(large))]
  assert len(turns) == 6
  assert all(b'"large"' in t and b'"small"' not in t for t in turns)


def test_prompts_are_templates_unless_paraphrased(tmp_path):
  plain = _open(tmp_path, "test", "t2i", count=5)
  paraphrased = _open(tmp_path, "test", "t2i", count=5, paraphrased=True)
  assert len(plain) == len(paraphrased) == 5
  assert paraphrased[0].parts["text"].startswith(b"please draw a")
  assert not plain[0].parts["text"].startswith(b"please")
  assert len(_open(tmp_path, "unseen", "t2i", paraphrased=True)) == 256


def test_images_are_divided_among_canvases_and_edits_keep_theirs(tmp_path):
  canvases = {"canvases": ("square", "wide", "tall"), "count": 30}
  edits = _open(tmp_path, "test", "edit", **canvases)
  sizes = collections.Counter()
  for i in range(len(edits)):
    size, = {decode.describe(edits[i].parts[part], 10**6)[1:] for part in ("cond_image", "image")}
    sizes[size] += 1
  assert set(sizes) == {(112, 112), (140, 84), (84, 140)}  # width, height
  assert min(sizes.values()) >= 4
  with pytest.raises(ValueError, match="prompts have squares"):
    _open(tmp_path, "test", "prompt", **canvases)
