"""The example of a new data source: training and evaluation read it."""

import pickle

import numpy as np
import pytest

from tests import micro, opened
from tests.extend import source_example
from unilip_jax.data import decode, pipeline, sources
from unilip_jax.data import text as text_lib

_COUNT = 20


@pytest.fixture(autouse=True, scope="module")
def _register():
  source_example.register()


@pytest.fixture
def table(tmp_path):
  micro.write_images(tmp_path / "images", count=_COUNT)
  path = tmp_path / "captions.csv"
  path.write_text("".join(f"images/{i:03d}.jpg;a red circle, number {i}\n" for i in range(_COUNT)))
  return path


def _config(table):
  return micro.text_config("gen1", data__train=(("csv", str(table), 1.0, {"delimiter": ";"}),))


def _take(config, workdir, count):
  stream = pipeline.train_stream(
      config, start_position=0, process_index=0, process_count=1, workdir=str(workdir))
  batches = [next(stream)["t2i"] for _ in range(count)]
  stream.close()
  return batches, stream.bad


def test_training_reads_it_and_every_image_keeps_its_caption(table, tmp_path):
  config = _config(table)
  config.text.prompt_dropout = 0.0
  batches, bad = _take(config, tmp_path, 3)
  text = text_lib.Text(config.text.tokenizer)
  number = {}
  for i in range(_COUNT):
    data = (tmp_path / f"images/{i:03d}.jpg").read_bytes()
    pixels = decode.prepare(data, size=config.image_size, crop="stretch", flip=False,
                            max_pixels=10**6, rng=None)
    number[pixels.tobytes()] = i
  seen = set()
  for batch in batches:
    for image, tokens, mask in zip(batch["image"], batch["tokens"], batch["token_mask"]):
      i = number[image.tobytes()]
      expected, _ = text.generation(f"a red circle, number {i}", config.text.t2i_length)
      np.testing.assert_array_equal(tokens[mask], expected[:mask.sum()])
      seen.add(i)
  assert seen == set(range(_COUNT))
  assert bad.count == 0


def test_a_missing_image_is_replaced_and_named(table, tmp_path):
  (tmp_path / "images/005.jpg").unlink()
  _, bad = _take(_config(table), tmp_path, 3)
  assert bad.count >= 1
  assert all("images/005.jpg" in fault["why"] for fault in bad.examples)


def test_evaluation_reads_it(table, tmp_path):
  spec = sources.SourceSpec("csv", str(table), {"delimiter": ";"})
  batches = pipeline.eval_batches(
      micro.config("stage2"), "captions", "native", spec, process_index=0, process_count=1,
      workdir=str(tmp_path))
  assert sum(int(batch["_mask"].sum()) for batch in batches) == _COUNT


def test_it_reaches_worker_processes(table):
  source = opened.source("csv", str(table), example="t2i", delimiter=";")
  copy = pickle.loads(pickle.dumps(source))
  assert copy[3] == source[3]


def test_wrong_use_is_refused_with_the_reason(table, tmp_path):
  with pytest.raises(ValueError, match="unknown option separator; known: delimiter"):
    opened.source("csv", str(table), example="t2i", separator=";")
  with pytest.raises(ValueError, match="has no cond_image, turns, which the example 'understand' needs"):
    opened.source("csv", str(table), example="understand")
  with pytest.raises(ValueError, match=r"captions.csv, line 1: expected image path and caption"):
    opened.source("csv", str(table), example="t2i", delimiter="|")
  with pytest.raises(FileNotFoundError):
    opened.source("csv", str(tmp_path / "absent.csv"), example="t2i")
