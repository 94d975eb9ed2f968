"""Hosts of one run: who is missing is named in time, and a notice to one stops all at the same point."""

import re

import pytest

from tests import processes
from unilip_jax import hosts, rendezvous, watch


def _run(act, count, **kw):
  with processes.Processes("tests.host", [act], count, **kw) as started:
    outputs = started.wait(60)
    return outputs, started.seconds


def test_a_host_that_never_starts_is_named():
  outputs, _ = _run("agree", 3, absent=[2], env={"START": "3"})
  for status, text in outputs.values():
    assert status == 1
    assert "1 of 3 processes did not come within 3 s: 2" in text
    assert "Traceback" not in text


def test_a_coordinator_that_is_not_there_is_said_with_what_to_check():
  (status, text), = _run("agree", 2, absent=[0], env={"START": "2"})[0].values()
  assert status == 1
  assert "cannot reach the coordinator localhost:" in text
  assert "firewall" in text


def test_hosts_started_with_other_commands_are_refused():
  outputs, _ = _run("agree", 2, each={1: ["--config.seed=2"]})
  for status, text in outputs.values():
    assert status == 1
    assert "it alone has --config.seed=2" in text


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_named_and_the_others_end_in_time(victim):
  outputs, seconds = _run("killed", 3, env={"VICTIM": str(victim)})
  for index, (status, text) in outputs.items():
    if index == victim:
      assert status == -9
      assert "was killed or aborted" in text
    elif victim:
      assert status == watch.AGAIN
      assert f"gone or cut off: process {victim} (" in text
      assert "at: step 3" in text
      assert "rerun the same command" in text
    else:  # JAX aborts where the coordinator is lost; the last line says what that means
      assert status != 0
      assert "process 0 (" in text.splitlines()[-1]
    assert seconds[index] < 30


def test_a_barrier_names_who_does_not_come():
  outputs, _ = _run("late", 3)
  for index in (0, 2):
    assert outputs[index][0] == watch.AGAIN
  told = outputs[0][1] + outputs[2][1]
  assert "the barrier 'the start' was not reached within 2 s by process 1" in told
  assert "at: looking for its data" in told
  assert outputs[1][0] == watch.AGAIN, "whoever was late ends with the others"


def test_a_wait_without_end_names_where_the_others_are():
  outputs, _ = _run("lonely_wait", 2)
  assert [outputs[i][0] for i in range(2)] == [watch.AGAIN] * 2
  assert re.search(r"has waited \d s for step 7; not there: process 1 \(", outputs[0][1]), outputs[0][1]
  assert "at: reading the batch of step 7" in outputs[0][1]


def test_an_error_of_one_host_ends_all_with_its_message():
  outputs, _ = _run("fails", 3)
  assert outputs[1][0] == 1
  assert "error: shard 7 is broken" in outputs[1][1]
  for index in (0, 2):
    assert outputs[index][0] == watch.AGAIN
    assert "process 1 (" in outputs[index][1]
    assert "stopped: ValueError: shard 7 is broken" in outputs[index][1]


@pytest.mark.parametrize("act", ["agree", "evaluate"])
def test_a_notice_to_one_host_stops_all_at_one_point(act):
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
    (dict(multihost=True), "JAX recognises no cluster here"),
])
def test_options_that_do_not_fit_say_what_is_missing(options, message, monkeypatch):
  for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST"):
    monkeypatch.delenv(name, raising=False)
  with pytest.raises(ValueError, match=message):
    hosts.resolve(watch.Options(**options))


def test_one_process_is_no_cluster(monkeypatch):
  monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
  assert hosts.resolve(watch.Options()) is None
  assert hosts.resolve(watch.Options(coordinator="a:1", process_count=1, process_index=0)) is None
  assert hosts.gather("alone", "x") == ["x"]
  with hosts.joined(watch.Options(), [], str):
    assert not hosts.watched()


def test_slurm_tasks_with_a_node_each_take_all_its_devices(monkeypatch):
  for name, value in {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[3-6]", "SLURM_NTASKS": "4",
                      "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "4"}.items():
    monkeypatch.setenv(name, value)
  monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
  place = hosts.resolve(watch.Options(multihost=True))
  assert (place.count, place.index, place.devices) == (4, 2, None)
  assert place.coordinator.startswith("node3:")
  monkeypatch.setenv("SLURM_STEP_NUM_NODES", "1")  # four tasks on one node: a device each
  assert hosts.resolve(watch.Options(multihost=True)).devices == [0]


def test_addresses_with_brackets_and_bad_ports():
  assert rendezvous.split_address("[::1]:80") == ("::1", 80)
  for bad in ("host", "host:", ":80", "host:99999"):
    with pytest.raises(rendezvous.MeetingError):
      rendezvous.split_address(bad)
