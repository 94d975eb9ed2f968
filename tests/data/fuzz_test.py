"""Mutated tars, images, lists, manifests, indices and records give a clear error or a skip with its reason,
never another exception, a hang or code that runs."""

import contextlib
import io
import json
import pickle
import random
import signal
import subprocess
import tarfile

import msgpack
import numpy as np
from PIL import Image
import pytest

from tests import opened
from tests.data.prepare import small_datasets
from unilip_jax.data import decode, examples, sources, tar_index, text
from unilip_jax.data.prepare import manifest, readers, record, shard

_SECONDS = 20  # a mutant that takes longer counts as a hang; a busy machine takes its time
pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"),
              pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")]


@contextlib.contextmanager
def _no_hang(what):
  def stop(*_):
    raise BaseException(f"{what} hangs")  # not to be caught as an error of the data

  before = signal.signal(signal.SIGALRM, stop)
  signal.alarm(_SECONDS)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _reason(error, holds=""):
  """Fails unless the error has a message, with `holds` in it."""
  if not str(error) or holds not in str(error):
    pytest.fail(f"{error!r} does not say what is wrong, or where")


def _mutated(data: bytes, rng: random.Random) -> bytes:
  """Cuts, flips, fills, doubles and removes."""
  out = bytearray(data)
  if rng.random() < 0.15:
    return bytes(out[:rng.randrange(len(out))])
  for _ in range(rng.choice((1, 1, 2, 5, 20))):
    if not out:
      break
    at, length = rng.randrange(len(out)), rng.randrange(1, 600)
    how = rng.randrange(6)
    if how < 2:
      out[at] = rng.randrange(256)
    elif how == 2:
      out[at:at + 8] = rng.choice((b"\xff" * 8, bytes(8), b"7" * 8))
    elif how == 3:
      del out[at:at + length]
    elif how == 4:
      out[at:at] = out[rng.randrange(len(out)):][:length]
    else:
      out[at:at + length] = bytes(rng.randrange(256) for _ in range(min(length, 40)))
  return bytes(out)


