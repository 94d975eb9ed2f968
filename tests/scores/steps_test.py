"""Images of any model are judged, aggregated, compared and shown by the commands of each benchmark."""

import json
import pathlib
import random
import threading

import numpy as np
import pytest

from tests.scores import judge_server, made_up
from unilip_jax.common import errors
from unilip_jax.convert import geneval_detector
from unilip_jax.scores import aggregating, append_log, base, comparing, judging, provenance, showing
from unilip_jax.scores import result as result_lib

JUDGED = ("wise", "wise-rewrite", "wise-verified", "imgedit", "imgedit-hard", "gedit", "gedit-cn")


def _images(name, copy, folder):
  """Writes images as another model would, in the benchmark's layout."""
  benchmark = base.find(name)
  items = benchmark.read_items(str(copy.items))
  for i, item in enumerate(items):
    for k in range(benchmark.images_per_item):
      made_up.write_image(folder / benchmark.output_path(item, k), 100 * i + k, (20, 20))
  return items


def _judge(name, copy, tmp_path, server, out="judged", *options):
  prompts = [f"--prompts={copy.prompts}"] if copy.prompts else []
  subject = f"--answers={tmp_path}/answers.json" if name == "mmvet" else f"--images={tmp_path}/images"
  judging.main([f"--benchmark={name}", f"--items={copy.items}", subject, *prompts,
                f"--out={tmp_path}/{out}", f"--base_url={server.url}", "--concurrency=4", *options])


def _aggregate(name, copy, tmp_path, out="judged", *options):
  aggregating.main([f"--benchmark={name}", f"--source={tmp_path}/{out}", f"--items={copy.items}",
                    f"--out={tmp_path}/{out}", *options])
  return result_lib.read(str(tmp_path / out))


class _Faulty:
  """Answers rightly after each request failed once in one of several ways."""

  def __init__(self, right):
    self._right, self._seen, self._lock = right, {}, threading.Lock()

  def __call__(self, body, number):
    key = json.dumps(body, sort_keys=True)
    with self._lock:
      self._seen[key] = self._seen.get(key, 0) + 1
      again = self._seen[key] > 1
    faults = (judge_server.Answer("down", status=500), judge_server.Answer(drop=True),
              judge_server.Answer("busy", status=429, headers={"retry-after-ms": "1"}),
              judge_server.Answer(raw=b"<html>gateway</html>"))
    return judge_server.Answer(self._right(body)) if again else faults[number % len(faults)]


@pytest.mark.parametrize("name", JUDGED)
def test_judged_scores_are_equal_with_and_without_faults_on_the_way(name, tmp_path, monkeypatch):
  monkeypatch.setattr(judging.chat_api.random, "uniform", lambda a, b: 0.001)
  copy = made_up.make(name, tmp_path / "items")
  items = _images(name, copy, tmp_path / "images")
  assert len(items) == 12
  with judge_server.Server(lambda body, number: judge_server.Answer(copy.answer(body))) as server:
    _judge(name, copy, tmp_path, server)
    calls = len(server.seen)
    _judge(name, copy, tmp_path, server)  # nothing is asked twice
    assert len(server.seen) == calls == 12 * (2 if name.startswith("gedit") else 1)
  clean = _aggregate(name, copy, tmp_path)
  with judge_server.Server(_Faulty(copy.answer)) as server:
    _judge(name, copy, tmp_path, server, "faulty")
    assert set(server.paid.values()) == {1}
  faulty = _aggregate(name, copy, tmp_path, "faulty")
  assert clean["score"] is not None
  assert (clean["n"], clean["missing"], clean["malformed"]) == (12, 0, 0)
  assert [faulty[f] for f in ("score", "categories", "n", "interval")] == [
      clean[f] for f in ("score", "categories", "n", "interval")]
  assert comparing.compare(clean, faulty)["comparable"]


@pytest.mark.parametrize("name", JUDGED)
def test_a_changed_image_alone_is_judged_again(name, tmp_path):
  copy = made_up.make(name, tmp_path / "items")
  items, benchmark = _images(name, copy, tmp_path / "images"), base.find(name)
  requests = 2 if name.startswith("gedit") else 1  # about an image
  with judge_server.Server(lambda body, number: judge_server.Answer(copy.answer(body))) as server:
    _judge(name, copy, tmp_path, server)
    made_up.write_image(tmp_path / "images" / benchmark.output_path(items[3], 0), 7, (20, 20))
    before = len(server.seen)
    _judge(name, copy, tmp_path, server)
    assert len(server.seen) == before + requests
    assert {made_up.scene(body) for _, _, body in server.seen[before:]} <= {
        -1, int(items[3].id) if name.startswith("wise") else 3}
    if benchmark.kind == "editing":  # the source is a part of what the judge sees
      made_up.write_image(pathlib.Path(items[5].images[0]), 8, (20, 20))
      _judge(name, copy, tmp_path, server)
      # A source of another size changes the size, and so the bytes, of both images that GEdit's judge sees.
      assert len(server.seen) == before + 2 * requests
  assert set(server.paid.values()) == {1}


