"""Scripts for clusters: dry runs print what is recorded and run nothing; actions run on a fake cloud."""

import json
import pathlib
import re
import shutil
import subprocess
import time

import pytest

from launch import plan_flags

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_RECORDS = sorted((_ROOT / "tests/launch").glob("*.txt"))
_BARE = {"PATH": "/usr/bin:/bin", "HOME": "/nowhere"}  # no gcloud, no project of one's own


def _command(record):
  return record.read_text().splitlines()[0].removeprefix("$ ")


def _shell(command, cwd=_ROOT, **env):
  return subprocess.run(["bash", "-c", command], cwd=cwd, env=_BARE | env, capture_output=True, text=True,
                        timeout=60, check=False)


@pytest.mark.parametrize("record", _RECORDS, ids=lambda p: p.stem)
def test_dry_runs_print_what_is_recorded(record):
  done = _shell(_command(record))
  assert done.returncode == 0, done.stderr
  expected = record.read_text().split("\n", 1)[1]
  assert done.stdout == expected, "python -m tests.launch.cluster_test writes them again"


def test_every_action_has_a_record():
  recorded = {tuple(_command(r).split()[1:3]) for r in _RECORDS}
  for script in ("tpu_queue", "tpu_gke", "gpu_slurm", "gpu_ssh"):
    text = (_ROOT / f"launch/{script}.sh").read_text()
    actions = re.findall(r"^  \*\) fail \"no action \$action: (.*)\"", text, re.MULTILINE)[0].split(", ")
    for action in actions:
      assert (f"launch/{script}.sh", action) in recorded


def test_dry_runs_run_nothing(tmp_path):
  """Replaces every program that a script could call, except the shell's own, by one that leaves a mark."""
  for name in ("gcloud", "xpk", "kubectl", "docker", "sbatch", "squeue", "scancel", "ssh", "scp", "git",
               "timeout", "tail", "touch", "mkdir", "rm", "env"):
    stub = tmp_path / name
    stub.write_text(f"#!/bin/bash\necho {name} >> {tmp_path}/called\n")
    stub.chmod(0o755)
  for record in _RECORDS:
    _shell(_command(record), PATH=f"{tmp_path}:/usr/bin:/bin")
  assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(("command", "message"), [
    ("tpu_queue.sh create --name=a --project=p --zone=z --topology=v5e --dry_run", "expected e.g. v5e:4x4"),
    ("tpu_queue.sh create --name=a --project=p --zone=z --topology=v9:4x4 --dry_run", "kinds are v4, v5e"),
    ("tpu_queue.sh create --name=a --topology=v5e:4x4 --dry_run", "--project=... is needed"),
    ("tpu_queue.sh create --nme=a", "no option --nme; there are: --batch --capacity"),
    ("tpu_queue.sh run --name=a --project=p --zone=z --config=c --workdir=/tmp/x --dry_run",
     "give a gs:// path"),
    ("tpu_queue.sh jump --name=a --project=p --zone=z", "no action jump"),
    ("tpu_gke.sh cluster --cluster=c --project=p --zone=z --topology=v5e:4x4 --capacity=x --dry_run",
     "choose spot"),
    ("gpu_slurm.sh run --name=a --dry_run", "--config=... is needed"),
    ("gpu_ssh.sh run --name=a --dry_run", "--hosts=... is needed"),
])
def test_mistakes_get_a_message(command, message):
  done = _shell(f"bash launch/{command}")
  assert done.returncode == 2
  assert message in done.stderr


@pytest.mark.parametrize("script", ["tpu_queue", "tpu_gke", "gpu_slurm", "gpu_ssh"])
def test_help_is_the_head_of_the_script(script):
  done = _shell(f"bash launch/{script}.sh --help")
  assert done.returncode == 0
  assert "--dry_run" in done.stdout
  assert "Undo" in done.stdout or "undo" in done.stdout
  assert "set -euo" not in done.stdout


def test_a_plan_gives_topology_and_flags_and_one_that_does_not_fit_is_refused(tmp_path):
  plan = json.loads((_ROOT / "tests/launch/plan.json").read_text())
  lines = plan_flags.lines(plan)
  assert lines[0] == "topology=v5e:4x4"
  assert {"--config.mesh.fsdp=4", "--config.batch_size=256", "--config.remat.decoder=full"} < set(lines)
  (tmp_path / "plan.json").write_text(json.dumps(plan | {"fits": False}))
  done = _shell(f"bash launch/tpu_queue.sh run --name=a --project=p --zone=z --config=c --workdir=gs://b/w "
                f"--plan={tmp_path}/plan.json --dry_run")
  assert done.returncode != 0
  assert "stage2 does not fit on v5e:4x4" in done.stderr


