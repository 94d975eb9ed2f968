"""Every second of a run is booked once, also when it is killed and started again."""

import json
import threading

import pytest

from unilip_jax.training import ledger


class _Clock:
  """Stands for the module `time`; its two clocks differ by a constant."""

  def __init__(self, now=1000.0):
    self.now = now

  def time(self):
    return self.now

  def monotonic(self):
    return self.now - 400.0


class _Step:
  """The result of a step that ends when the test says so."""

  def __init__(self):
    self._end = threading.Event()

  def block_until_ready(self):
    assert self._end.wait(10)

  def finish(self, book, step):
    self._end.set()
    for _ in range(1000):
      if book._reached >= step:
        return
      threading.Event().wait(0.005)
    raise AssertionError("the ledger's thread took no time of the step")


@pytest.fixture
def clock(monkeypatch):
  clock = _Clock()
  monkeypatch.setattr(ledger, "time", clock)
  monkeypatch.setattr(ledger, "_SECONDS", 1000.0)  # the test writes the file itself
  yield clock
  monkeypatch.setattr(ledger, "_current", None)


def _spend(clock, entry, seconds):
  with ledger.during(entry):
    clock.now += seconds


def _kill(book):
  """Ends a ledger as a kill does after its file was written: nothing else happens."""
  book._save()
  book._steps.put(None)


def _run_step(book, clock, number, *, data, wait, seconds):
  """A step for whose batch the host waits `data` seconds, and the devices compute `seconds`."""
  book.begin(number)
  _spend(clock, "data", data)
  step = _Step()
  book.watch(number, step)
  _spend(clock, "save", wait)  # whatever the host does meanwhile
  clock.now += seconds - wait
  step.finish(book, number)


def _entries(book):
  return {k.removeprefix(ledger.PREFIX): v for k, v in book.totals().items() if k != ledger.GOODPUT}


def test_entries_sum_to_the_wall_time_over_a_kill(tmp_path, clock):
  began = clock.now - 7  # of the command
  book = ledger.Ledger(tmp_path, started=began)
  book.__enter__()
  _spend(clock, "compile", 30)
  for number in (1, 2, 3):
    _run_step(book, clock, number, data=2, wait=1, seconds=5)
  _spend(clock, "evaluation", 20)
  clock.now += 0.5
  expected = {"setup": 7, "compile": 30, "data": 6, "step": 15, "evaluation": 20, "other": 0.5}
  assert _entries(book) == expected
  _kill(book)
  clock.now += 600
  again = ledger.Ledger(tmp_path, started=clock.now - 4)  # from the checkpoint of step 1
  with again:
    for number in (2, 3, 4):
      _run_step(again, clock, number, data=2, wait=0, seconds=5)
    with ledger.during("data"):
      _spend(clock, "rollout", 8)
      _spend(clock, "reward", 9)
      clock.now += 1
    expected |= {"setup": 11, "restart": 596, "repeated": 14, "data": 9, "step": 20, "rollout": 8,
                 "reward": 9}
    assert _entries(again) == expected
    assert sum(expected.values()) == clock.now - began
    assert ledger.totals()[ledger.GOODPUT] == pytest.approx(20 / sum(expected.values()), abs=1e-5)
    clock.now += 2
  state = json.loads((tmp_path / ledger.FILE).read_text())
  assert (state["step"], state["time"], sum(state["seconds"].values())) == (
      4, clock.now, clock.now - began)


def test_a_wait_for_data_counts_from_the_moment_the_devices_have_nothing_to_do(tmp_path, clock):
  with ledger.Ledger(tmp_path) as book:
    book.begin(1)
    step = _Step()
    book.watch(1, step)
    book.begin(2)
    with ledger.during("data"):
      clock.now += 3
      step.finish(book, 1)
      clock.now += 0.25
    assert _entries(book) == {"step": 3, "data": 0.25}


def test_the_pause_after_the_last_step_does_not_count(tmp_path, clock):
  with ledger.Ledger(tmp_path) as book:
    _run_step(book, clock, 1, data=0, wait=0, seconds=5)
    ledger.end()
  content = (tmp_path / ledger.FILE).read_bytes()
  clock.now += 5000
  with ledger.Ledger(tmp_path):  # the same command again: there is nothing to do
    clock.now += 10
    assert ledger.totals() == {}
  assert (tmp_path / ledger.FILE).read_bytes() == content
  clock.now += 5000
  with ledger.Ledger(tmp_path, started=clock.now - 3) as book:  # with more steps
    _run_step(book, clock, 2, data=0, wait=0, seconds=5)
    assert _entries(book) == {"setup": 3, "step": 10}


def test_without_a_ledger_nothing_is_booked(tmp_path):
  with ledger.during("save"):
    pass
  assert ledger.totals() == {}
  assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named_and_begun_again(tmp_path, clock, caplog):
  (tmp_path / ledger.FILE).write_text("{")
  with ledger.Ledger(tmp_path, started=clock.now - 1) as book:
    assert _entries(book) == {"setup": 1}
  assert "ledger.json is damaged" in caplog.text


def test_the_file_is_written_while_the_run_goes_on(tmp_path, monkeypatch):
  monkeypatch.setattr(ledger, "_SECONDS", 0.01)
  with ledger.Ledger(tmp_path):
    first = (tmp_path / ledger.FILE).read_bytes()
    for _ in range(1000):
      if (tmp_path / ledger.FILE).read_bytes() != first:
        return
      threading.Event().wait(0.005)
  raise AssertionError("the file stayed as it was")
