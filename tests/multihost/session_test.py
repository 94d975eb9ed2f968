"""A missing host is named in time, and a signal to one host stops all of them at the same point."""

import concurrent.futures
import contextlib
import json
import re
import socket
import time

import pytest

from tests import processes
from unilip_jax.common import errors
from unilip_jax.multihost import options as options_lib
from unilip_jax.multihost import rendezvous, session


def _run(act, count, **kw):
  with processes.Processes("tests.host", [act], count, **kw) as started:
    outputs = started.wait(120)
    return outputs, started.seconds


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_named_and_the_others_end_in_time(victim):
  outputs, seconds = _run("killed", 3, env={"VICTIM": str(victim)})
  for index, (status, text) in outputs.items():
    if index == victim:
      assert status == -9
      assert "was killed or aborted" in text
    else:
      assert status == errors.AGAIN
      assert f"gone or cut off: process {victim} (" in text
      assert "at: step 3" in text
      assert "rerun the same command" in text
    assert seconds[index] - seconds[victim] < 20, "silence of 5 s, and what ending takes"


def test_a_barrier_names_the_process_that_is_missing():
  outputs, _ = _run("late", 3)
  for index in (0, 2):
    assert outputs[index][0] == errors.AGAIN
  log = outputs[0][1] + outputs[2][1]
  assert "the barrier 'the start' was not reached within 4 s by process 1" in log
  assert "at: looking for its data" in log
  assert outputs[1][0] == errors.AGAIN, "the late process ends with the others"


def test_a_wait_that_takes_too_long_names_what_the_others_do():
  outputs, _ = _run("lonely_wait", 2)
  assert [outputs[i][0] for i in range(2)] == [errors.AGAIN] * 2
  assert re.search(r"has waited \d+ s for step 7; not there: process 1 \(", outputs[0][1]), outputs[0][1]
  assert "at: reading the batch of step 7" in outputs[0][1]


def test_an_error_of_one_host_ends_all_with_its_message():
  outputs, _ = _run("fails", 3)
  assert outputs[1][0] == 1
  assert "error: shard 7 is broken" in outputs[1][1]
  for index in (0, 2):
    assert outputs[index][0] == errors.AGAIN
    assert "process 1 (" in outputs[index][1]
    assert "stopped: ValueError: shard 7 is broken" in outputs[index][1]


def test_all_processes_continue_from_the_same_sound_checkpoint(tmp_path):
  outputs, _ = _run("recover", 2, env={"FOLDER": str(tmp_path)})
  for status, text in outputs.values():
    assert status == 0, text[-3000:]
    assert "restored 3" in text
  assert "checkpoint 6 is damaged and was renamed to" in outputs[0][1]
  assert "ocdbt.process_1/d/" in outputs[0][1], "found by whichever process verified it"
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "6.damaged"]


@pytest.mark.parametrize("act", ["agree", "evaluate"])
def test_a_signal_to_one_host_stops_all_at_one_point(act):
  outputs, _ = _run(act, 3)
  points = set()
  for status, text in outputs.values():
    assert status == 0, text
    points.add(next(line for line in text.splitlines() if line.startswith("stopped at")))
  assert len(points) == 1
  assert int(points.pop().split()[-1]) < 5000


@pytest.mark.parametrize(("options", "message"), [
    (dict(coordinator="a:1"), "--coordinator without --process_count, --process_index"),
    (dict(process_count=2, process_index=0), "without --coordinator"),
    (dict(coordinator="a:1", process_count=2, process_index=2), "is none of --process_count=2"),
    (dict(coordinator="a", process_count=2, process_index=1), "expected HOST:PORT"),
    (dict(coordinator="a:1", process_count=2, process_index=1, multihost=False), "choose one"),
    (dict(multihost=True), "JAX detects no cluster here"),
])
def test_options_that_exclude_each_other_are_refused_with_what_is_missing(options, message, monkeypatch):
  for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST"):
    monkeypatch.delenv(name, raising=False)
  with pytest.raises(ValueError, match=message):
    session.resolve(options_lib.Options(**options))


def test_one_process_is_no_cluster(monkeypatch):
  monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
  assert session.resolve(options_lib.Options()) is None
  assert session.resolve(options_lib.Options(coordinator="a:1", process_count=1, process_index=0)) is None
  assert session.all_gather_text("alone", "x") == ["x"]
  with session.joined(options_lib.Options(), [], str):
    assert not session.watched()


