"""Tables of training steps: every measured number and every failure has its line, between marks alone."""

import json

import pytest

from benchmarks import harness, performance_table


def _result():
  jax_row = harness.row("gen2, unilip_jax", [20.0, 22.0, 21.0], "images/s", True) | {
      "device": "cpu", "mfu": 0.31, "peak_device_bytes": None, "peak_host_bytes": 2**31,
      "memory_analysis_bytes": 2**30, "compile_seconds": 12.0, "first_step_seconds": 2.0}
  return {
      "command": "python -m benchmarks.train_step", "machine": {"cpu": "Some CPU", "load": [0.5, 0, 0]},
      "versions": dict.fromkeys(("jax", "torch", "transformers", "diffusers"), "1.0"),
      "settings": {"on_cpu": True, "threads": 1, "repeats": 3, "stages": {
          "gen2": {"batch_size": 64, "image_size": 112, "dtype": "float32"}}},
      "rows": [jax_row, jax_row | {"name": "gen2, PyTorch eager", "median": 28.0},
               harness.failed("gen2, PyTorch compile", "images/s", "out of memory: at last"),
               harness.row("gen2, unilip_jax / PyTorch eager", [0.75], "×", True)]}


def test_rows_are_written_between_marks_and_again(tmp_path):
  (tmp_path / "a.json").write_text(json.dumps(_result()))
  page = tmp_path / "page.md"
  page.write_text("before\n<!-- steps a.json -->\n<!-- end of steps -->\nafter\n")
  performance_table.write(page, tmp_path)
  once = page.read_text()
  performance_table.write(page, tmp_path)
  assert page.read_text() == once
  assert once.startswith("before\n")
  assert once.endswith("after\n")
  assert "| gen2 | unilip_jax | 21.0 | 5% |  | 31% | 2.00 GiB | 1.00 GiB | 12 s |" in once
  assert "| gen2 | PyTorch eager | 28.0 | 5% | 0.75 |" in once
  assert "| gen2 | PyTorch compile | out of memory: at last |" in once
  assert "gen2: 64 images of 112 px, float32. Some CPU, 1 core;" in once


def test_a_page_without_marks_is_refused(tmp_path):
  page = tmp_path / "page.md"
  page.write_text("no marks\n")
  with pytest.raises(ValueError, match="no marks"):
    performance_table.write(page, tmp_path)