# ---- a fake cloud: gcloud prints what is in files, and sleep returns at once

_GCLOUD = """#!/bin/bash
echo "$*" >> "$CLOUD/calls"
first() { head -n 1 "$CLOUD/$1"; [ "$(wc -l < "$CLOUD/$1")" -le 1 ] || sed -i 1d "$CLOUD/$1"; }
case "$*" in
  *" create "*) touch "$CLOUD/made" ;;
  *" delete "*) rm "$CLOUD/made" ;;
  *describe*--format*) [ -f "$CLOUD/made" ] && first states ;;
  *describe*) [ -f "$CLOUD/made" ] ;;
  *"status run/"*) for word in $(first ends); do echo "$word"; done ;;
esac
"""


@pytest.fixture
def cloud(tmp_path):
  for name, text in {"gcloud": _GCLOUD, "sleep": "#!/bin/bash\n", "git": "#!/bin/bash\n"}.items():
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  (tmp_path / "states").write_text("ACTIVE\n")
  (tmp_path / "ends").write_text("absent\n")
  (tmp_path / "calls").write_text("")

  def act(action):
    done = _shell(f"bash launch/tpu_queue.sh {action} --name=pod --project=p --zone=z --topology=v5e:4x4 "
                  "--config=configs/stage2.py:1b --workdir=gs://b/w", CLOUD=str(tmp_path),
                  PATH=f"{tmp_path}:/usr/bin:/bin")
    calls = (tmp_path / "calls").read_text().splitlines()
    (tmp_path / "calls").write_text("")
    words = ("create", "delete", "scp", "host_run.sh start", "host_run.sh log", "setup.sh")
    return done, [next((w for w in words if f" {w}" in c or f"/{w}" in c), "") for c in calls]

  act.folder = tmp_path
  return act


def test_create_twice_creates_once_and_delete_twice_deletes_once(cloud):
  assert "create" in cloud("create")[1]
  done, calls = cloud("create")
  assert done.returncode == 0
  assert "create" not in calls
  assert "delete" in cloud("delete")[1]
  done, calls = cloud("delete")
  assert done.returncode == 0
  assert "delete" not in calls


def test_watch_creates_a_preempted_slice_again_and_ends_when_all_hosts_have_finished(cloud):
  (cloud.folder / "made").touch()
  (cloud.folder / "states").write_text("SUSPENDED\nACTIVE\n")
  (cloud.folder / "ends").write_text(
      "absent absent\nrunning running\n75 137\n75 137\nrunning running\n0 0\n")
  done, calls = cloud("watch")
  assert done.returncode == 0, done.stderr
  assert [c for c in calls if c] == [
      "delete", "create", "scp", "setup.sh", "host_run.sh start", "host_run.sh start"]
  assert "restart 1 of 100" in done.stdout
  assert "pod: finished" in done.stdout


def test_watch_ends_where_the_run_has_an_error_of_its_own(cloud):
  (cloud.folder / "made").touch()
  (cloud.folder / "ends").write_text("absent\n1 75\n")
  done, calls = cloud("watch")
  assert done.returncode == 2
  assert "pod failed" in done.stderr
  assert calls.count("host_run.sh start") == 1
  assert "host_run.sh log" in calls


def test_setup_ends_where_a_slice_is_not_granted(cloud):
  (cloud.folder / "made").touch()
  (cloud.folder / "states").write_text("FAILED\n")
  done, calls = cloud("setup")
  assert done.returncode == 1
  assert "pod is FAILED" in done.stderr
  assert "scp" not in calls


# ---- one host, with a fake training

@pytest.fixture
def host(tmp_path):
  shutil.copytree(_ROOT / "launch", tmp_path / "launch", ignore=shutil.ignore_patterns("__pycache__"))
  python = tmp_path / "python"
  python.write_text(
      "#!/bin/bash\ntrap 'echo saving; exit 75' TERM\necho \"args: $*\"\n"
      "for ((i = 0; i < 300; i++)); do [ ! -f end ] || exit \"$(cat end)\"; sleep 0.1; done\n")
  python.chmod(0o755)

  def act(arguments):
    done = _shell(f"bash launch/host_run.sh {arguments}", cwd=tmp_path, PYTHON=str(python))
    return done.stdout.strip()

  act.folder = tmp_path
  yield act
  act("stop run/x")


