"""`evals pairs` compares images of equal names, and names those without a counterpart."""

import json
import pathlib

import numpy as np
from PIL import Image
import pytest
from skimage import metrics as sk
import torch

from tests.golden import metrics
from unilip_jax.convert import importer
from unilip_jax.convert import perceptual as conversion
from unilip_jax.evals import pairs
from unilip_jax.models import presets

_LPIPS = pathlib.Path(metrics.__file__).with_name("lpips.json")


@pytest.fixture
def folders(recorded, tmp_path):
  """Folders of the recorded images 1 and 2, and of their noisy copies in other formats."""
  (tmp_path / "noisy").mkdir()
  (tmp_path / "plain").mkdir()
  for i in (1, 2):
    for name, source, suffix in (("noisy", f"psnr_ssim/noisy_{i}", "bmp"), ("plain", f"images/{i}", "png")):
      Image.open(recorded / f"{source}.png").save(tmp_path / name / f"{i}.{suffix}")
  return tmp_path


def _run(folders, capsys, *options):
  pairs.main([f"--images={folders}/noisy", f"--reference={folders}/plain", "--json", *options])
  return json.loads(capsys.readouterr().out)


def test_means_equal_the_recorded_and_scikit_images(recorded, folders, capsys):
  result = _run(folders, capsys)
  rows = {r["image"]: r for r in json.loads((recorded / "psnr_ssim" / "scores.json").read_text())}
  for metric, name in (("psnr", "psnr_float01"), ("ssim", "ssim_gaussian"),
                       ("ssim_official", "ssim_float01_range2")):
    assert result[metric] == pytest.approx(np.mean([rows[i][name] for i in (1, 2)]), rel=1e-6)
  squared = [sk.mean_squared_error(*(np.asarray(Image.open(file), np.float64) / 255 for file in (
      folders / f"noisy/{i}.bmp", folders / f"plain/{i}.png"))) for i in (1, 2)]
  assert result["psnr"] == pytest.approx(np.mean(-10 * np.log10(squared)), rel=1e-6)
  assert (result["n"], result["left_out"]) == (2, [])
  assert "lpips" not in result


def test_lpips_of_imported_files_equals_the_package(folders, capsys):
  recorded = json.loads(_LPIPS.read_text())["alex"]
  widths = (3, *presets.AlexNetDims().channels)
  trunk = {}
  for i, rule in enumerate(conversion.alexnet_rules("features.", "")):
    side = {0: 11, 1: 5}.get(i // 2, 3)
    shape = (widths[i // 2 + 1], widths[i // 2], side, side) if i % 2 == 0 else (widths[i // 2 + 1],)
    trunk[rule.torch] = torch.from_numpy(metrics.tensor(rule.torch, shape))
  heads = {rule.torch: torch.from_numpy(np.abs(metrics.tensor(rule.torch, (1, c, 1, 1))))
           for rule, c in zip(conversion.lpips_heads(5, "", ""), widths[1:])}
  (folders / "files").mkdir()
  torch.save(trunk | {"classifier.1.weight": torch.zeros(2, 2)}, folders / "files/alexnet-owt-7be5be79.pth")
  torch.save(heads, folders / "files/alex.pth")
  importer.import_weights([str(folders / "files")], str(folders / "perceptual"))
  result = _run(folders, capsys, f"--lpips={folders}/perceptual")
  assert result["lpips_alex"] == pytest.approx(np.mean(recorded["distances"][1:]), rel=1e-4)
  (folders / "files/alex.pth").unlink()
  with pytest.raises(ValueError, match=r"it needs torchvision's alexnet and LPIPS' heads \(alex\.pth\)"):
    importer.import_weights([str(folders / "files")], str(folders / "other"))


def test_images_without_a_counterpart_and_of_another_size_are_named(folders, capsys):
  Image.new("RGB", (9, 9)).save(folders / "noisy/3.png")
  Image.new("RGB", (9, 9)).save(folders / "plain/1.jpg")
  with pytest.raises(ValueError, match=r"noisy/3\.png: no such image(.|\n)*1\.png: another image has"):
    _run(folders, capsys)
  (folders / "plain/1.jpg").unlink()
  Image.new("RGB", (20, 30)).save(folders / "plain/3.png")
  with pytest.raises(ValueError, match=r"1 images differ(.|\n)*3\.png: 9×9, its original 20×30"):
    _run(folders, capsys)
  (folders / "plain/3.png").write_bytes(b"no image")
  with pytest.raises(ValueError, match=r"plain: 1 images cannot be read:\n.*3\.png"):
    _run(folders, capsys)
  with pytest.raises(FileNotFoundError, match="perceptual"):
    _run(folders, capsys, f"--lpips={folders}/perceptual")
