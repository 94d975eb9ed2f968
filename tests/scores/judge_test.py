"""Each answer is paid once, whatever interrupts; refused and malformed answers have no score."""

import json
import threading

import pytest

from tests.scores import fakes, judge_server
from unilip_jax.scores import append_log, base, chat_api, image_files, judging, prices
from unilip_jax.scores import judge as judge_lib

_KEY = "sk-very-secret-0123"


@pytest.fixture
def images(tmp_path):
  benchmark = fakes.Colors()
  fakes.write_images(tmp_path / "images", benchmark, benchmark.read_items(""))
  return tmp_path / "images"


def _judge(images, out, url, report=None, **changes):
  """Runs the judge step; returns (judge, judgements)."""
  benchmark = fakes.Colors()
  items = benchmark.read_items("")
  folder = image_files.check(benchmark, items, images)
  subject = judge_lib.Subject(benchmark, items, list(folder.files), folder.read)
  settings = judge_lib.Settings(**{"model": "judge-x", "tries": 2, "price": prices.Price(1.0, 1.0),
                                   "budget": None, "concurrency": 4, **changes})
  endpoint = chat_api.Endpoint(url, chat_api.Limits(retries=1, timeout=5.0),
                               environment={"UNILIP_JUDGE_KEY": _KEY}, sleep=lambda s: None)
  with judge_lib.open_log(str(out)) as log:
    judge = judge_lib.Judge(subject, endpoint, settings, log, report or (lambda line: None))
    return judge, judge.run()


def _right(body, number):
  del number
  return judge_server.Answer(judge_server.texts(body).split("colour ")[1].rstrip(">"))


def test_every_image_is_asked_once_and_a_rerun_asks_nothing(images, tmp_path):
  with judge_server.Server(_right) as server:
    _, first = _judge(images, tmp_path / "out", server.url)
    _, second = _judge(images, tmp_path / "out", server.url)
  assert len(server.seen) == 24
  assert set(server.paid.values()) == {1}
  assert first == second
  assert [(j.item_id, j.k, j.scores["score"]) for j in first] == [
      (str(i), k, float(i)) for i in range(12) for k in range(2)]


def test_requests_run_at_once_up_to_the_limit(images, tmp_path):
  four = threading.Barrier(4)

  def answer(body, number):
    if number <= 4:
      four.wait(10)  # passes only if four requests are here at once
    return _right(body, number)

  with judge_server.Server(answer) as server:
    _judge(images, tmp_path / "out", server.url)
  assert server.most == 4


def test_a_changed_image_alone_is_asked_again(images, tmp_path):
  with judge_server.Server(_right) as server:
    _judge(images, tmp_path / "out", server.url)
    pixels = (images / "3/00001.png").read_bytes()
    (images / "3/00001.png").write_bytes((images / "5/00000.png").read_bytes())
    _judge(images, tmp_path / "out", server.url)
    assert len(server.seen) == 25
    (images / "3/00001.png").write_bytes(pixels)  # the verdict of the old bytes is still there
    _judge(images, tmp_path / "out", server.url)
  assert len(server.seen) == 25


def test_malformed_and_refused_answers_are_tried_as_often_as_allowed_and_have_no_score(images, tmp_path):
  def answer(body, number):
    item = int(judge_server.texts(body).split("colour ")[1].rstrip(">"))
    return {0: judge_server.Answer("very good"),
            1: judge_server.Answer("", refusal="no people"),
            2: judge_server.Answer("filtered", status=400, code="content_filter"),
            3: judge_server.Answer("I'm sorry, I can't assist with that."),
            4: judge_server.Answer("", finish_reason="content_filter")}.get(item, _right(body, number))

  with judge_server.Server(answer) as server:
    for _ in range(2):  # the second run asks nothing
      judge, judgements = _judge(images, tmp_path / "out", server.url)
  problems = {j.item_id: j.problem for j in judgements}
  assert problems == dict.fromkeys(map(str, range(12)), "") | {
      "0": "malformed", "1": "refused", "2": "refused", "3": "refused", "4": "refused"}
  assert all(j.scores is None for j in judgements if j.problem)
  assert len(server.seen) == 7 * 2 + 4 * 2 * 2 + 2  # tries: 2, but 1 where the endpoint filters
  assert judge.about(judgements)["problems"] == {"malformed": 2, "refused": 8}


