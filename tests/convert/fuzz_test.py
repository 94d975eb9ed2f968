"""Damaged weight files, configs and pickles: one clear message each, no other exception, hang or code."""

import copy
import io
import json
import os
import pathlib
import pickle
import random
import shutil
import signal

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import torch

from unilip_jax.convert import importer, inspector, pickles, qwen2
from unilip_jax.convert import io as io_lib
from unilip_jax.weights import folder as folder_lib

_DEEP = json.loads("[" * 400 + "]" * 400)
_ODD = (None, -1, 0, 2**70, 1.5, float("inf"), True, "x", "", [], {}, [1, "a"], {"a": 1}, _DEEP, 10**9)


@pytest.fixture(autouse=True)
def _no_hang():
  """A test that hangs fails."""
  def stop(signum, frame):
    raise TimeoutError("a damaged input hangs")

  before = signal.signal(signal.SIGALRM, stop)
  signal.alarm(120)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)


def _bytes_mutated(data: bytes, rng: random.Random, first: int = 0) -> bytes:
  """Changes, cuts, repeats or inserts some bytes."""
  out, kind = bytearray(data), rng.randrange(5)
  place = rng.randrange(first, len(out))
  if kind == 0:
    out[place] ^= 1 << rng.randrange(8)
  elif kind == 1:
    for _ in range(20):
      out[rng.randrange(first, len(out))] = rng.randrange(256)
  elif kind == 2:
    del out[place:]
  elif kind == 3:
    out[place:place] = rng.randbytes(rng.randrange(1, 40))
  else:
    del out[place:place + rng.randrange(1, 30)]
  return bytes(out)


def _json_mutated(value, rng: random.Random):
  """Replaces one entry, anywhere, by an odd value, deletes or renames it."""
  value = copy.deepcopy(value)
  places = []

  def walk(node):
    if isinstance(node, dict | list):
      for key in (node if isinstance(node, dict) else range(len(node))):
        places.append((node, key))
        walk(node[key])

  walk(value)
  node, key = rng.choice(places)
  kind = rng.randrange(4)
  if kind == 0 and isinstance(node, dict):
    del node[key]
  elif kind == 1 and isinstance(node, dict):
    node[f"{key}_"] = node.pop(key)
  else:
    node[key] = copy.deepcopy(rng.choice(_ODD))
  return value


def _refused(action, path) -> bool:
  """Whether `action` raises; then it must be a ValueError that names the file or folder."""
  try:
    action()
  except (ValueError, FileNotFoundError) as error:
    message = str(error)
  else:
    return False
  assert str(path) in message
  assert len(message) < 10_000
  return True


def _read_all(path: pathlib.Path) -> None:
  tensors = io_lib.open_file(path)
  for name in tensors:
    assert tensors[name].shape == tensors.shapes[name]


def _small() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return {"a.weight": rng.standard_normal((3, 4)).astype(np.float32),
          "b.bias": rng.standard_normal(5).astype(np.float16), "c": np.array(2.0, np.float32)}


def test_safetensors_headers(tmp_path):
  data = safetensors_numpy.save(_small())
  length = int.from_bytes(data[:8], "little")
  header, body = json.loads(data[8:8 + length]), data[8 + length:]
  rng, path, refused = random.Random(0), tmp_path / "model.safetensors", 0
  for case in range(160):
    if case % 2:
      text = json.dumps(_json_mutated(header, rng)).encode()
      damaged = len(text).to_bytes(8, "little") + text + body
    else:
      damaged = _bytes_mutated(data[:8 + length], rng) + body
    path.write_bytes(damaged)
    refused += _refused(lambda: _read_all(path), path)
  assert refused > 120  # the rest are other names of tensors


