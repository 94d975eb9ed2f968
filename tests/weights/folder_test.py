"""Folders of weights: complete or absent, readable in parts, and a useful message when absent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import peak_memory, saved
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.weights import folder as folder_lib
from unilip_jax.weights import orbax_io, restore, sources
from unilip_jax.weights import stored as stored_lib

_MODULES = {
    "mlp1": {"fc1": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}},
    "decoder": {"conv_in": {"bias": np.ones(4, np.float32)}}}
_DIMS = {"mlp1": {"llm_width": 3}, "decoder": {"channels": [4]}}


def _save(folder, **kwargs):
  saved.save(folder, _MODULES, _DIMS, {"source": ["x"]}, **kwargs)
  return folder


def test_what_was_saved_is_read_back(tmp_path):
  modules, model = saved.load(_save(tmp_path / "w"))
  np.testing.assert_array_equal(
      modules["mlp1"]["fc1"]["kernel"], _MODULES["mlp1"]["fc1"]["kernel"])
  assert model["modules"] == _DIMS
  assert model["source"] == ["x"]
  assert {path: leaf.shape for path, leaf in folder_lib.open_folder(tmp_path / "w").shapes.items()} == {
      "mlp1/fc1/kernel": (2, 3), "decoder/conv_in/bias": (4,)}


def test_named_modules_are_read_alone(tmp_path):
  modules, _ = saved.load(_save(tmp_path / "w"), ["decoder"])
  assert set(modules) == {"decoder"}
  with pytest.raises(ValueError, match=r"lacks \['convnext'\].*decoder"):
    saved.load(tmp_path / "w", ["convnext"])


def test_a_full_folder_is_replaced_only_on_request(tmp_path):
  folder = _save(tmp_path / "w")
  with pytest.raises(ValueError, match="--overwrite"):
    _save(folder)
  _save(folder, overwrite=True)
  other = tmp_path / "photos"
  other.mkdir()
  (other / "a.jpg").write_text("mine")
  with pytest.raises(ValueError, match="not a folder of weights"):
    _save(other, overwrite=True)
  assert (other / "a.jpg").exists()


def test_a_failure_leaves_no_half_folder_and_the_next_try_succeeds(tmp_path, monkeypatch):
  write = orbax_io.write_tree

  def full_disk(folder, tree):
    write(folder, tree)
    if folder.name == "decoder":
      raise OSError("no space left on device")

  monkeypatch.setattr(orbax_io, "write_tree", full_disk)
  with pytest.raises(OSError, match="no space"):
    _save(tmp_path / "w")
  assert not list(tmp_path.iterdir())
  monkeypatch.undo()
  saved.load(_save(tmp_path / "w"))
  assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_other_formats_are_refused(tmp_path):
  folder = _save(tmp_path / "w")
  (folder / "model.json").write_text('{"format": 99, "modules": {}}')
  with pytest.raises(ValueError, match=r"format 99.*reads 2"):
    saved.load(folder)


@pytest.mark.parametrize(("path", "repository"), [
    ("weights/internvl3-1b", "OpenGVLab/InternVL3-1B"),
    ("weights/internvl3-2b", "OpenGVLab/InternVL3-2B"),
    ("weights/dc-ae-f32c32-sana-1.1", "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers"),
    ("weights/perceptual", "convnext_small-0c510722.pth"),
    ("weights/unilip-1b", "kanashi6/UniLIP-1B"),
    ("weights/none", "OpenGVLab/InternVL3-1B")])
def test_the_error_for_missing_weights_explains_the_download(path, repository):
  with pytest.raises(FileNotFoundError) as error:
    saved.load(path)
  text = str(error.value)
  assert repository in text
  assert f"no weights at {path}" in text
  assert "python -m unilip_jax.convert import --source=" in text
  assert ":tiny" in text


def test_the_error_for_pytorch_files_explains_the_import(tmp_path):
  folder = tmp_path / "UniLIP-1B"
  folder.mkdir()
  (folder / "model-00001-of-00002.safetensors").write_bytes(b"")
  (tmp_path / "1b_unilip.pth").write_bytes(b"")
  (tmp_path / "sana/transformer").mkdir(parents=True)
  for place in (folder, tmp_path / "1b_unilip.pth", tmp_path / "sana"):
    with pytest.raises(FileNotFoundError, match=f"convert import --source={place}"):
      saved.load(place)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_arrays_are_restored_in_part_onto_their_shardings(tmp_path, fsdp):
  kernel = np.arange(64, dtype=np.float32).reshape(16, 4)
  saved.save(tmp_path / "w", _MODULES | {"llm": {"kernel": kernel}}, _DIMS | {"llm": {}})
  stored = folder_lib.open_folder(tmp_path / "w")
  assert stored.modules == {"mlp1", "decoder", "llm"}
  mesh = mesh_lib.make_mesh(fsdp=fsdp)
  place = mesh_lib.NamedSharding(mesh, mesh_lib.P("fsdp"))
  restored = stored.restore({"llm/kernel": jax.ShapeDtypeStruct(
      kernel.shape, "bfloat16", sharding=place)})
  assert set(restored) == {"llm/kernel"}
  assert restored["llm/kernel"].dtype == "bfloat16"
  assert restored["llm/kernel"].sharding.is_equivalent_to(place, 2)
  np.testing.assert_array_equal(restored["llm/kernel"].astype("float32"), kernel)
  with pytest.raises(ValueError, match=r"llm/kernel: weights \(16, 4\), model \(4, 16\)"):
    stored.restore({"llm/kernel": jax.ShapeDtypeStruct((4, 16), "float32", sharding=place)})


def test_a_runs_workdir_is_never_replaced(tmp_path):
  folder = _save(tmp_path / "run")
  (folder / "checkpoints").mkdir()
  with pytest.raises(ValueError, match="not a folder of weights"):
    _save(folder, overwrite=True)
  assert (folder / "checkpoints").exists()


def test_a_folder_of_imported_weights_and_a_run_is_refused_with_the_choice(tmp_path):
  folder = _save(tmp_path / "both")
  (folder / "checkpoints/5/params").mkdir(parents=True)
  with pytest.raises(ValueError, match=r"holds imported weights \(params/\) and a run.*checkpoints/<step>"):
    sources.open_weights(str(folder))


@peak_memory.needs_linux
def test_reading_holds_the_weights_once(tmp_path, monkeypatch):
  size, count = 2**24, 24  # bytes of an array, arrays
  saved.save(
      tmp_path / "w",
      {"llm": {str(i): np.full(size // 4, i + 1, np.float32) for i in range(count)}}, {"llm": {}})
  monkeypatch.setattr(stored_lib, "_READ_BYTES", size)  # a 24th of the weights; at 1b a thirtieth
  stored = folder_lib.open_folder(tmp_path / "w")
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  leaves = {path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=here)
            for path, leaf in stored.shapes.items()}
  stored.restore({path: leaves[path] for path in list(leaves)[:1]})  # starts orbax' threads
  with peak_memory.measured() as peak:
    jax.block_until_ready(stored.restore(leaves))
  assert peak[0] / (size * count) < 1.25


@pytest.mark.parametrize(("file", "damage", "message"), [
    ("params/mlp1", "flip", r"params/mlp1/\S+: its content has changed"),
    ("params/mlp1", "truncate", r"params/mlp1/\S+: \d+ bytes, not \d+"),
    ("params/mlp1", "empty", r"params/mlp1/\S+: empty, not \d+ bytes"),
    ("params/mlp1", "absent", r"params/mlp1/\S+: absent"),
    ("model.json", "flip", r"model.json is damaged: "),
    ("model.json", "truncate", r"model.json is damaged: "),
    ("model.json", "zero", r"model.json is damaged: it holds \d+ bytes and no text"),
    ("tokenizer.json", "flip", r"tokenizer.json: its content has changed"),
    ("tokenizer.json", "absent", r"tokenizer.json: absent"),
])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, file, damage, message):
  with folder_lib.Writer(tmp_path / "w") as writer:
    writer.add("mlp1", _MODULES["mlp1"], _DIMS["mlp1"])
    writer.write_text("tokenizer.json", '{"model": {}}')
    writer.finish({"generate": {"factor": 0.5}})
  place = tmp_path / "w" / file
  files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
  for path in files:
    if path.name in ("_CHECKPOINT_METADATA", "commit_success.txt", "checksums.json"):
      continue
    content = path.read_bytes()
    changed = {
        "flip": content[:-3] + bytes([content[-3] ^ 1]) + content[-2:], "truncate": content[:-2],
        "zero": bytes(len(content)), "empty": b"", "absent": b""}[damage]
    path.write_bytes(changed)
    if damage == "absent":
      path.unlink()
    with pytest.raises(ValueError, match=f"{message}(.|\n)*import the weights again"):
      saved.load(tmp_path / "w")
    path.write_bytes(content)
  saved.load(tmp_path / "w")


def test_a_damaged_shape_is_reported_as_damage(tmp_path):
  folder = _save(tmp_path / "w")
  stored = folder_lib.open_folder(folder)
  assert stored.shapes
  next(p for p in (folder / "params/mlp1").rglob("d/*") if p.is_file()).write_bytes(b"")
  with pytest.raises(ValueError, match="empty, not"):
    restore.check_shapes({"mlp1": stored}, {"mlp1": {"fc1": {"kernel": jnp.zeros((3, 2))}}}, "differs")


def test_a_folder_of_an_earlier_version_is_read_unverified(tmp_path, caplog):
  folder = _save(tmp_path / "w")
  for path in folder.rglob("checksums.json"):
    path.unlink()
  with caplog.at_level("INFO"):
    modules, _ = saved.load(folder)
  np.testing.assert_array_equal(modules["decoder"]["conv_in"]["bias"], np.ones(4))
  assert "has no checksums.json (written by an earlier version)" in caplog.text
  (folder / "params/mlp1/_METADATA").write_text("{")
  with pytest.raises(ValueError, match=r"params/mlp1 cannot be read: .*\n?import the weights again"):
    saved.load(folder)
