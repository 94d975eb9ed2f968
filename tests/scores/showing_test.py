"""The page holds every image and verdict, its filters count them, and no text of others is markup."""

import html.parser
import json

import pytest

from tests.scores import fakes, made_up
from unilip_jax.scores import base, provenance, showing

_EVIL = '<script>alert("x")</script> & "quoted" \' </pre>'


class _Tags(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.tags = []

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))


def _page(tmp_path, monkeypatch, *options, benchmark=None):
  monkeypatch.setattr(showing.base, "find", lambda name: benchmark or fakes.Colors())
  out = tmp_path / "page/index.html"
  showing.main(["--benchmark=colors", "--items=x", f"--out={out}", *options])
  parser = _Tags()
  parser.feed(out.read_text())
  return out.read_text(), parser.tags


@pytest.fixture
def judged(tmp_path):
  benchmark = fakes.Colors()
  fakes.write_images(tmp_path / "my images", benchmark, benchmark.read_items(""))
  (tmp_path / "my images/3/00001.png").unlink()
  records = [
      {"id": "0", "k": 0, "category": "cold", "scores": {"score": 1.0}, "problem": "",
       "answers": {"": "1"}},
      {"id": "1", "k": 1, "category": "warm", "scores": None, "problem": "malformed",
       "answers": {"": _EVIL}},
      {"id": "2", "k": 0, "category": "warm", "scores": {"SC": 4.0, "PQ": 9.0}, "problem": "",
       "answers": {"SC": "a", "PQ": "b"}}]
  (tmp_path / "judged/judge").mkdir(parents=True)
  provenance.write_lines(tmp_path / "judged/judge/verdicts.jsonl", records)
  return tmp_path


def test_images_verdicts_and_filters(judged, monkeypatch):
  text, tags = _page(judged, monkeypatch, f"--images={judged}/my images", f"--judged={judged}/judged")
  images = [attrs["src"] for tag, attrs in tags if tag == "img"]
  assert len(images) == 23
  assert images[0] == "../my%20images/0/00000.png"
  cards = [attrs for tag, attrs in tags if tag == "article"]
  assert len(cards) == 24
  assert cards[0] == {"data-category": "cold", "data-status": "right"}
  options = [attrs["value"] for tag, attrs in tags if tag == "option"]
  assert options == ["", "cold", "warm", "", "malformed", "missing", "no verdict", "right", "scored"]
  assert "warm (16)</option>" in text
  assert "SC 4, PQ 9" in text


def test_texts_of_others_are_escaped(judged, monkeypatch):
  class Evil(fakes.Colors):
    def read_items(self, source):
      return [base.Item(i.id, _EVIL, '"><img src=x onerror=y>', record=i.record)
              for i in super().read_items(source)]

  text, tags = _page(judged, monkeypatch, f"--images={judged}/my images", f"--judged={judged}/judged",
                     benchmark=Evil())
  assert "alert(" in text
  assert "<script>alert" not in text
  assert [tag for tag, _ in tags if tag == "script"] == ["script"]
  assert not any("onerror" in attrs for _, attrs in tags)


def test_small_copies_make_the_page_complete_in_itself(judged, monkeypatch):
  _, tags = _page(judged, monkeypatch, f"--images={judged}/my images", "--embed", "--max_items=2")
  images = [attrs["src"] for tag, attrs in tags if tag == "img"]
  assert len(images) == 4
  assert all(src.startswith("data:image/jpeg;base64,") for src in images)


def test_answers_are_shown_with_their_image_and_sources_of_edits(tmp_path, monkeypatch):
  copy, benchmark = made_up.make("imgedit", tmp_path / "items"), base.find("imgedit")
  (tmp_path / "answers.json").write_text(json.dumps({"22": "yes, it is"}))
  out = tmp_path / "page.html"
  showing.main(["--benchmark=imgedit", f"--items={copy.items}", f"--answers={tmp_path}/answers.json",
                f"--out={out}"])
  text = out.read_text()
  assert text.count("<article") == len(benchmark.read_items(str(copy.items)))
  assert 'src="items/daily%20object/000000000.jpg"' in text
  assert "<b>yes, it is</b>" in text


def test_absent_verdicts_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"neither judge/verdicts\.jsonl nor results\.jsonl"):
    showing.read_verdicts(str(tmp_path))
  (tmp_path / "results.jsonl").write_text('{"filename": "a.png", "correct": true}\n')
  with pytest.raises(ValueError, match=r"is not <item>/samples/<k>\.png"):
    showing.read_verdicts(str(tmp_path))
  (tmp_path / "results.jsonl").write_text('{"correct": true}\n')
  with pytest.raises(ValueError, match=r"None is not <item>/samples/<k>\.png"):
    showing.read_verdicts(str(tmp_path))
  (tmp_path / "judge").mkdir()
  (tmp_path / "judge/verdicts.jsonl").write_text('{"id": "1"}\n')
  with pytest.raises(ValueError, match=r"verdicts\.jsonl is no record of verdicts"):
    showing.read_verdicts(str(tmp_path))


def test_what_cannot_be_copied_into_the_page_is_marked(judged, monkeypatch):
  (judged / "my images/2/00001.png").write_bytes(b"half an image")
  text, tags = _page(judged, monkeypatch, f"--images={judged}/my images", "--embed")
  assert len([tag for tag, _ in tags if tag == "img"]) == 22
  assert "unreadable (1)</option>" in text
  with pytest.raises(FileNotFoundError, match=r"--images=.*/nowhere does not exist"):
    _page(judged, monkeypatch, f"--images={judged}/nowhere")
