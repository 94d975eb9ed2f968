"""Bars fit terminals of every size, none included."""

import io
import os

import pytest

from unilip_jax.common import progress_bar


class _Terminal(io.StringIO):
  def isatty(self):
    return True

  def fileno(self):
    return 2


@pytest.mark.parametrize(("columns", "width"), [(0, 80), (20, 20), (200, 200)])
def test_a_bar_fits_its_terminal(columns, width, monkeypatch):
  screen = _Terminal()
  monkeypatch.setenv("COLUMNS", "0")
  monkeypatch.setattr(progress_bar.sys, "stderr", screen)
  monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((columns, 0)))
  with progress_bar.bar(total=10, unit="step", mininterval=0.0) as shown:
    for _ in range(10):
      shown.update()
  lines = [line for line in screen.getvalue().replace("\n", "\r").split("\r") if line.strip()]
  assert "10/10" in lines[-1] or columns == 20
  assert max(map(len, lines)) <= width
  assert max(map(len, lines)) > width // 2


def test_a_file_gets_few_lines(monkeypatch, tmp_path):
  with (tmp_path / "log").open("w+") as file:
    monkeypatch.setattr(progress_bar.sys, "stderr", file)
    for _ in progress_bar.bar(range(1000)):
      pass
    file.seek(0)
    assert file.read().count("\r") <= 3