def _official_files(tmp_path):
  return {path.name: path.read_bytes() for path in (tmp_path / "judged").rglob("*")
          if path.is_file() and path.parent.name != "judge"}


@pytest.mark.parametrize("name", ["wise", "wise-verified", "imgedit", "imgedit-hard", "gedit", "mmvet"])
def test_a_judge_killed_20_times_anywhere_pays_no_call_twice(name, tmp_path, monkeypatch):
  """A kill leaves a part of the log: reruns from parts of random lengths."""
  monkeypatch.setattr(append_log.os, "fsync", lambda file: None)
  copy = made_up.make(name, tmp_path / "items")
  if name == "mmvet":
    (tmp_path / "answers.json").write_text(json.dumps({f"v1_{i}": f"answer {i}" for i in range(12)}))
  else:
    _images(name, copy, tmp_path / "images")
  log, rng = tmp_path / "judged/judge/answers.jsonl", random.Random(0)
  with judge_server.Server(lambda body, number: judge_server.Answer(copy.answer(body))) as server:
    _judge(name, copy, tmp_path, server)
    uninterrupted = _official_files(tmp_path)
    for _ in range(20):
      log.write_bytes(log.read_bytes()[:rng.randrange(log.stat().st_size)])
      _judge(name, copy, tmp_path, server)
      assert _official_files(tmp_path) == uninterrupted
  assert set(server.paid.values()) == {1}
  assert len(server.paid) == (24 if name.startswith("gedit") else 12)


@pytest.mark.parametrize("name", JUDGED)
def test_an_uneven_set_is_counted_exactly(name, tmp_path):
  copy = made_up.make(name, tmp_path / "items")
  items = _images(name, copy, tmp_path / "images")
  benchmark = base.find(name)
  (tmp_path / "images" / benchmark.output_path(items[4], 0)).unlink()
  numbers = [int(item.id) if name.startswith("wise") else i for i, item in enumerate(items)]

  def answer(body, number):
    bad = {numbers[1]: judge_server.Answer("I would rather not."),
           numbers[2]: judge_server.Answer("", refusal="no people")}
    return bad.get(made_up.scene(body), judge_server.Answer(copy.answer(body)))

  with judge_server.Server(answer) as server:
    _judge(name, copy, tmp_path, server)
  about = json.loads((tmp_path / "judged/judge/judge.json").read_text())
  assert about["problems"] == {"malformed": 1, "refused": 1}
  assert (about["judged"], about["images"]["missing"]) == (11, 1)
  result = _aggregate(name, copy, tmp_path)
  assert result["n"] == 9
  assert result["missing"] + result["malformed"] == 3
  strict = _aggregate(name, copy, tmp_path, "judged", "--rules=strict")
  assert strict["n"] == 12
  assert not comparing.compare(result, strict)["comparable"]


def test_genevals_detector_results_of_another_models_images(tmp_path):
  copy = made_up.make("geneval", tmp_path / "items")
  benchmark = base.find("geneval")
  for item in _images("geneval", copy, tmp_path / "images"):
    for path, content in benchmark.side_files(item).items():
      (tmp_path / "images" / path).write_bytes(content)
  lines = made_up.detect(copy.items, tmp_path / "images")
  (tmp_path / "judged").mkdir()
  provenance.write_lines(tmp_path / "judged/results.jsonl", lines)
  result = _aggregate("geneval", copy, tmp_path)
  assert (result["n"], result["missing"], result["malformed"]) == (48, 0, 0)
  by_tag = {t: np.mean([l["correct"] for l in lines if l["tag"] == t]) for t in result["categories"]}
  assert result["score"] == pytest.approx(np.mean(list(by_tag.values())))
  assert 0 < result["score"] < 1
  assert result["interval"]["low"] < result["score"] < result["interval"]["high"]
  assert result["make"] is None
  assert result["judge"] is None
  showing.main(["--benchmark=geneval", f"--items={copy.items}", f"--images={tmp_path}/images",
                f"--judged={tmp_path}/judged", f"--result={tmp_path}/judged",
                f"--out={tmp_path}/page/index.html"])
  page = (tmp_path / "page/index.html").read_text()
  right = sum(line["correct"] for line in lines)
  assert f'<option value="right">right ({right})</option>' in page
  assert 'src="../images/00003/samples/00002.png"' in page


