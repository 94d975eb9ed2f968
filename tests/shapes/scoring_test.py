"""One command scores what a checkpoint can do; a rerun makes nothing; other weights are refused by name."""

import json
import pathlib

import numpy as np
from PIL import Image
import pytest

from unilip_jax.infer import model
from unilip_jax.scores import makers, reconstructing
from unilip_jax.shapes import benchmarks, captions, render, scoring, tars
from unilip_jax.weights import fingerprints, sources

_SCENES = [captions.sample_scene(0, i, "test") for i in range(60)]


class _Maker:
  """Answers right, edits right, and draws a scene that fits the prompt if there is one."""

  image_size, latent_shape, batch_size, fingerprint, few_step = 112, (2, 2, 1), 4, "f00", ""

  def __init__(self, path, dtype, batch_size, *, int8):
    self.calls.append(path)

  calls = []  # noqa: RUF012

  def prompt_length(self, prompt, *, editing):
    return 32

  def images(self, batch, options):
    assert options.guidance == 2.0
    if batch.inputs is None:
      wanted = {c.text: c for c in captions.prompts_in_turn(6, 0, "test")}
      return [render.render(next((s for s in _SCENES if captions.fits(wanted[p], s)), _SCENES[0]))
              for p in batch.prompts]
    targets = {e.instruction: e.target for e in (tars.sample_edit(0, i, "test") for i in range(6))}
    return [render.render(targets[p]) for p in batch.prompts]

  def answers(self, images, asked, *, max_new_tokens, max_tiles):
    right = {np.asarray(render.render(s)).tobytes() + q.text.encode(): q.answer
             for s, q in captions.questions_in_turn(6, 0, "test")}
    return [right[np.asarray(i).tobytes() + q.encode()] for (i,), q in zip(images, asked)]


class _Reconstructor:
  """Every value off by one, which is 48.13 dB, but the first image black."""

  image_size, batch_size, fingerprint = 112, 4, "f00"

  def __init__(self, path, dtype, batch_size, *, int8):
    pass

  def __call__(self, images):
    arrays = [np.asarray(image) for image in images]
    first = render.render(_SCENES[0]).tobytes()
    return [np.zeros_like(x) if x.tobytes() == first else np.where(x < 255, x + 1, x - 1).astype(np.uint8)
            for x in arrays]


def test_everything_is_scored_by_one_command(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(makers, "CheckpointMaker", _Maker)
  monkeypatch.setattr(reconstructing, "Reconstructor", _Reconstructor)
  arguments = [f"--out={tmp_path}", "--items=test:6", "--compilation_cache="]
  scoring.main(arguments)
  table = (tmp_path / "scores.md").read_text()
  assert table in capsys.readouterr().out
  assert "| shapes-edits: success, other objects unchanged | 1.000 | 1.000 to 1.000 | 6 | 0 | 0 |" in table
  assert "| shapes-questions: answers that are right | 1.000 |" in table
  assert "| shapes-reconstruction: scenes that are read back | 0.833 |" in table
  details = json.loads((tmp_path / "shapes-reconstruction/results.json").read_text())["details"]
  black = render.render(_SCENES[0]) / 255
  assert details["psnr"] == pytest.approx(
      (5 * 10 * np.log10(255**2) - 10 * np.log10(np.square(black).mean())) / 6, rel=1e-5)
  assert 0.7 < details["ssim"] < 1
  assert f"psnr {details['psnr']:.2f}, ssim {details['ssim']:.2f} |" in table
  results = json.loads((tmp_path / "shapes-questions/results.json").read_text())
  assert results["make"]["tiling"] == (
      "dynamic, at most 6 tiles of 112 pixels and a thumbnail; images by tiles: 1: 6")
  assert results["make"]["weights_fingerprint"] == "f00"
  scoring.main(arguments)
  assert "0 of 6 images made" in capsys.readouterr().out
  assert (tmp_path / "scores.md").read_text() == table


def test_a_tokenizer_is_scored_on_reconstructions_and_rfid(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(fingerprints, "fingerprint", lambda params: "f00")  # compiles for seconds
  monkeypatch.setattr(
      model.UniLIP, "reconstruct", lambda self, images, output: [np.asarray(x) for x in images])
  compared = []

  def compare(arguments):
    """Replaces `evals fid`, which loads Inception."""
    compared.append(dict(argument.removeprefix("--").split("=") for argument in arguments))
    folders = [sorted(pathlib.Path(compared[-1][name]).glob("*.png")) for name in ("images", "reference")]
    assert [[f.name for f in files] for files in folders] == [[f"{i:05d}.png" for i in range(12)]] * 2
    assert all(np.array_equal(*map(Image.open, pair)) for pair in zip(*folders))
    return {"fid": 2.5, "protocol": "torch-fidelity", "weights": "i00"}

  monkeypatch.setattr(scoring.fid, "compare", compare)
  scoring.main([f"--out={tmp_path}", "--items=test:12", "--checkpoint=shapes:stage2",
                "--compilation_cache=", "--inception=weights/inception"])
  results = json.loads((tmp_path / "shapes-reconstruction/results.json").read_text())
  assert results["details"]["rfid"] == 2.5
  assert (results["details"]["rfid_protocol"], compared[0]["weights"]) == (
      "torch-fidelity", "weights/inception")
  assert (results["score"], results["n"], results["make"]["checkpoint"]) == (1.0, 12, "shapes:stage2")
  table = capsys.readouterr().out
  assert "psnr 120.00, ssim 1.00, rfid 2.50 |" in table
  assert "| shapes: " not in table


def test_an_image_of_another_size_is_malformed(tmp_path):
  benchmark = benchmarks.Reconstructions()
  for item, scene in zip(benchmark.read_items("test:3"), _SCENES):
    Image.fromarray(render.render(scene)).save(tmp_path / benchmark.output_path(item, 0))
  with Image.open(tmp_path / "00001.png") as image:
    image.resize((56, 56)).save(tmp_path / "00001.png")
  score = benchmark.aggregate(str(tmp_path), items="test:3")
  assert (score.score, score.n, score.malformed) == (1.0, 2, 1)
  assert "00001.png: malformed: 56×56 pixels, its original has 112×112" in "".join(score.messages)
  strict = benchmark.aggregate(str(tmp_path), items="test:3", rules="strict")
  assert (strict.score, strict.n) == (2 / 3, 3)
  assert strict.details == {"psnr": pytest.approx(120), "ssim": pytest.approx(1, abs=1e-5)}  # float32


def test_a_tokenizer_alone_is_refused(tmp_path):
  assert "llm" not in sources.open_weights("shapes:dcae").modules
  with pytest.raises(ValueError, match="neither generates, answers nor reconstructs"):
    scoring.main([f"--out={tmp_path}", "--checkpoint=shapes:dcae"])
