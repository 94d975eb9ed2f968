"""Reading weight files: without loss, only what is needed, and never running code from them."""

import json
import os
import pathlib
import pickle
import time

import ml_dtypes
import numpy as np
import pytest
from safetensors import torch as safetensors_torch
import torch

from unilip_jax.convert import io as io_lib

_TORCH = {
    "half.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).half(),
    "brain.weight": torch.arange(6).reshape(2, 3).bfloat16() / 3,
    "single.bias": torch.linspace(0, 1, 5),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3)}


def _write(folder: pathlib.Path, suffix: str) -> pathlib.Path:
  path = folder / f"model{suffix}"
  if suffix == ".safetensors":
    safetensors_torch.save_file(_TORCH, path)
  elif suffix == ".legacy.pth":
    torch.save(_TORCH, path, _use_new_zipfile_serialization=False)
  else:
    torch.save(_TORCH, path)
  return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ".legacy.pth"])
def test_every_dtype_is_kept_without_loss(tmp_path, suffix):
  tensors = io_lib.open_file(_write(tmp_path, suffix))
  assert set(tensors) == set(_TORCH)
  assert tensors["brain.weight"].dtype == ml_dtypes.bfloat16
  assert tensors["half.weight"].dtype == np.float16
  for name, want in _TORCH.items():
    assert tensors.shapes[name] == tuple(want.shape)
    assert tensors.dtypes[name] == tensors[name].dtype
    np.testing.assert_array_equal(tensors[name].astype(np.float32), want.float().numpy())


def _shard(folder: pathlib.Path) -> pathlib.Path:
  names = sorted(_TORCH)
  weight_map = {}
  for i, group in enumerate((names[:2], names[2:]), 1):
    file = f"model-{i:05d}-of-00002.safetensors"
    safetensors_torch.save_file({n: _TORCH[n] for n in group}, folder / file)
    weight_map |= dict.fromkeys(group, file)
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
  return index


@pytest.mark.parametrize("with_index", [True, False])
def test_shards_are_read_as_one(tmp_path, with_index):
  index = _shard(tmp_path)
  if not with_index:
    index.unlink()
  tensors = io_lib.open_folder(tmp_path)
  assert set(tensors) == set(_TORCH)
  np.testing.assert_array_equal(tensors["single.bias"], _TORCH["single.bias"].numpy())


@pytest.mark.parametrize("with_index", [True, False])
def test_an_absent_shard_is_named(tmp_path, with_index):
  index = _shard(tmp_path)
  if not with_index:
    index.unlink()
  (tmp_path / "model-00002-of-00002.safetensors").unlink()
  with pytest.raises(io_lib.ReadError, match=r"00002-of-00002|1 of 2 shards"):
    io_lib.open_folder(tmp_path)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path):
  index = _shard(tmp_path)
  content = json.loads(index.read_text())
  content["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
  index.write_text(json.dumps(content))
  with pytest.raises(io_lib.ReadError, match=r"shards lack .*ghost"):
    io_lib.open_folder(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".legacy.pth"])
@pytest.mark.parametrize("keep", [0, 5, 100, -40])
def test_a_truncated_file_is_named(tmp_path, suffix, keep):
  path = _write(tmp_path, suffix)
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(io_lib.ReadError, match=r"damaged|truncated") as error:
    dict(io_lib.open_file(path))
  assert str(path) in str(error.value)


def test_a_damaged_safetensors_header_is_named(tmp_path):
  path = _write(tmp_path, ".safetensors")
  content = path.read_bytes()
  path.write_bytes(content[:8] + b"{]" + content[10:])
  with pytest.raises(io_lib.ReadError, match=f"{path}.*header"):
    io_lib.open_file(path)
  path.write_bytes(content.replace(b'"shape":[5]', b'"shape":[6]'))
  with pytest.raises(io_lib.ReadError, match=rf"{path}.*single\.bias"):
    io_lib.open_file(path)
  path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
  with pytest.raises(io_lib.ReadError, match="git-lfs pointer"):
    io_lib.open_file(path)


class _Payload:
  """Unpickled without care, makes a file."""

  def __init__(self, target: str):
    self.target = target

  def __reduce__(self):
    return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
def test_code_in_a_pickle_is_refused_and_never_run(tmp_path, kind):
  path, mark = tmp_path / "evil.pth", tmp_path / "ran"
  content = {"weight": torch.zeros(2), "extra": _Payload(str(mark))}
  if kind == "plain":
    path.write_bytes(pickle.dumps(content["extra"], protocol=2))
  else:
    torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
  with pytest.raises(io_lib.ReadError) as error:
    io_lib.open_file(path)
  assert str(path) in str(error.value)
  assert "weights_only" not in str(error.value)  # no advice to switch the guard off
  if kind != "plain":
    assert "refused: it would run" in str(error.value)
  assert not mark.exists()


def test_nested_pickles_are_refused_by_what_they_hold(tmp_path):
  torch.save({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, tmp_path / "run.pth")
  with pytest.raises(io_lib.ReadError, match="'state_dict': dict"):
    io_lib.open_file(tmp_path / "run.pth")


def test_only_needed_tensors_are_read_and_no_header_again(tmp_path, monkeypatch):
  path = _write(tmp_path, ".safetensors")
  tensors, read, fromfile = io_lib.open_file(path), [], np.fromfile
  monkeypatch.setattr(io_lib.safetensors, "safe_open", None)
  monkeypatch.setattr(io_lib, "safetensors_header", None)

  def recorded(file, dtype, count, offset):
    read.append(count)
    return fromfile(file, dtype, count, offset=offset)

  monkeypatch.setattr(np, "fromfile", recorded)
  assert tensors["single.bias"].shape == (5,)
  assert read == [5]


def test_a_file_cut_after_it_was_opened_is_named(tmp_path):
  path = _write(tmp_path, ".safetensors")
  tensors = io_lib.open_file(path)
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(io_lib.ReadError, match=f"{path} has become shorter"):
    [tensors[name] for name in tensors]


def test_one_repeated_name_among_very_many_is_found_at_once(tmp_path):
  """Counting every name before it would take minutes."""
  names = [f'"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(100_000)]
  text = "{" + ",".join([*names, names[-1]]) + "}"
  path = tmp_path / "a.safetensors"
  path.write_bytes(len(text).to_bytes(8, "little") + text.encode())
  begin = time.process_time()
  with pytest.raises(io_lib.ReadError, match="repeated: 't99999' is there twice"):
    io_lib.open_file(path)
  assert time.process_time() - begin < 5


def test_the_same_name_in_two_files_is_refused(tmp_path):
  first = io_lib.open_file(_write(tmp_path, ".safetensors"))
  with pytest.raises(io_lib.ReadError, match="repeated"):
    io_lib.merge([first, first])


def test_absent_and_unknown_files_are_named(tmp_path):
  with pytest.raises(io_lib.ReadError, match=r"none\.pth: no such file"):
    io_lib.open_file(tmp_path / "none.pth")
  (tmp_path / "a.txt").write_text("x")
  with pytest.raises(io_lib.ReadError, match=r"a\.txt: unknown kind"):
    io_lib.open_file(tmp_path / "a.txt")
  with pytest.raises(io_lib.ReadError, match=r"holds no weights.*found a\.txt"):
    io_lib.open_folder(tmp_path)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(io_lib.ReadError, match=r"config\.json is damaged"):
    io_lib.read_config(tmp_path)