def _mutated_header(data: bytes, rng: random.Random) -> bytes:
  """One field of a tar's header is another, and the checksum mostly right again."""
  out = bytearray(data)
  head = rng.randrange(len(out) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
  at, length = rng.choice(((124, 12), (124, 12), (156, 1), (0, 100), (257, 8), (345, 155)))
  out[head + at:head + at + length] = rng.choice((
      b"\x80" + b"\xff" * 154, b"\xff" * 155, b"7" * 155, bytes(155), b"x" * 155, b"g" * 155,
      b"\x80" + bytes(10) + b"\x01" + bytes(150), b"S" * 155, b"L" * 155,
      bytes(rng.randrange(256) for _ in range(155))))[:length]
  if rng.random() < 0.85:
    out[head + 148:head + 156] = b" " * 8
    out[head + 148:head + 156] = b"%06o\0 " % sum(out[head:head + tarfile.BLOCKSIZE])
  return bytes(out)


def _tar(path):
  members = []
  for i in range(4):
    members += [(f"{i}.jpg", small_datasets.image(i, "JPEG")), (f"{i}.txt", b"caption")]
  members.append((f"{'long/' * 30}5.jpg", small_datasets.image(5, "JPEG")))
  members.append(("ü.txt", b"name beyond ASCII"))
  return small_datasets.tar(path, members).read_bytes()


@pytest.mark.parametrize("first", range(0, 120, 30))
def test_tars(tmp_path, first):
  """120 mutants, through index, preparation and reading."""
  valid = _tar(tmp_path / "valid.tar")
  for seed in range(first, first + 30):
    rng = random.Random(seed)
    path = tmp_path / f"{seed}.tar"
    path.write_bytes((_mutated_header if seed % 3 else _mutated)(valid, rng))
    job = shard.Job(str(tmp_path / f"out{seed}"), "index", record.Rules("t2i"),
                    index_dir=str(tmp_path / "index"))
    with _no_hang(path):
      made = shard.make(shard.chunks_of_tars(str(path))[0], job)
      index = tar_index.load(path, tmp_path / "index")
    assert made["written"] <= 4
    assert (index.offsets + index.sizes <= path.stat().st_size).all()
    # Whatever is no longer found has a reason.
    assert made["written"] == 4 or made["skipped"]
    assert all(item and why for item, why in made["skipped"])


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_images(fmt):
  """20 mutants of each format."""
  valid = small_datasets.image(1, fmt, (40, 30))
  broken = 0
  for seed in range(20):
    data = _mutated(valid, random.Random(seed))
    with _no_hang(f"{fmt} {seed}"):
      try:
        assert decode.describe(data, 10**7)[0] in sources.IMAGE_SUFFIXES
        pixels = decode.prepare(data, size=28, crop="stretch", flip=False, max_pixels=10**7, rng=None)
        assert pixels.shape == (28, 28, 3)
      except decode.BadImageError as error:
        _reason(error)
        broken += 1
  assert broken


def test_lists(tmp_path):
  """60 mutants of a JSON list and of gptedit.txt."""
  root = small_datasets.gpt_image_edit(tmp_path, 3)
  for name, count in (("training_json/hqedit.json", 40), ("gptedit.txt", 20)):
    valid = (root / name).read_bytes()
    outcomes = set()
    for seed in range(count):
      (root / name).write_bytes(_mutated(valid, random.Random(seed)))
      with _no_hang(f"{name} {seed}"):
        try:
          for item in readers.gpt_image_edit(root, []):
            outcomes.add(_sample_or_reason(item, "edit"))
        except (FileNotFoundError, ValueError) as error:
          _reason(error, str(tmp_path))
          outcomes.add("error")
    (root / name).write_bytes(valid)
    assert outcomes >= {"sample", "error"}


def _sample_or_reason(item, kind):
  try:
    record.make(item, record.Rules(kind))
    return "sample"
  except record.Skipped as why:
    _reason(why)
    return "skipped"


@pytest.mark.parametrize("kind", readers.KINDS)
def test_json_lines(tmp_path, kind):
  """20 mutants of each kind."""
  path = small_datasets.json_lines(tmp_path, kind, 4)
  valid = path.read_bytes()
  outcomes = set()
  for seed in range(20):
    path.write_bytes(_mutated(valid, random.Random(seed)))
    with _no_hang(f"{kind} {seed}"):
      outcomes |= {_sample_or_reason(i, kind) for i in readers.json_lines(path, kind, "", [])}
  assert outcomes == {"sample", "skipped"}


_VALUES = (None, -1, 10**30, 1.5, "", "../../x", [], {}, [[]], True, "\ud800")


def _mutated_json(value, rng):
  """A JSON value in which one part is another or is gone."""
  if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
    return rng.choice(_VALUES)
  out = value.copy()
  key = rng.choice(list(out)) if isinstance(out, dict) else rng.randrange(len(out))
  if rng.random() < 0.2:
    del out[key]
  else:
    out[key] = _mutated_json(out[key], rng)
  return out


@pytest.mark.parametrize("name", ["manifest.json", "receipts/plan.json", "receipts/00001.json"])
def test_manifests(tmp_path, name):
  """30 mutants of each file, half of them bytes, half of them values."""
  from unilip_jax.data.prepare import __main__ as prepare

  source = small_datasets.json_lines(tmp_path, "t2i", 6)
  arguments = ["json_lines", f"--source={source}", "--kind=t2i", f"--out={tmp_path}/out",
               "--records_per_shard=3", "--workers=1", "--quiet"]
  prepare.main(arguments)
  good = small_datasets.tree(tmp_path / "out")
  path = tmp_path / "out" / name
  valid = path.read_bytes()
  for seed in range(30):
    rng = random.Random(seed)
    path.write_bytes(_mutated(valid, rng) if seed % 2
                     else json.dumps(_mutated_json(json.loads(valid), rng)).encode())
    with _no_hang(f"{name} {seed}"):
      for read in (lambda: list(manifest.check(tmp_path / "out")),
                   lambda: manifest.merge(tmp_path / "out")):
        with contextlib.suppress(manifest.ManifestError):
          read()
      assert small_datasets.tree(tmp_path).keys() >= {"out/t2i-00000.tar", "images/0.png", "t2i.jsonl"}
      if name != "receipts/plan.json":
        prepare.main(arguments)  # makes broken progress files again
        assert small_datasets.tree(tmp_path / "out")["manifest.json"] == good["manifest.json"]
    path.write_bytes(valid)


def test_cached_indices(tmp_path):
  """20 mutants: each is made again, or is the index."""
  path = tmp_path / "a.tar"
  _tar(path)
  expected = tar_index.load(path, tmp_path / "index")
  (cached,) = (tmp_path / "index").iterdir()
  valid = cached.read_bytes()
  for seed in range(20):
    cached.write_bytes(_mutated(valid, random.Random(seed)))
    with _no_hang(seed):
      index = tar_index.load(path, tmp_path / "index")
    assert (index.keys, index.suffixes) == (expected.keys, expected.suffixes)
    np.testing.assert_array_equal(index.offsets, expected.offsets)


class _Marks:
  """Unpickling it would leave a file."""

  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return open, (self._path, "w")


def test_a_pickle_in_an_index_is_not_unpickled(tmp_path):
  path = tmp_path / "a.tar"
  _tar(path)
  expected = tar_index.load(path, tmp_path / "index")
  (cached,) = (tmp_path / "index").iterdir()
  with np.load(cached) as z:
    arrays = dict(z)
  buffer = io.BytesIO()
  np.savez(buffer, **arrays | {"names": np.array([_Marks(str(tmp_path / "executed"))], dtype=object)})
  cached.write_bytes(buffer.getvalue())
  assert tar_index.load(path, tmp_path / "index").keys == expected.keys
  assert not (tmp_path / "executed").exists()
  pickle.loads(pickle.dumps(_Marks(str(tmp_path / "executed")))).close()
  assert (tmp_path / "executed").exists(), "the bait works"


def test_images_that_would_start_a_program_are_refused(monkeypatch):
  monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: pytest.fail("a program was started"))
  monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a program was started"))
  buffer = io.BytesIO()
  Image.new("RGB", (8, 8)).save(buffer, "EPS")
  with pytest.raises(decode.BadImageError, match="not an image of a known format"):
    decode.decode(buffer.getvalue(), 10**6)


