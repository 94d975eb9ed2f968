"""The report is one file without external references that shows every run's numbers and images."""

import base64
import html.parser
import json
import re

import numpy as np
import pytest

from unilip_jax.common import errors, image_grid
from unilip_jax.report import __main__ as report_command
from unilip_jax.report import page as report_page
from unilip_jax.training import metrics


def _make_run(folder, seed=0, steps=200, stage="stage2"):
  rng = np.random.default_rng(seed)
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps({
      "stage": stage, "size": "tiny", "total_steps": steps, "batch_size": 32, "image_size": 112,
      "started_from": "runs/<stage1>", "optimizer": {"lr": 1e-3 * (seed + 1)}}))
  with metrics.Writer(folder, start_step=0) as writer:
    for step in range(1, steps + 1):
      writer.write(step, {
          "train/loss": 1 / step + rng.random() / 50, "train/reconstruction_loss": 1 / step,
          "train/lr": 1e-3, "train/finite": 1.0, "rate/images_per_second": 30.0, "rate/mfu": 0.25})
      if step % 50 == 0:
        writer.write(step, {"eval/shapes/psnr": 15 + step / 25 + seed, "eval/shapes/l1": 0.1,
                            "eval/shapes/count": 64})
  (folder / "samples").mkdir()
  for step in (100, 200):
    images = rng.integers(0, 256, (4, 56, 56, 3)).astype(np.uint8)
    (folder / "samples" / f"step_{step:08d}.png").write_bytes(
        image_grid.paired_rows({"input": images, "reconstruction": images}))
  return folder


class _Page(html.parser.HTMLParser):
  """Collects text and references, and checks that tags nest."""

  _VOID = ("meta", "img", "br")

  def __init__(self, text):
    super().__init__()
    self.stack, self.references, self.text = [], [], ""
    self.feed(text)
    assert not self.stack, f"left open: {self.stack}"

  def handle_starttag(self, tag, attrs):
    if tag not in self._VOID:
      self.stack.append(tag)
    self.references += [v for k, v in attrs if k in ("src", "href")]

  def handle_endtag(self, tag):
    assert self.stack.pop() == tag

  def handle_data(self, data):
    self.text += data


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  return _make_run(folder / "with_distill"), _make_run(folder / "without", seed=1)


def test_rows_without_a_time_leave_out_dates_and_wall_time(tmp_path):
  folder = tmp_path / "run"
  folder.mkdir()
  (folder / "metrics.jsonl").write_text("".join(
      json.dumps({"step": step, "train/loss": 1.0}) + "\n" for step in (1, 2)))
  text = report_page.write(str(folder)).read_text()
  assert "wall time" not in text
  assert "last row" not in text
  assert "updates" in text


def test_page_of_one_run(runs):
  path = report_page.write(str(runs[0]))
  assert path == runs[0] / "report.html"
  page = _Page(path.read_text())
  assert all(r.startswith("data:image/") for r in page.references)
  assert sum(r.startswith("data:image/png") for r in page.references) == 2  # both grids
  shown = ("with_distill", "stage2", "runs/<stage1>", "200 of 200", "23", "25.0%", "update 100")
  assert [text for text in shown if text not in page.text] == []


def test_the_best_value_of_compared_runs_is_marked(runs):
  text = report_page.write(str(runs[0]), [str(runs[1])]).read_text()
  page = _Page(text)
  assert "without" in page.text
  assert '<td class="n best">24</td>' in text  # PSNR of the second run, 23 in the first
  differing = text[text.index('class="differs"'):]
  assert "optimizer.lr" in differing[:differing.index("</tr>")]


def test_the_page_opens_with_what_the_run_is_and_its_images(tmp_path):
  folder = _make_run(tmp_path / "stage2", steps=50)
  start = {"time": "2026-01-02T03:04:05Z", "command": "unilip train --config=configs/stage2.py:tiny",
           "commit": "0123456789abcdef + changes", "step": 0, "seed": 5, "machine": "2 cores",
           "devices": "8 × TPU v5e", "processes": 2, "versions": {"jax": "0.10.2"}}
  (folder / "run.json").write_text(json.dumps({"id": "a", "count": 3, "starts": [start]}))
  text = report_page.write(str(folder)).read_text()
  page = " ".join(_Page(text).text.split())
  shown = ("unilip train --config=configs/stage2.py:tiny", "0123456789ab + changes",
           "8 × TPU v5e, 2 processes", "jax 0.10.2", "2026-01-02 03:04:05 UTC",
           "started 3 times", "update 100")
  places = [page.index(fact) for fact in (*shown, "PSNR (dB), shapes")]
  assert max(places[:-1]) < places[-1], "facts and images come before numbers"


def test_runs_are_in_the_order_of_the_pipeline_and_curves_have_a_legend(tmp_path):
  folders = [_make_run(tmp_path / name, steps=50, stage=stage) for name, stage in (
      ("last", "gen3"), ("mine", "not of the pipeline"), ("second", "stage2"), ("first", "stage1"))]
  text = report_page.write(str(folders[0]), [str(f) for f in folders[1:]]).read_text()
  names = re.findall(r'<span class="dot" style="background: #\w+"></span>(\w+)</th>', text)
  assert names[:4] == ["first", "second", "last", "mine"]
  assert "<h1>last</h1>" in text
  plots = [base64.b64decode(url).decode() for url in re.findall(r"image/svg\+xml;base64,([^\"]+)", text)]
  assert plots
  assert all('id="legend_1"' in plot for plot in plots)