def test_slurm_tasks_with_a_node_each_take_all_its_devices(monkeypatch):
  for name, value in {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[3-6]", "SLURM_NTASKS": "4",
                      "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "4"}.items():
    monkeypatch.setenv(name, value)
  monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
  place = session.resolve(options_lib.Options(multihost=True))
  assert (place.count, place.index, place.devices) == (4, 2, None)
  assert place.coordinator.startswith("node3:")
  monkeypatch.setenv("SLURM_STEP_NUM_NODES", "1")  # four tasks on one node: a device each
  assert session.resolve(options_lib.Options(multihost=True)).devices == [0]


def test_addresses_with_brackets_and_bad_ports():
  assert rendezvous.split_address("[::1]:80") == ("::1", 80)
  for bad in ("host", "host:", ":80", "host:99999"):
    with pytest.raises(rendezvous.MeetingError):
      rendezvous.split_address(bad)


def _meet(*joiners, count=3, timeout=3.0):
  """Runs process 0 and the given (index, count, command): the list of names or the error of each."""
  with socket.socket() as s:
    s.bind(("localhost", 0))
    address = f"localhost:{s.getsockname()[1]}"

  def one(index, started_count, command):
    try:
      return rendezvous.meet(address, started_count, index, [command], timeout)
    except rendezvous.MeetingError as error:
      return error

  with concurrent.futures.ThreadPoolExecutor() as pool:
    return [f.result() for f in [pool.submit(one, 0, count, "x"), *(pool.submit(one, *j) for j in joiners)]]


def test_a_host_that_never_starts_is_named():
  for error in _meet((1, 3, "x"), timeout=1.0):
    assert type(error) is rendezvous.AbsentError
    assert "1 of 3 processes did not connect within 1 s: 2" in str(error)


def test_an_absent_coordinator_is_named_with_what_to_check():
  with pytest.raises(rendezvous.AbsentError, match=r"cannot reach the coordinator localhost:1 .*firewall"):
    rendezvous.meet("localhost:1", 2, 1, [], 0.6)


def test_all_processes_get_the_same_names():
  first, *others = _meet((1, 3, "x"), (2, 3, "x"))
  assert len(first) == 3
  assert others == [first, first]


@pytest.mark.parametrize(("joiners", "message"), [
    ([(1, 4, "x")], "was started for 4 processes, process 0"),
    ([(7, 3, "x")], "is none of 3"),
    ([(1, 3, "x"), (1, 3, "x")], "two processes have index 1"),
    ([(0, 3, "x")], "two processes have index 0"),
    ([(1, 3, "y"), (2, 3, "x")], "it alone has y; process 0"),
])
def test_hosts_that_do_not_fit_together_are_named_to_all(joiners, message):
  errors = [e for e in _meet(*joiners) if not isinstance(e, list)]
  assert len(errors) >= 2
  assert all(message in str(e) for e in errors if type(e) is rendezvous.MeetingError), errors
  assert type(errors[0]) is rendezvous.MeetingError


@pytest.mark.parametrize("doubled", [0, 1])
def test_two_processes_with_one_index_are_both_told_at_once(doubled):
  start = time.monotonic()
  outcomes = _meet((doubled, 3, "x"), *[(1, 3, "x")] * doubled, timeout=20.0)
  assert len(outcomes) == 2 + doubled
  for error in outcomes:
    assert type(error) is rendezvous.MeetingError
    assert re.match(f"two processes have index {doubled}: on ", str(error))
  assert time.monotonic() - start < 5


def test_junk_on_the_port_is_ignored_and_logged(caplog):
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  junk = [b"[" * 200_000 + b"\n", b"[" * 2**21, b"\xff\0" * 10 + b"\n", b"{}\n",
          b'{"error": 1, "late": []}\n', b'{"index": [1], "count": 3, "host": 1, "command": "x"}\n', b""]
  with concurrent.futures.ThreadPoolExecutor() as pool, contextlib.ExitStack() as stack:
    first = pool.submit(rendezvous.meet, f"localhost:{port}", 3, 0, ["x"], 20.0)
    _send(port, "GET / HTTP/1.1\r\n\r\n")
    for data in junk:
      connection = stack.enter_context(socket.create_connection(("localhost", port)))
      with contextlib.suppress(OSError):  # closed in the middle
        connection.sendall(data)  # and stays open
    start = time.monotonic()
    others = [pool.submit(rendezvous.meet, f"localhost:{port}", 3, i, ["x"], 20.0) for i in (1, 2)]
    names = first.result()
    assert [f.result() for f in others] == [names, names]
    assert time.monotonic() - start < 3, "silent connections do not delay the others"
  assert caplog.text.count("not a process of this run") >= 6
  assert "2097152 bytes" not in caplog.text, "reading is bounded"


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_another_program_on_the_port_and_a_host_that_starts_twice_do_no_harm(order):
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    first = pool.submit(rendezvous.meet, f"localhost:{port}", 3, 0, ["x"], 20.0)
    line = json.dumps({"index": 1, "count": 3, "host": "old", "command": ["x"]}) + "\n"
    for text in ("GET / HTTP/1.1\r\n\r\n", line):  # a scanner; a process that is killed at once
      _send(port, text)
    others = []
    for i in order:
      others.append(pool.submit(rendezvous.meet, f"localhost:{port}", 3, i, ["x"], 20.0))
      time.sleep(0.3)
    names = first.result()
    assert [f.result() for f in others] == [names, names]
  assert "old" not in names


def _send(port, text):
  deadline = time.monotonic() + 10
  while True:
    try:
      with socket.create_connection(("localhost", port), timeout=5) as connection:
        connection.sendall(text.encode())
        time.sleep(0.2)
        return
    except ConnectionRefusedError:
      assert time.monotonic() < deadline
      time.sleep(0.05)
