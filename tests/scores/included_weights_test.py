"""The included tiny weights make benchmarks end to end by `evals make`, compiled once for all tests."""

import json

import numpy as np
from PIL import Image
import pytest

from tests.scores import judge_server, made_up, made_up_tables
from unilip_jax.scores import aggregating, base, judging, make_record, makers, making, provenance
from unilip_jax.scores import result as result_lib
from unilip_jax.shapes import captions, questions, render


def _read(folder):
  return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


@pytest.fixture(scope="module")
def loaded():
  """Holds the maker that the first test loads."""
  return []


@pytest.fixture
def included(loaded, monkeypatch):
  """Makes `evals make` read and compile the included weights once for all tests, on two devices."""
  load, mesh = makers.CheckpointMaker, makers.mesh_lib.make_mesh
  monkeypatch.setattr(makers.mesh_lib, "make_mesh", lambda devices: mesh(devices=devices[:2]))
  monkeypatch.setattr(makers.fingerprints, "fingerprint", lambda params: "f00")  # see evaluator_test.py

  def once(*args, **options):
    if not loaded:
      loaded.append(load(*args, **options))
    return loaded[0]

  monkeypatch.setattr(makers, "CheckpointMaker", once)


_TINY = ("--checkpoint=shapes:gen3", "--steps=2", "--dtype=float32", "--batch_size=8",
         "--compilation_cache=")


def test_geneval_from_the_included_weights_to_a_result(tmp_path, included, capsys):
  copy, benchmark = made_up.make("geneval", tmp_path / "items"), base.find("geneval")
  options = ["--benchmark=geneval", f"--items={copy.items}", *_TINY, "--images_per_item=1"]
  making.main([*options, f"--out={tmp_path}/one"])
  assert "12 of 12 images made" in capsys.readouterr().out
  for index in range(2):
    making.main([*options, f"--out={tmp_path}/two", f"--process_index={index}", "--process_count=2"])
  images = _read(tmp_path / "one")
  assert len(images) == 12
  assert len(set(images.values())) == 12
  assert _read(tmp_path / "two") == images
  assert json.loads((tmp_path / "one/00003/metadata.jsonl").read_text())["tag"] == "colors"
  with pytest.raises(ValueError, match="steps: 2 there, 3 now"):
    making.main([*options, "--steps=3", f"--out={tmp_path}/one"])
  with pytest.raises(ValueError, match="they differ from UniLIP's in steps, size, precision"):
    making.main([*options, "--protocol=official", f"--out={tmp_path}/three"])

  (tmp_path / "scored").mkdir()
  provenance.write_lines(tmp_path / "scored/results.jsonl", made_up.detect(
      copy.items, tmp_path / "one"))
  aggregating.main(["--benchmark=geneval", f"--source={tmp_path}/scored", f"--items={copy.items}",
                    f"--images={tmp_path}/one", f"--out={tmp_path}/scored"])
  result = result_lib.read(str(tmp_path / "scored"))
  assert result["n"] == 12
  assert result["make"]["weights_fingerprint"] == "f00"
  assert result["items"]["sha256"] == provenance.items_digest(benchmark.read_items(str(copy.items)))
  assert result["revision"] == benchmark.revision
  assert result["source"]["files"].keys() == {"results.jsonl"}
  assert result["items"]["files"].keys() == {"evaluation_metadata.jsonl"}
  # Everything that a score depends on is stated.
  assert result["make"].keys() >= {
      "solver", "steps", "guidance", "seed", "noise", "size", "images_per_item", "precision", "int8",
      "weights_fingerprint", "protocol", "differs_from_official", "generator", "versions", "started"}
  assert {"score", "categories", "interval", "n", "missing", "malformed", "variants", "rules", "judge",
          "published", "date", "versions"} <= result.keys()
  assert all(p["source"] for p in result["published"])


