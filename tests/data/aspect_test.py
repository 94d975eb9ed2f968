"""Batches of aspect-ratio buckets have one size each, and are a pure function of the stream's position."""

import collections
import io

import chex
import numpy as np
from PIL import Image
import pytest

from tests import micro
from unilip_jax.configs import checks
from unilip_jax.data import aspect, image_sizes, latents, pipeline, sources, stream

_BUCKETS = ((28, 56), (56, 56), (56, 28))
_SHAPES = ("square", "wide", "tall")


def _config(**overrides):
  rows = (("shapes", "train", 1.0, {"count": 60, "canvases": _SHAPES}),)
  fields = dict(data__train=rows, data__edit=rows, data__edit_share=0.5, data__buckets=_BUCKETS,
                text__prompt_dropout=0.0)
  return micro.text_config("gen2", **fields | overrides)


def _take(config, workdir, count, start=0, process=(0, 1)):
  with_end = pipeline.train_stream(
      config, start_position=start, process_index=process[0], process_count=process[1],
      workdir=str(workdir))
  batches = [next(with_end) for _ in range(count)]
  with_end.close()
  return batches


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def batches(workdir):
  return _take(_config(), workdir, 30)


def test_every_batch_has_one_size_and_buckets_their_shares(batches):
  counts = collections.Counter()
  for batch in batches:
    size = batch["t2i"]["image"].shape[1:3]
    assert batch["edit"]["image"].shape[1:3] == batch["edit"]["cond_image"].shape[2:4] == size
    counts[size] += 1
  assert set(counts) == set(_BUCKETS)
  assert min(counts.values()) >= 4


def test_a_resumed_stream_continues_bit_for_bit_whatever_the_bucket(batches, workdir):
  for start in (1, 13):
    resumed = _take(_config(), workdir, 4, start * 16)
    for a, b in zip(batches[start:], resumed):
      chex.assert_trees_all_equal(a, b)


def test_processes_share_batches_of_one_bucket(batches, workdir):
  parts = [_take(_config(), workdir, 5, process=(i, 4)) for i in range(4)]
  for step in range(5):
    for name in ("t2i", "edit"):
      joined = np.concatenate([part[step][name]["image"] for part in parts])
      np.testing.assert_array_equal(joined, batches[step][name]["image"])


def test_an_edit_has_as_many_image_slots_as_its_size_has_tokens(batches):
  for batch in batches[:8]:
    h, w = batch["edit"]["image"].shape[1:3]
    counts = np.unique(batch["edit"]["tokens"], return_counts=True)
    assert h * w // 28**2 * 8 in counts[1]


class _Sized(sources.Source):
  """Records with images of given sizes, (height, width)."""

  def __init__(self, sizes):
    self._sizes = sizes
    self.reads = 0

  def __len__(self):
    return len(self._sizes)

  def __getitem__(self, index):
    self.reads += 1
    data = io.BytesIO()
    if self._sizes[index] != (0, 0):
      Image.new("RGB", self._sizes[index][::-1], (index, 0, 0)).save(data, "PNG")
    return sources.Record({"image": data.getvalue() or b"broken"}, str(index), "here")


def test_sizes_are_read_once_and_bound_to_the_images(tmp_path):
  sizes = [(40, 60), (60, 40), (0, 0), (50, 50)]
  source = _Sized(sizes)
  first = image_sizes.read(source, tmp_path, 10**6)
  assert first.tolist() == [list(s) for s in sizes]
  again = _Sized(sizes)
  np.testing.assert_array_equal(image_sizes.read(again, tmp_path, 10**6), first)
  assert again.reads == len(sizes)  # for the hash of the images alone
  other = [(40, 60), (60, 40), (0, 0), (50, 51)]
  assert image_sizes.read(_Sized(other), tmp_path, 10**6)[3].tolist() == [50, 51]
  assert aspect.assign(first, _BUCKETS).tolist() == [0, 2, 1, 1]  # the broken one is a square


@pytest.mark.parametrize("content", [b"", b"junk", b"\x93NUMPY", None])
def test_damaged_sizes_are_read_again(tmp_path, caplog, content):
  source = _Sized([(40, 60), (60, 40)])
  first = image_sizes.read(source, tmp_path, 10**6)
  file, = tmp_path.iterdir()
  file.write_bytes(file.read_bytes()[:-3] if content is None else content)
  np.testing.assert_array_equal(image_sizes.read(source, tmp_path, 10**6), first)
  assert f"{file} is damaged and written again" in caplog.text


def test_each_record_is_read_once_in_an_epoch_of_its_bucket(workdir):
  source = pipeline.open_spec(_config().data, sources.training_row(_config().data.train[0])[0], "t2i",
                              str(workdir))
  sizes = image_sizes.read(latents.images_of(source, "t2i"), workdir / "index", 10**9)
  bucket = aspect.assign(sizes, _BUCKETS)
  members = np.flatnonzero(bucket == 0)
  mixture = stream.Mixture([len(members)], [1.0], 0)
  read = [aspect.Subset(source, members)[mixture.locate(i)[1]].key for i in range(len(members))]
  assert sorted(read) == sorted(source[int(i)].key for i in members)


def test_buckets_without_records_for_each_sub_batch_have_no_batches(tmp_path, caplog):
  edits = (("shapes", "train", 1.0, {"count": 20, "canvases": ("wide", "square")}),)
  with caplog.at_level("INFO"):
    batches = _take(_config(data__edit=edits), tmp_path, 12)
  assert {b["t2i"]["image"].shape[1:3] for b in batches} == set(_BUCKETS[:2])
  assert "images are never read" in caplog.text
  tall = (("shapes", "train", 1.0, {"count": 20, "canvases": ("tall",)}),)
  wide = (("shapes", "train", 1.0, {"count": 20, "canvases": ("wide",)}),)
  with pytest.raises(ValueError, match="has images for t2i and edit"):
    _take(_config(data__edit=tall, data__train=wide), tmp_path, 1)


@pytest.mark.parametrize(("fields", "message"), [
    (dict(data__buckets=((56,),)), r"\(56,\) is no row"),
    (dict(data__buckets=((56, 56), (56, 56))), "twice"),
    (dict(data__buckets=((0, 56),)), "a side of"), (dict(data__buckets=(56, 56)), "56 is no row"),
    (dict(data__latents_dir="x"), "holds latents of one size"),
    (dict(data__example="understand"), "of reconstruction, generation")])
def test_settings_that_exclude_buckets_are_named(fields, message):
  with pytest.raises(ValueError, match=message):
    checks.check(_config(**fields))
