"""Variants differ only in the fields of their question; results are read from the files of runs."""

import ast
import json

import pytest

from experiments import ablation
from unilip_jax.configs import gen2, stage2
from unilip_jax.training import metrics

_CONFIGS = {"stage2": stage2, "gen2": gen2}


def _options(variant, workdir="w", seed=3, steps=60, more=()):
  words = ablation.command(variant, seed, steps, workdir, more)
  return dict(w.removeprefix("--config.").split("=", 1) for w in words if w.startswith("--config."))


@pytest.mark.parametrize("variant", ablation.variants(), ids=lambda v: v.name)
def test_every_field_of_a_variant_exists(variant):
  config = _CONFIGS[variant.stage].get_config("tiny")
  for name in _options(variant):
    node = config
    for key in name.split("."):
      assert key in node, name
      node = node[key]


@pytest.mark.parametrize("question", ["tokenizer", "condition"])
def test_variants_of_a_question_differ_in_its_fields_only(question):
  fields = {"tokenizer": {"loss.distill", "param_rules"}, "condition": {"generate.condition"}}
  options = [_options(v) for v in ablation.variants() if v.question == question]
  differing = {k for k in options[0] if len({o[k] for o in options}) > 1}
  assert differing == fields[question]


def test_the_frozen_tower_is_frozen():
  frozen = next(v for v in ablation.variants() if v.name == "frozen")
  assert ast.literal_eval(_options(frozen)["param_rules"]) == (
      ("^(vision_tower|mlp1)/", {"train": False}),)


def _write_run(folder, psnr, accuracy):
  folder.mkdir(parents=True)
  with metrics.Writer(folder, start_step=0) as writer:
    for step in (0, 60):
      writer.write(step, {"eval/shapes/psnr": psnr + step, "eval/questions/accuracy": accuracy,
                          "eval/shapes/count": 8})


def test_results_have_mean_and_deviation(tmp_path):
  _write_run(tmp_path / "frozen" / "seed0", 20.0, 0.5)
  _write_run(tmp_path / "frozen" / "seed1", 22.0, 0.5)
  ablation.write(str(tmp_path), (0, 1), "the command")
  results = json.loads((tmp_path / ablation.FILE).read_text())["results"]
  assert [r["variant"] for r in results] == ["frozen"]  # nothing for variants that have not run
  assert results[0]["curves"]["1"][-1] == {"step": 60, "PSNR (dB)": 82.0, "questions": 0.5}
  text = (tmp_path / "ablation.md").read_text()
  assert "| frozen | 60/60 | 81.000 ± 1.414 | – | 0.500 ± 0.000 | PSNR 16.26, MME-P 1492 |" in text
  assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_finished_runs_are_not_run_again(tmp_path, monkeypatch):
  chosen = [v for v in ablation.variants() if v.name in ("frozen", "distill1")]
  _write_run(tmp_path / "frozen" / "seed0", 20.0, 0.5)
  (tmp_path / "frozen" / "seed0" / "checkpoints" / "60").mkdir(parents=True)
  (tmp_path / "distill1" / "seed0" / "checkpoints").mkdir(parents=True)  # killed before its first save
  started = []
  monkeypatch.setattr(ablation.subprocess, "run", lambda words, check: started.append(words))
  ablation.run(
      str(tmp_path), chosen, [0], {"tokenizer": 60, "condition": 60}, ["--config.x=1"], "the command")
  assert len(started) == 1
  assert f"--workdir={tmp_path}/distill1/seed0" in started[0]
  assert started[0][-1] == "--config.x=1"


@pytest.mark.parametrize("flag", ["--only=forzen", "--seeds=a", "--steps=3", "--stepz=3,4"])
def test_unknown_variants_and_flags_are_refused(flag, tmp_path, capsys):
  with pytest.raises(SystemExit):
    ablation.main([f"--workdir={tmp_path}", flag])
  assert flag.split("=")[0] in capsys.readouterr().err


def test_the_command_of_the_results_names_no_folder_of_this_machine():
  line = ablation._command_line(["--workdir=/some/where", "--seeds=0", "--config.data.render_dir=/other",
                                "--config.data.latents_dir=", "--config.grad_accum_steps=4"])
  assert line == ("python -m experiments.ablation --workdir=DIR --seeds=0 --config.data.latents_dir= "
                  "--config.grad_accum_steps=4")