def test_dpg_from_the_included_weights_to_a_result(tmp_path, included):
  copy = made_up.make("dpg", tmp_path / "items")
  for name in ("dpg", "dpg-1"):
    making.main([f"--benchmark={name}", f"--items={copy.items}", *_TINY, f"--out={tmp_path / name}/images"])
    (tmp_path / name / "judged").mkdir()
    made_up.answer_dpg(name, copy.items, tmp_path / name / "images", tmp_path / name / "judged")
    aggregating.main([f"--benchmark={name}", f"--source={tmp_path / name}/judged", f"--items={copy.items}",
                      f"--images={tmp_path / name}/images", f"--out={tmp_path / name}/judged"])
    result = result_lib.read(str(tmp_path / name / "judged"))
    assert (result["n"], result["missing"], result["malformed"]) == (12, 0, 0)
    assert 0 < result["score"] < 1
    assert result["make"]["steps"] == 2
  grid, one = (np.asarray(Image.open(tmp_path / name / "images/scene3.png")) for name in ("dpg", "dpg-1"))
  assert grid.shape == (224, 224, 3)
  np.testing.assert_array_equal(grid[:112, :112], one)  # sample 0 has the same noise in both
  assert len({grid[y:y + 112, x:x + 112].tobytes() for y in (0, 112) for x in (0, 112)}) == 4


def test_answers_of_the_included_weights_to_mmvet_are_judged(tmp_path, included):
  copy = made_up.make("mmvet", tmp_path / "items")
  making.main(["--benchmark=mmvet", f"--items={copy.items}", *_TINY, f"--out={tmp_path}/answers",
               "--max_new_tokens=2", "--max_tiles=1"])
  with judge_server.Server(lambda body, number: judge_server.Answer(copy.answer(body))) as server:
    judging.main(["--benchmark=mmvet", f"--items={copy.items}", f"--answers={tmp_path}/answers",
                  f"--prompts={copy.prompts}", f"--out={tmp_path}/judged", f"--base_url={server.url}"])
  assert len(server.seen) == 12
  aggregating.main(["--benchmark=mmvet", f"--source={tmp_path}/judged", f"--items={copy.items}",
                    f"--out={tmp_path}/judged"])
  result = result_lib.read(str(tmp_path / "judged"))
  assert (result["n"], result["missing"], result["malformed"]) == (12, 0, 0)
  assert 0 < result["score"] < 1
  assert result["make"]["tiling"] == "one tile of 112 pixels, stretched; images by tiles: 1: 12"
  assert result["judge"]["model"] == "judge-2025-01-01"


def test_questions_with_several_images_are_answered_by_the_included_weights(tmp_path, included):
  items = made_up_tables.make("mmmu", tmp_path / "items")
  making.main(["--benchmark=mmmu", f"--items={items}", *_TINY, f"--out={tmp_path}/answers",
               "--max_new_tokens=2", "--max_tiles=1"])
  score = base.find("mmmu").aggregate(f"{tmp_path}/answers/predictions.tsv", items=str(items))
  assert (score.n, score.missing) == (12, 0)
  assert "8 questions have several images" in make_record.read(tmp_path / "answers")["tiling"]


def test_answers_of_the_included_weights(monkeypatch):
  mesh = makers.mesh_lib.make_mesh
  monkeypatch.setattr(makers.mesh_lib, "make_mesh", lambda devices: mesh(devices=devices[:1]))
  monkeypatch.setattr(makers.fingerprints, "fingerprint", lambda params: "f00")
  maker = makers.CheckpointMaker("shapes:mllm", "float32", 2)
  pairs = captions.questions_in_turn(2, 0, "test")
  answers = maker.answers([[Image.fromarray(render.render(s))] for s, _ in pairs],
                          [q.text for _, q in pairs], max_new_tokens=4, max_tiles=1)
  assert [questions.correct(q, a) for (_, q), a in zip(pairs, answers)] == [True, True]