@pytest.mark.parametrize(("name", "answer"), [
    ("imgedit", "A: \u00b2"), ("imgedit", f"A: {'9' * 5000}"), ("gedit", f'{{"score": [{"9" * 400}, 1]}}'),
    ("gedit", f'{{"score": {"[" * 5000}}}'), ("wise", "[" * 5000), ("wise-verified", "Score: \u0661"),
    ("mmvet", "nan?")])
def test_an_answer_that_no_parser_expects_is_malformed(name, answer):
  assert base.find(name).parse(dict.fromkeys(("", "SC", "PQ"), answer)) is None


def test_a_second_try_that_parses_counts(images, tmp_path):
  asked, lock = set(), threading.Lock()

  def answer(body, number):
    with lock:
      image = judge_server.images(body)[0]
      new = image not in asked
      asked.add(image)
    return judge_server.Answer("hm") if new else _right(body, number)

  with judge_server.Server(answer) as server:
    _, judgements = _judge(images, tmp_path / "out", server.url)
  assert not any(j.problem for j in judgements)
  assert len(server.seen) == 48


def test_items_without_an_answer_are_named_and_a_rerun_asks_for_them_alone(images, tmp_path):
  broken = {"3", "7"}

  def answer(body, number):
    item = judge_server.texts(body).split("colour ")[1].rstrip(">")
    return judge_server.Answer("down", status=503) if item in broken else _right(body, number)

  with judge_server.Server(answer) as server:
    _, judgements = _judge(images, tmp_path / "out", server.url)
    assert {j.item_id for j in judgements if j.problem.startswith("failed: ")} == broken
    broken.clear()
    count, lines = len(server.seen), []
    _, judgements = _judge(images, tmp_path / "out", server.url, lines.append)
  assert len(server.seen) == count + 4
  assert not any(j.problem for j in judgements)
  assert "4 requests were sent in an earlier run" in lines[0]


def test_an_endpoint_that_is_down_stops_the_run(images, tmp_path):
  down = judge_server.Server(lambda body, number: judge_server.Answer("down", status=500))
  with down as server, pytest.raises(chat_api.EndpointError, match="10 items in a row"):
    _judge(images, tmp_path / "out", server.url)
  assert len(server.seen) <= 2 * (10 + 4)


def test_the_cost_is_shown_and_capped_before_the_first_call(images, tmp_path):
  lines = []
  with judge_server.Server(_right) as server:
    with pytest.raises(judge_lib.BudgetError, match=r"about 0\.05 USD.*--budget=0\.01"):
      _judge(images, tmp_path / "out", server.url, lines.append, budget=0.01,
             price=prices.Price(8.0, 8.0))
    assert not server.seen
  assert "24 calls to make, 0 answers are stored" in lines[0]
  assert "0.05 USD (each image asked once) at 8 and 8 USD per million tokens" in lines[0]


def test_the_cap_also_stops_calls_that_cost_more_than_estimated(images, tmp_path):
  price = prices.Price(0.0, 1000.0)  # 0.01 USD an answer, as the server counts; estimated twice that
  with judge_server.Server(_right) as server:
    with pytest.raises(judge_lib.BudgetError):
      _judge(images, tmp_path / "out", server.url, budget=0.3, price=price)
    assert not server.seen
    _judge(images, tmp_path / "out", server.url, budget=0.5, price=price)
    assert len(server.seen) == 24
  with judge_server.Server(lambda body, number: judge_server.Answer("hm")) as server:  # twice an image
    with pytest.raises(judge_lib.BudgetError, match="next call would pass"):
      _judge(images, tmp_path / "other", server.url, budget=0.48, price=prices.Price(0.0, 1000.0))
    assert 24 <= len(server.seen) <= 48