def _until(act, state):
  deadline = time.monotonic() + 20
  while act("status run/x") != state:
    assert time.monotonic() < deadline, act("log run/x")
    time.sleep(0.1)


def test_a_host_runs_once_records_its_exit_status_and_saves_on_stop(host):
  assert host("status run/x") == "absent"
  assert host("start run/x --config=c --note='a b'").endswith("started")
  _until(host, "running")
  assert host("start run/x --config=c").endswith("runs already")
  assert "args: -m unilip_jax.main --config=c --note=a b" in host("log run/x")
  assert host("stop run/x").endswith("asked to save and end")
  _until(host, "75")
  assert "saving" in host("log run/x")
  assert host("start run/x --config=c").endswith("started")
  _until(host, "running")
  (host.folder / "end").write_text("0")
  _until(host, "0")
  assert host("stop run/x").endswith("runs nothing")


_SSH = """#!/bin/bash
while [ "$1" = -o ]; do shift 2; done
cd "$CLOUD/$1" && shift && bash -c "$*"
"""


def test_watch_over_ssh_starts_each_host_with_its_number_and_again_after_a_stop(tmp_path):
  for host in ("a", "b"):
    shutil.copytree(_ROOT / "launch", tmp_path / host / "launch")
  for name, text in {
      "ssh": _SSH, "sleep": "#!/bin/bash\n/bin/sleep 0.05\n",
      "python": "#!/bin/bash\necho \"$*\" >> starts; [ \"$(wc -l < starts)\" -ge 2 ] || exit 75\n"}.items():
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  done = _shell("bash launch/gpu_ssh.sh watch --hosts=a,b --name=n --folder=. --config=c --workdir=gs://b/w",
                CLOUD=str(tmp_path), PATH=f"{tmp_path}:/usr/bin:/bin", PYTHON=str(tmp_path / "python"))
  assert done.returncode == 0, done.stdout + done.stderr
  assert "restart 1 of 100" in done.stdout
  for index, host in enumerate(("a", "b")):
    starts = (tmp_path / host / "starts").read_text().splitlines()
    assert len(starts) == 2
    assert starts[0] == starts[1]
    assert starts[0].endswith(f"--coordinator=a:8476 --process_count=2 --process_index={index}")


@pytest.mark.parametrize(("ends", "restarts", "stop", "status", "again"), [
    (0, 0, False, 0, False), (1, 0, False, 1, False), (75, 0, False, 0, True), (137, 3, False, 0, True),
    (75, 100, False, 75, False), (75, 0, True, 0, False)])
def test_slurm_queues_again_what_was_stopped_or_lost_a_node(tmp_path, ends, restarts, stop, status, again):
  for name, end in {"srun": ends, "scontrol": 0}.items():
    (tmp_path / name).write_text(f"#!/bin/bash\necho \"$@\" >> calls; exit {end}\n")
    (tmp_path / name).chmod(0o755)
  (tmp_path / "run").mkdir()
  shutil.copytree(_ROOT / "launch", tmp_path / "launch")
  if stop:
    (tmp_path / "run/n.stop").touch()
  done = _shell(f"bash {_ROOT}/launch/gpu_slurm_job.sh --config=c", SLURM_SUBMIT_DIR=str(tmp_path),
                SLURM_JOB_ID="7", SLURM_JOB_NAME="n", SLURM_RESTART_COUNT=str(restarts),
                PATH=f"{tmp_path}:/usr/bin:/bin")
  assert done.returncode == status, done.stderr
  first, *later = (tmp_path / "calls").read_text().splitlines()
  assert first.endswith(".venv/bin/python -m unilip_jax.main --config=c --multihost")
  assert later == (["requeue 7"] if again else [])


def _write() -> None:
  """Records the dry runs."""
  for record in _RECORDS:
    done = _shell(_command(record))
    assert done.returncode == 0, done.stderr
    record.write_text(f"$ {_command(record)}\n{done.stdout}")


if __name__ == "__main__":
  _write()
