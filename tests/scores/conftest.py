"""Recorded runs of the official scorers, unpacked once."""

import pathlib

import pytest

from tests.golden import evals


@pytest.fixture(scope="session")
def recorded(tmp_path_factory) -> pathlib.Path:
  """Folder of the recorded runs: geneval/, wise/, imgedit/, ..."""
  return evals.unpack(tmp_path_factory.mktemp("recorded"))