def test_a_judge_that_changes_under_its_name_stops_the_run(images, tmp_path):
  def answer(body, number):
    text = _right(body, number).text
    return judge_server.Answer(text, model="judge-2025-01-01" if number <= 10 else "judge-2025-06-01")

  with judge_server.Server(answer) as server:
    with pytest.raises(judge_lib.JudgeChangedError, match=r"--returned_model=judge-2025-06-01"):
      _judge(images, tmp_path / "out", server.url)
    with pytest.raises(ValueError, match="by several models: judge-2025-0"):
      _judge(images, tmp_path / "out", server.url)
    before = len(server.seen)
    judge, judgements = _judge(images, tmp_path / "out", server.url, returned_model="judge-2025-06-01")
    new = before - 10
  assert judge.model == "judge-2025-06-01"
  assert not any(j.problem for j in judgements)
  assert len(server.seen) == before + 24 - new  # none of the new model's is paid twice


def test_an_error_lets_sent_requests_store_their_answers(images, tmp_path):
  def answer(body, number):
    if number == 4:
      return judge_server.Answer("no", status=401)
    result = _right(body, number)
    result.delay = 0.2
    return result

  with judge_server.Server(answer) as server, pytest.raises(chat_api.EndpointError):
    _judge(images, tmp_path / "out", server.url)
  stored = [r for r in append_log.read(tmp_path / "out/judge/answers.jsonl") if "answer" in r]
  # A fifth request may leave before the error arrives.
  assert 3 <= len(stored) == len(server.seen) - 1 <= 4


def test_the_command_writes_official_files_verdicts_and_a_record_without_the_key(
    images, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(judging.base, "find", lambda name: fakes.Colors())
  monkeypatch.setenv("UNILIP_JUDGE_KEY", _KEY)
  (images / "2/00000.png").write_bytes(b"broken")
  (images / "4/00001.png").unlink()
  out = tmp_path / "out"
  with judge_server.Server(_right) as server:
    judging.main(["--benchmark=colors", "--items=x", f"--images={images}", f"--out={out}",
                        f"--base_url={server.url}", "--concurrency=2"])
  printed = capsys.readouterr().out
  for line in ("missing: image 1 of item 4", "unreadable: 2/00000.png: 6 bytes", "22 calls to make",
               "22 scored"):
    assert line in printed
  about = json.loads((out / "judge/judge.json").read_text())
  assert (about["model"], about["endpoint"], about["revision"]) == ("judge-2025-01-01", "local", "r1")
  assert (about["images"]["missing"], about["make"], about["judged"]) == (1, None, 22)
  assert len((out / "scores.jsonl").read_text().splitlines()) == 22
  verdicts = [json.loads(line) for line in (out / "judge/verdicts.jsonl").read_text().splitlines()]
  assert verdicts[0] == {"id": "0", "k": 0, "category": "cold", "scores": {"score": 0.0}, "problem": "",
                         "answers": {"": "0"}}
  for path in out.rglob("*"):
    assert path.is_dir() or _KEY not in path.read_text()


def test_a_price_must_be_known_or_stated():
  known, local = prices.find("gpt-4.1", "openai", None), prices.find("anything", "local", None)
  assert (known.input, known.output, local.input, local.output) == (2.0, 8.0, 0.0, 0.0)
  assert "an estimate: state the price of your account by --price" in str(known)
  stated = prices.find("gpt-4.1", "openai", "1,2.5")
  assert str(stated) == "1 and 2.5 USD per million tokens, as stated by --price"
  with pytest.raises(ValueError, match="--price=IN,OUT"):
    prices.find("anything", "other", None)
  for wrong in ("1", "1,x", "-1,2", "nan,1"):
    with pytest.raises(ValueError, match="--price="):
      prices.find("gpt-4.1", "openai", wrong)
