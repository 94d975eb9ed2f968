"""One command scores what a checkpoint can do; a rerun makes nothing; other weights are refused by name."""

import json

import numpy as np
import pytest

from unilip_jax.scores import makers
from unilip_jax.shapes import captions, render, scoring, tars
from unilip_jax.weights import sources

_SCENES = [captions.sample_scene(0, i, "test") for i in range(60)]


class _Maker:
  """Answers right, edits right, and draws a scene that fits the prompt if there is one."""

  image_size, latent_shape, batch_size, fingerprint = 112, (2, 2, 1), 4, "f00"

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


def test_everything_is_scored_by_one_command(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(makers, "CheckpointMaker", _Maker)
  arguments = [f"--out={tmp_path}", "--items=test:6", "--compilation_cache="]
  scoring.main(arguments)
  table = (tmp_path / "scores.md").read_text()
  assert table in capsys.readouterr().out
  assert "| shapes-edits: success, other objects unchanged | 1.000 | 1.000 to 1.000 | 6 | 0 | 0 |" in table
  assert "| shapes-questions: answers that are right | 1.000 |" in table
  results = json.loads((tmp_path / "shapes-questions/results.json").read_text())
  assert results["make"]["tiling"] == (
      "dynamic, at most 6 tiles of 112 pixels and a thumbnail; images by tiles: 1: 6")
  assert results["make"]["weights_fingerprint"] == "f00"
  scoring.main(arguments)
  assert "0 of 6 images made" in capsys.readouterr().out
  assert (tmp_path / "scores.md").read_text() == table


def test_a_tokenizer_alone_is_refused(tmp_path):
  assert "llm" not in sources.open_weights("shapes:dcae").modules
  with pytest.raises(ValueError, match="neither generates nor answers"):
    scoring.main([f"--out={tmp_path}", "--checkpoint=shapes:dcae"])
