"""Evaluation is exact: every example once, whatever the batch, the devices and the processes."""

import json
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from skimage import metrics as sk

from tests import cpu_devices, parity
from tests.evals import fakes
from unilip_jax.evals import base, reconstruction
from unilip_jax.sharding import mesh as mesh_lib

_GAIN = fakes.GAIN


def _params(gain=_GAIN):
  return {"gain": np.float32(gain)}


def _evaluator(monkeypatch, pixels, tmp_path, *, batch_size=8, devices=8, protocol="native", **kw):
  monkeypatch.setattr(
      reconstruction.pipeline, "eval_batches", fakes.eval_batches_of(pixels), raising=False)
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
  return base.make_evaluators(
      fakes.config(batch_size, (("set", protocol, "fake", "x"),)), fakes.task(), mesh, str(tmp_path),
      **kw)["set"]


def _expected(pixels, gain=_GAIN):
  """Means over the set, in numpy and scikit-image."""
  unit = pixels / 255.0
  image = np.round(np.clip((gain * (unit * 2 - 1) + 1) / 2, 0, 1) * 255) / 255
  ssim = dict(channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
  return {
      "set/psnr": np.mean([sk.peak_signal_noise_ratio(a, b, data_range=1)
                           for a, b in zip(unit, image)]),
      "set/ssim": np.mean([sk.structural_similarity(a, b, data_range=1, **ssim)
                           for a, b in zip(unit, image)]),
      "set/l1": np.abs(unit - image).mean(),
      "set/count": len(pixels)}


@pytest.mark.parametrize("count", [1, 8, 13])
def test_uneven_sets_are_exact_in_spite_of_padding(monkeypatch, tmp_path, count):
  pixels = fakes.images(count)
  scores = _evaluator(monkeypatch, pixels, tmp_path)(_params())
  assert scores.keys() == {
      "set/psnr", "set/ssim", "set/ssim_data_range_2", "set/ssim_official", "set/l1", "set/count"}
  for metric, value in _expected(pixels).items():
    parity.assert_parity(f"evaluation {metric}", "numpy", scores[metric], value)


def test_same_numbers_for_any_batch_size_and_number_of_devices(monkeypatch, tmp_path):
  pixels = fakes.images(13)
  runs = [
      _evaluator(monkeypatch, pixels, tmp_path, batch_size=b, devices=d)(_params())
      for b, d in ((8, 8), (4, 1), (16, 2))]
  for other in runs[1:]:
    for metric, value in runs[0].items():
      np.testing.assert_allclose(other[metric], value, rtol=1e-6)


def test_compiles_once_over_evaluations_during_training(monkeypatch, tmp_path):
  evaluate = _evaluator(monkeypatch, fakes.images(13), tmp_path)
  first = evaluate(_params(1.0))
  traces = len(fakes.Model.traces)
  second = evaluate(_params(0.5))
  assert len(fakes.Model.traces) == traces
  assert first["set/psnr"] == pytest.approx(120)  # a perfect model
  assert second["set/psnr"] < 40


def test_lpips_is_measured_if_its_weights_exist(monkeypatch, tmp_path):
  pixels = fakes.images(5)
  monkeypatch.setattr(base.Context, "lpips", {"lpips": (fakes.Lpips(), {"weight": np.float32(3)})})
  evaluate = _evaluator(monkeypatch, pixels, tmp_path)
  scores = evaluate(_params())
  unit = pixels / 255.0
  image = np.round(np.clip((_GAIN * (unit * 2 - 1) + 1) / 2, 0, 1) * 255) / 255
  parity.assert_parity(
      "evaluation lpips", "numpy", scores["set/lpips"], 3 * np.square(unit - image).mean())


def test_per_example_values_have_every_id_once_and_average_to_the_scores(monkeypatch, tmp_path):
  pixels = fakes.images(13)
  scores = _evaluator(monkeypatch, pixels, tmp_path, per_example=True)(_params())
  lines = (tmp_path / "per_example" / "set-0-of-1.jsonl").read_text().splitlines()
  rows = sorted((json.loads(line) for line in lines), key=lambda r: r["id"])
  assert [r["id"] for r in rows] == list(range(13))
  for metric in ("psnr", "ssim", "ssim_data_range_2", "ssim_official", "l1"):
    np.testing.assert_allclose(
        np.mean([r[metric] for r in rows]), scores[f"set/{metric}"], rtol=1e-6)
  for row, image in zip(rows, pixels):  # values are those of their own id
    np.testing.assert_allclose(row["l1"], _expected(image[None])["set/l1"], rtol=1e-5)


def test_padded_protocol_equals_its_definition_in_torch(monkeypatch, tmp_path):
  torch = pytest.importorskip("torch")
  pixels = fakes.images(2, size=256)
  jax_image = reconstruction.reconstruct(
      fakes.Model(), _params(), pixels.astype(np.float32) / 255, "pad256")
  assert fakes.Model.traces[-1] == (2, 280, 280, 3)

  x = torch.tensor(pixels).permute(0, 3, 1, 2) / 255
  x = torch.nn.functional.pad(x, (0, 24, 0, 24), mode="reflect")
  z = torch.nn.functional.avg_pool2d(x * 2 - 1, 28)
  y = _GAIN * torch.nn.functional.interpolate(z, scale_factor=32, mode="nearest")
  y = torch.nn.functional.interpolate(y, (280, 280), mode="bilinear", align_corners=True)
  y = y[..., :256, :256].clamp(-1, 1)
  torch_image = ((y + 1) / 2 * 255).permute(0, 2, 3, 1).numpy()
  # A value that lies on a half may round either way.
  assert np.abs(np.asarray(jax_image) * 255 - torch_image).max() <= 0.5 + 1e-3


def test_empty_set_is_named(monkeypatch, tmp_path):
  with pytest.raises(ValueError, match="x holds no example"):
    _evaluator(monkeypatch, fakes.images(1)[:0], tmp_path)(_params())


def test_unknown_protocol_and_indivisible_batch_are_refused(monkeypatch, tmp_path):
  with pytest.raises(ValueError, match="pad256"):
    _evaluator(monkeypatch, fakes.images(1), tmp_path, protocol="225")
  with pytest.raises(ValueError, match=r"eval\.batch_size=6"):
    _evaluator(monkeypatch, fakes.images(1), tmp_path, batch_size=6)


def test_two_processes_count_every_example_once(monkeypatch, tmp_path):
  pixels = fakes.images(13)
  alone = fakes.scores_on_shapes(mesh_lib.make_mesh(), tmp_path / "shapes")
  assert alone["pairs/count"] == alone["scenes/count"] == 11
  assert 0 < alone["scenes/exact"] < 1
  with monkeypatch.context() as patch:
    patch.setattr(base.Context, "inception", fakes.extractor(mesh_lib.make_mesh()))
    alone |= _evaluator(monkeypatch, pixels, tmp_path / "alone")(_params())
  assert {"set/rfid", "set/inception_score"} <= alone.keys()
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  root = pathlib.Path(__file__).resolve().parents[2]
  processes = [
      subprocess.Popen(
          [sys.executable, "-m", "tests.evals.two_processes", str(rank), str(port), str(tmp_path)],
          cwd=root, env=cpu_devices.environment(2), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
          text=True)
      for rank in range(2)]
  outputs = [p.communicate(timeout=120) for p in processes]
  for process, (_, errors) in zip(processes, outputs):
    assert process.returncode == 0, errors[-3000:]
  for out, _ in outputs:
    scores = json.loads(out.splitlines()[-1])
    assert scores.keys() == alone.keys()
    for metric, value in alone.items():
      # rFID is a small difference of traces, of float32 features.
      np.testing.assert_allclose(scores[metric], value, rtol=1e-4 if metric == "set/rfid" else 1e-6,
                                 atol=1e-6 if metric == "set/inception_score_std" else 0, err_msg=metric)
  lines = [line for rank in range(2) for line in (
      tmp_path / "per_example" / f"set-{rank}-of-2.jsonl").read_text().splitlines()]
  assert sorted(json.loads(line)["id"] for line in lines) == list(range(13))