def test_a_detector_killed_20_times_anywhere_writes_the_results_of_one_run(tmp_path, monkeypatch):
  monkeypatch.setattr(append_log.os, "fsync", lambda file: None)
  copy = made_up.make("geneval", tmp_path / "items")
  _images("geneval", copy, tmp_path / "images")
  run = lambda: geneval_detector.run(
      str(copy.items), str(tmp_path / "images"), str(tmp_path / "out"), made_up.BrightDetector())
  log, rng = tmp_path / "out/judge/detections.jsonl", random.Random(0)
  assert run() == 48
  results = (tmp_path / "out/results.jsonl").read_bytes()
  for _ in range(20):
    left = log.read_bytes()[:rng.randrange(log.stat().st_size)]
    log.write_bytes(left)
    assert run() == 48 - left.count(b"\n")  # what is in the log is not looked at again
    assert (tmp_path / "out/results.jsonl").read_bytes() == results


def test_answers_of_any_model_are_judged_too(tmp_path, capsys):
  copy = made_up.make("mmvet", tmp_path / "items")
  answers = {f"v1_{i}": f"answer {i}" for i in range(12) if i != 4}
  (tmp_path / "answers.json").write_text(json.dumps(answers))

  def answer(body, number):
    if made_up.scene(body) == 3 and "digit" not in judge_server.texts(body):
      return judge_server.Answer("quite right")  # the official second try adds a sentence
    return judge_server.Answer(copy.answer(body))

  with judge_server.Server(answer) as server:
    for _ in range(2):
      judging.main(["--benchmark=mmvet", f"--items={copy.items}", f"--answers={tmp_path}/answers.json",
                    f"--prompts={copy.prompts}", f"--out={tmp_path}/judged", f"--base_url={server.url}"])
  assert len(server.seen) == 12
  assert "missing: answer to v1_4" in capsys.readouterr().out
  result = _aggregate("mmvet", copy, tmp_path)
  assert result["missing"] == 1
  assert result["judge"]["problems"] == {}
  (tmp_path / "answers.json").write_text(json.dumps(answers | {"v1_7": "another answer"}))
  with judge_server.Server(answer) as server:
    judging.main(["--benchmark=mmvet", f"--items={copy.items}", f"--answers={tmp_path}/answers.json",
                  f"--prompts={copy.prompts}", f"--out={tmp_path}/judged", f"--base_url={server.url}"])
  assert len(server.seen) == 1  # the changed answer alone


def test_a_failed_item_makes_the_command_end_with_try_again(tmp_path):
  copy = made_up.make("imgedit", tmp_path / "items")
  _images("imgedit", copy, tmp_path / "images")
  broken = {5}

  def answer(body, number):
    if made_up.scene(body) in broken:
      return judge_server.Answer("too large", status=413)
    return judge_server.Answer(copy.answer(body))

  with judge_server.Server(answer) as server:
    with pytest.raises(errors.TryAgainError, match="1 items got no answer"):
      _judge("imgedit", copy, tmp_path, server)
    broken.clear()
    _judge("imgedit", copy, tmp_path, server)
    assert len(server.seen) == 13
  assert _aggregate("imgedit", copy, tmp_path)["n"] == 12


def test_the_plan_asks_nothing(tmp_path, capsys):
  copy = made_up.make("gedit", tmp_path / "items")
  _images("gedit", copy, tmp_path / "images")
  with judge_server.Server(lambda body, number: judge_server.Answer("")) as server:
    _judge("gedit", copy, tmp_path, server, "judged", "--plan", "--price=1000,1000")
  assert not server.seen
  assert "24 calls to make" in capsys.readouterr().out


def test_what_the_judge_needs_is_named(tmp_path):
  copy = made_up.make("gedit", tmp_path / "items")
  start = [f"--items={copy.items}", f"--out={tmp_path}/out", "--base_url=http://localhost:9/v1"]
  with pytest.raises(ValueError, match=r"needs --prompts: vie_prompts\.py"):
    judging.main(["--benchmark=gedit", f"--images={tmp_path}", *start])
  with pytest.raises(ValueError, match="not judged by a chat model"):
    judging.main(["--benchmark=geneval", f"--images={tmp_path}", *start])
  with pytest.raises(ValueError, match="give --images"):
    judging.main(["--benchmark=gedit", f"--prompts={copy.prompts}", *start])
  with pytest.raises(ValueError, match="--budget='lots'"):
    judging.main(["--benchmark=gedit", "--budget=lots", *start])