def test_a_score_that_fell_is_marked_in_the_direction_of_its_metric(tmp_path):
  folder = tmp_path / "run"
  folder.mkdir()
  with metrics.Writer(folder, start_step=0) as writer:
    writer.write(0, {"eval/a/psnr": 20.0, "eval/a/ssim": 0.5, "eval/a/lpips": 0.25, "eval/b/psnr": 10.0})
    writer.write(9, {"eval/a/psnr": 18.0, "eval/a/ssim": 0.75, "eval/a/lpips": 0.5, "eval/b/psnr": 10.0})
  text = report_page.write(str(folder)).read_text()
  table = _between(text, "Start and end of training", "<h2>Evaluation")
  for label, change in (("PSNR (dB), a", "-2 ▼ worse"), ("SSIM, a", "+0.25 better"),
                        ("LPIPS, a", "+0.25 ▼ worse"), ("PSNR (dB), b", "+0<")):
    assert change in _between(table, label, "</tr>")
  tiles = _between(text, 'class="tiles"', "<h2>")
  assert tiles.count("▼ worse than at the start") == 2
  assert "▼ worse than at the start, 20" in tiles


def test_the_wall_time_is_divided_into_what_it_was_spent_on(tmp_path):
  folder = _make_run(tmp_path / "run", steps=50)
  seconds = {"setup": 10.0, "step": 3600.0, "restart": 390.0}
  with metrics.Writer(folder, start_step=50) as writer:
    writer.write(50, {f"seconds/{k}": v for k, v in seconds.items()} | {"rate/goodput": 0.9})
  text = report_page.write(str(folder), [str(_make_run(tmp_path / "old", steps=50))]).read_text()
  table = _between(text, "Where the time went", "<h2>")
  for label, cell in (("training steps", "1 h 00 min, 90.0%"), ("set-up", "10 s, 0.2%"),
                      ("no process running", "6 min 30 s, 9.8%"),
                      ("wall time since the first start", "1 h 06 min")):
    assert cell in _between(table, f"{label}</th>", "</tr>")
  assert "old" not in table, "a run without a ledger has no column"
  assert "90.0%" in _between(text, 'class="tiles"', "<h2>")
  assert "seconds/" not in text


def _started_from(folder, sources):
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(config | {"started_from": sources}))
  return folder


def _between(text, start, end):
  start = text.index(start)
  return text[start:text.index(end, start)]


def test_progress_of_training_and_included_weights_have_a_table_each(tmp_path):
  folder = _started_from(_make_run(tmp_path / "stage2", steps=50), "shapes:stage1, runs/x")
  rows = (folder / "metrics.jsonl").read_text()
  (folder / "metrics.jsonl").write_text(
      json.dumps({"step": 0, "time": 0.0, "eval/shapes/psnr": 12.5, "eval/shapes/count": 64}) + "\n"
      + rows)
  text = report_page.write(str(folder)).read_text()
  progress = _between(text, "Start and end of training", "Included weights")
  assert [w for w in ("12.5", "17", "PSNR (dB), shapes") if w not in progress] == []
  assert "examples" not in progress
  included = _between(text, "Included weights", "<h2>Evaluation")
  assert "shapes:stage1" in included
  assert "shapes:mllm" in included  # completes stage 1
  assert "shapes:gen1" not in included
  assert "runs/x" not in included
  assert "exact" not in included  # by its label


def test_weights_that_only_an_older_version_included_are_named(tmp_path):
  folder = _started_from(_make_run(tmp_path / "old", steps=50), "blocks:gen2, shapes:nothing")
  included = _between(report_page.write(str(folder)).read_text(), "Included weights", "<h2>Evaluation")
  assert "blocks:gen2" in included
  assert "shapes:NAME" in included
  assert "no weights shapes:nothing" in included


def test_metrics_of_plug_ins_have_labels_and_directions(tmp_path):
  for name, score in (("a", 0.5), ("b", 0.75)):
    (tmp_path / name).mkdir()
    (tmp_path / name / "results.json").write_text(json.dumps({
        "metrics": {"t2i/score": score, "t2i/missed_colour": 1 - score, "t2i/of_another_package": 1.0},
        "checkpoint": name, "step": 7, "config": {}, "machine": {}, "time": ""}))
  text = report_page.write(str(tmp_path / "a"), [str(tmp_path / "b")]).read_text()
  for row in ("images that fit their prompt ↑", "images whose first fault is the colour ↓"):
    cells = _between(text, f"<td>{row}</td>", "</tr>")
    assert cells.index('class="n best"') > cells.index('class="n"'), row
  assert "<td>of_another_package</td>" in text


def test_folder_with_results_alone(tmp_path):
  (tmp_path / "results.json").write_text(json.dumps({
      "metrics": {"imagenet224/psnr": 22.5, "imagenet224/ssim": "nan"}, "checkpoint": "runs/stage2",
      "step": 7, "config": {"stage": "stage2", "size": "1b"}, "machine": {"devices": "1 × cpu"},
      "time": "2020-01-01T00:00:00Z"}))
  page = _Page(report_page.write(str(tmp_path)).read_text())
  assert "22.5" in page.text
  assert "runs/stage2" in page.text


def test_non_finite_and_long_curves_are_drawn(tmp_path):
  with metrics.Writer(tmp_path, start_step=0) as writer:
    for step in range(1, 4001):
      writer.write(step, {"train/loss": np.nan if step == 2000 else -1.0, "train/gan_loss": np.inf})
  _Page(report_page.write(str(tmp_path)).read_text())


def test_folder_that_is_no_run_is_named(tmp_path, capsys):
  with pytest.raises(SystemExit, match="1"):
    errors.run_command(lambda: report_command.main([f"--workdir={tmp_path}"]))
  assert f"error: {tmp_path} holds neither metrics.jsonl" in capsys.readouterr().err
