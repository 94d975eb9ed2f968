"""Inputs of a config are listed before anything is rented, and staged below the root."""

import pytest

from unilip_jax.configs import roots, stage2
from unilip_jax.plan import inputs


@pytest.fixture
def local(tmp_path):
  """Half of what stage 2 reads, below tmp_path/local."""
  for name, size in {"weights/perceptual/model.json": 10, "weights/perceptual/arrays/0": 90,
                     "weights/internvl3-1b/tokenizer.json": 7,
                     "data/BLIP3o-Pretrain-Long-Caption/0.tar": 300,
                     "data/BLIP3o-Pretrain-Long-Caption/1.tar": 200,
                     "data/BLIP3o-Pretrain-Long-Caption/notes.txt": 5}.items():
    file = tmp_path / "local" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * size)
  return tmp_path / "local"


def _config(root):
  config = stage2.get_config("1b")
  config.root = str(root)
  return roots.apply(config)


def test_every_input_is_listed_present_or_missing_with_its_size(local):
  found = {i.path.removeprefix(f"{local}/"): (i.files, i.size) for i in inputs.find(_config(local))}
  assert found["weights/perceptual"] == (2, 100)
  assert found["data/BLIP3o-Pretrain-Long-Caption/*.tar"] == (2, 500)
  assert found["weights/internvl3-1b/tokenizer.json"] == (1, 7)
  assert found["runs/stage1"] == found["data/imagenet-val/*.tar"] == (0, 0)
  assert len(found) == 7
  text = "\n".join(inputs.lines(inputs.find(_config(local))))
  assert "MISSING  " + str(local / "runs/stage1") in text
  assert f"unilip train --config=configs/stage1.py --workdir={local}/runs/stage1" in text
  assert "docs/data.md" in text
  assert "7 inputs, 0.00 GB, 4 missing" in text


def test_what_is_missing_below_the_root_is_copied_once(local, tmp_path):
  config = _config(tmp_path / "bucket")
  missing = inputs.find(config)
  assert not any(i.files for i in missing)
  assert inputs.stage(config, missing, str(local)) == 5  # notes.txt matches no pattern
  assert (tmp_path / "bucket/data/BLIP3o-Pretrain-Long-Caption/1.tar").read_bytes() == b"x" * 200
  assert not (tmp_path / "bucket/data/BLIP3o-Pretrain-Long-Caption/notes.txt").exists()
  assert sum(i.size for i in inputs.find(config)) == 607
  assert inputs.stage(config, missing, str(local)) == 0  # all there in the same size
  (tmp_path / "bucket/weights/perceptual/model.json").write_bytes(b"cut")
  assert inputs.stage(config, missing, str(local)) == 1


def test_staging_without_a_root_is_refused():
  config = stage2.get_config("1b")
  with pytest.raises(ValueError, match="set it, e"):
    inputs.stage(config, [], ".")


def test_weights_that_are_missing_name_the_command_that_imports_them():
  found = inputs.Input("text.tokenizer", "gs://b/weights/internvl3-1b/tokenizer.json", 0, 0)
  text = "\n".join(inputs.lines([found]))
  assert "import --source=hf://OpenGVLab/InternVL3-1B --out=gs://b/weights/internvl3-1b" in text