@pytest.mark.parametrize(("header", "message"), [
    (b"[" * 5000, "nested too deeply"), (b'{"a":1,"a":2}', "is there twice"), (b"[1]", "JSON list"),
    (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
     b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "invalid offset for tensor `[ab]`"),
    (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "truncated"),
    (b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', "header of a")])
def test_hostile_safetensors_headers(tmp_path, header, message):
  path = tmp_path / "model.safetensors"
  path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
  with pytest.raises(io_lib.ReadError, match=message) as error:
    io_lib.open_file(path)
  assert str(path) in str(error.value)


def test_indices_of_shards(tmp_path):
  (tmp_path / "m-00001-of-00001.safetensors").write_bytes(safetensors_numpy.save(_small()))
  content = {"metadata": {"total_size": 62},
             "weight_map": dict.fromkeys(_small(), "m-00001-of-00001.safetensors")}
  path, rng, refused = tmp_path / "model.safetensors.index.json", random.Random(1), 0
  for _ in range(40):
    path.write_text(json.dumps(_json_mutated(content, rng)))
    refused += _refused(lambda: io_lib.open_folder(tmp_path), path)
  assert refused > 20
  content["weight_map"]["c"] = "../../other.safetensors"
  path.write_text(json.dumps(content))
  with pytest.raises(io_lib.ReadError, match="not a file of the same folder"):
    io_lib.open_folder(tmp_path)


@pytest.mark.parametrize("place", [
    "pretrained/mllm", "pretrained/mllm_hf", "pretrained/dit/transformer", "pretrained/vae",
    "ckpt/unilip_hf"])
def test_configs(golden, tmp_path, place):
  source = golden / place
  for file in source.glob("*.safetensors"):
    (tmp_path / file.name).symlink_to(file)
  path, rng, refused = tmp_path / "config.json", random.Random(2), 0
  data = (source / "config.json").read_bytes()
  for case in range(40):
    path.write_bytes(_bytes_mutated(data, rng) if case % 4 == 0 else
                     json.dumps(_json_mutated(json.loads(data), rng)).encode())
    refused += _refused(lambda: inspector.describe(str(tmp_path)), tmp_path)
  assert refused > 5  # many entries say nothing of the weights


def _refused_pickle(path) -> bool:
  return _refused(lambda: _read_all(path), path)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles(tmp_path, zipped):
  buffer = io.BytesIO()
  torch.save({k: torch.from_numpy(np.asarray(v)) for k, v in _small().items()}, buffer,
             _use_new_zipfile_serialization=zipped)
  rng, path, refused = random.Random(3), tmp_path / "model.pth", 0
  for _ in range(50):
    path.write_bytes(_bytes_mutated(buffer.getvalue(), rng))
    refused += _refused_pickle(path)
  assert refused > 25


def test_code_hidden_anywhere_in_a_pickle_is_never_run(tmp_path):
  mark, rng = tmp_path / "ran", random.Random(4)

  class Payload:
    def __reduce__(self):
      return os.system, (f"touch {mark}",)

  for case in range(30):
    content = {f"k{i}": torch.zeros(2) for i in range(4)}
    content[rng.choice(list(content)) if case % 2 else Payload()] = [Payload()]
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=bool(case % 3))
    data = buffer.getvalue() if case % 5 else pickle.dumps(content, protocol=rng.randrange(2, 5))
    path = tmp_path / f"evil{case}{rng.choice(pickles.SUFFIXES)}"
    path.write_bytes(_bytes_mutated(data, rng, len(data) // 2) if case % 4 == 0 else data)
    assert _refused_pickle(path)
    assert not mark.exists()


def test_our_own_model_json(golden, tmp_path):
  importer.import_weights([str(golden / "pretrained/dit")], str(tmp_path / "w"))
  path, rng, refused = tmp_path / "w/model.json", random.Random(5), 0
  data = path.read_bytes()
  for case in range(60):
    path.write_bytes(_bytes_mutated(data, rng) if case % 2 else
                     json.dumps(_json_mutated(json.loads(data), rng)).encode())
    refused += _refused_model(tmp_path / "w")
  assert refused > 30
  path.write_bytes(data)
  shutil.rmtree(tmp_path / "w/params/dit")
  with pytest.raises(ValueError, match="lacks the arrays of dit"):
    folder_lib.read_model(tmp_path / "w")


def _refused_model(folder) -> bool:
  try:
    inspector.describe(str(folder))
  except ValueError:
    return True
  return False


def test_tokenizers(golden, tmp_path):
  data, rng, refused = (golden / "ckpt/unilip_hf/tokenizer.json").read_bytes(), random.Random(6), 0
  for _ in range(40):
    (tmp_path / "tokenizer.json").write_bytes(_bytes_mutated(data, rng))
    refused += _refused(lambda: qwen2.tokenizer_json(tmp_path), tmp_path)
  assert refused > 15
