"""A machine without a TPU says nothing about TPUs; one that has it keeps the message."""

import logging

import pytest

from unilip_jax.common import accelerators

_NOISE = "Unable to initialize backend 'tpu': NOT_FOUND"


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """A machine without accelerators; returns its PCI bus."""
  monkeypatch.setattr(accelerators, "_PCI", tmp_path)
  monkeypatch.setattr(accelerators, "_LOGGER", "test.xla_bridge")
  for name in (*accelerators._VARIABLES, "JAX_PLATFORMS"):
    monkeypatch.delenv(name, raising=False)
  yield tmp_path
  logging.getLogger("test.xla_bridge").filters.clear()


def _logged(caplog):
  accelerators.hide_absent_tpu()
  with caplog.at_level(logging.INFO):
    logging.getLogger("test.xla_bridge").info(_NOISE)
    logging.getLogger("test.xla_bridge").info("Unable to initialize backend 'cuda': no driver")
  return "'tpu'" in caplog.text, "'cuda'" in caplog.text


def test_no_word_about_an_absent_tpu(machine, caplog):
  (machine / "0000:00:01.0").mkdir()
  (machine / "0000:00:01.0/vendor").write_text("0x8086\n")
  assert _logged(caplog) == (False, True)


def test_a_tpu_that_fails_is_reported(machine, caplog):
  (machine / "0000:00:04.0").mkdir()
  (machine / "0000:00:04.0/vendor").write_text("0x1ae0\n")
  assert _logged(caplog) == (True, True)


def test_the_environment_announces_a_tpu(machine, monkeypatch):
  assert not accelerators.has_tpu()
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
  assert accelerators.has_tpu()