def test_array_record_files_and_records(tmp_path):
  """20 mutants of a file, 30 of a record."""
  from array_record.python import array_record_module

  def write(name, records):
    path = str(tmp_path / name)
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1,uncompressed")
    for data in records:
      writer.write(data)
    writer.close()
    return path

  def read(path):
    outcomes = set()
    with _no_hang(path):
      try:
        source = opened.source("array_record", path, example="t2i")
      except ValueError as error:
        _reason(error, path)
        return {"error"}
      for i in range(min(len(source), 100)):
        try:
          assert all(isinstance(part, bytes) for part in source[i].parts.values())
          outcomes.add("record")
        except decode.BadRecordError as error:
          _reason(error)
          outcomes.add("broken")
    return outcomes

  packed = [msgpack.packb({"key": str(i), "image": small_datasets.image(i), "text": b"words"})
            for i in range(6)]
  valid = (tmp_path / "valid").with_suffix(".array_record")
  write(valid.name, packed)
  data, outcomes = valid.read_bytes(), set()
  for seed in range(20):
    mutant = bytearray(data)
    rng = random.Random(seed)
    if seed % 2:
      mutant = bytearray(_mutated(data, rng))
    else:
      for _ in range(20):
        mutant[rng.randrange(12_000)] = rng.randrange(256)
    path = tmp_path / f"{seed}.array_record"
    path.write_bytes(mutant)
    outcomes |= read(str(path))
  assert outcomes == {"error", "broken", "record"}
  mutants = [_mutated(packed[0], random.Random(seed)) for seed in range(30)]
  mutants += [msgpack.packb({"image": 10**12, "text": "x"}), msgpack.packb({"image": [1], "text": "x"})]
  assert read(write("records.array_record", mutants)) == {"broken", "record"}


def test_conversations():
  """40 mutants of what a tar's json holds."""
  tokenizer = text.Text("shapes")
  make = examples.Understand(28, 300, 1, tokenizer, "", 10**6)
  image = small_datasets.image(0)
  good = {"turns": [["how many?", "two"], ["which colour?", "red"]]}
  valid = json.dumps(good).encode()
  mutants = [_mutated(valid, random.Random(seed)) for seed in range(20)]
  mutants += [json.dumps(_mutated_json(good, random.Random(seed))).encode() for seed in range(20)]
  mutants += [b"[" * 100_000, b'{"turns": [["\\ud800", "a"]]}', b'{"turns": ["ab"]}']
  outcomes = set()
  for seed, data in enumerate(mutants):
    with _no_hang(seed):
      try:
        make(sources.Record({"cond_image": image, "turns": data}, "k", "s"), np.random.default_rng(0))
        outcomes.add("example")
      except decode.BadRecordError as error:
        _reason(error)
        outcomes.add("broken")
  assert outcomes == {"example", "broken"}
