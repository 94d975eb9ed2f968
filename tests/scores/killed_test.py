"""A step that is killed 20 times ends with the files of an uninterrupted one, and pays no call twice."""

import pathlib
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest

from tests.scores import fakes, judge_server, killed
from unilip_jax.scores import append_log, tables

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_KILLS = 20


def _run(*arguments):
  out = subprocess.run([sys.executable, "-m", "tests.scores.killed", *map(str, arguments)], cwd=_ROOT,
                       capture_output=True, text=True, timeout=120)
  assert out.returncode == 0, out.stderr[-2000:]
  return int(out.stdout)


class _Slow:
  """Answers each fifth image wrongly at the first time."""

  def __init__(self):
    self._asked, self._lock = set(), threading.Lock()

  def __call__(self, body, number):
    image = judge_server.images(body)[0]
    with self._lock:
      first = image not in self._asked
      self._asked.add(image)
    wrong = first and zlib.crc32(image.encode()) % 5 == 0
    text = judge_server.texts(body).split("colour ")[1].rstrip(">")
    return judge_server.Answer("hm" if wrong else text, delay=0.05)


@pytest.mark.parametrize("kind", ["SIGKILL", "SIGTERM"])
def test_a_judge_killed_20_times_pays_no_call_twice(tmp_path, kind):
  benchmark = fakes.Colors()
  items = benchmark.read_items("")
  fakes.write_images(tmp_path / "images", benchmark, items, count=killed.IMAGES)
  # After SIGTERM the answers of sent requests are awaited. After SIGKILL they are lost; the requests are
  # sent again with their key, and an endpoint that knows it answers from before.
  with judge_server.Server(_Slow(), idempotent=kind == "SIGKILL") as server:
    assert _run("judge", tmp_path, kind, _KILLS, server.url) == _KILLS
  assert set(server.paid.values()) == {1}
  records = [r for r in append_log.read(tmp_path / "out/judge/answers.jsonl") if "answer" in r]
  assert len({r["key"] for r in records}) == len(records) == len(server.paid)
  score = benchmark.aggregate(str(tmp_path / "out"))
  assert (score.n, score.score) == (12 * killed.IMAGES, 5.5)


def test_images_made_by_runs_killed_20_times_are_those_of_one_run(tmp_path):
  noise = tmp_path / "noise.npy"
  values = np.random.default_rng(0).standard_normal((killed.IMAGES, *killed.LATENT))
  np.save(noise, values.astype(np.float32))
  assert _run("make", tmp_path / "a", "SIGKILL", _KILLS, noise) == _KILLS
  killed.make(tmp_path / "b", str(noise))
  names = lambda folder: sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*"))
  read = lambda folder: {n: (folder / n).read_bytes() for n in names(folder) if n.endswith(".png")}
  a, b = read(tmp_path / "a/images"), read(tmp_path / "b/images")
  assert len(b) == 12 * killed.IMAGES
  assert a == b


def test_answers_of_runs_killed_20_times_are_those_of_one_run(tmp_path):
  count = 120
  assert _run("answers", tmp_path / "a", "SIGKILL", _KILLS, count) == _KILLS
  killed.answers(tmp_path / "b", str(count))
  rows = tables.read(tmp_path / "a/answers/predictions.tsv", "answers")
  assert [row["prediction"] for row in rows] == [f"answer to question {i}" for i in range(count)]
  assert (tmp_path / "a/answers/predictions.tsv").read_bytes() == (
      tmp_path / "b/answers/predictions.tsv").read_bytes()
  log = append_log.read(tmp_path / "a/answers/answers-0-of-1.jsonl")
  assert len({record["id"] for record in log}) == len(log) == count
