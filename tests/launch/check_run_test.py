"""Dry runs refuse an unknown topology, config, field or value, and setup finds or installs a Python."""

import pathlib
import shutil
import subprocess

import pytest

from launch import check_run

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_RUN = {
    "tpu_queue": "run --name=a --project=p --zone=z --workdir=gs://b/w --topology=v6e:8x8",
    "tpu_gke": ("run --cluster=c --name=a --image=i --topology=v5e:4x4 --project=p --zone=z "
                "--workdir=gs://b/w"),
    "gpu_slurm": "run --name=a --workdir=/w",
    "gpu_ssh": "run --hosts=a --name=n --workdir=/w",
}


def _shell(command, **env):
  return subprocess.run(["bash", "-c", command], cwd=_ROOT, capture_output=True, text=True, timeout=60,
                        env={"PATH": "/usr/bin:/bin", "HOME": "/nowhere"} | env, check=False)


@pytest.mark.parametrize("script", _RUN)
@pytest.mark.parametrize(("config", "flags", "message"), [
    ("configs/stage9.py:1b", "",
     "no such file configs/stage9.py; the nearest is configs/stage2.py. Installed are configs/"),
    ("configs/stage2.py:2b", "", "unknown size '2b'; choose tiny, 1b, 3b"),
    ("configs/stage2.py:1b", "--config.batchsize=3", "the nearest is --config.batch_size"),
    ("configs/stage2.py:1b", "--config.batch_size=many", "--config.batch_size=many"),
    ("configs/gen2.py:1b", "--config.remat.dit=some", "--config.remat.dit='some': choose 'none' or"),
    ("configs/gen2.py:1b", "--sweeep", "unknown flag --sweeep"),
])
def test_every_script_refuses_it_in_a_dry_run(script, config, flags, message):
  done = _shell(f"bash launch/{script}.sh {_RUN[script]} --config={config} --dry_run -- {flags}")
  assert done.returncode == 2
  assert message in done.stderr
  assert "Traceback" not in done.stderr
  assert not done.stdout


def test_the_steps_of_the_reproduction_are_checked_too():
  done = _shell("bash launch/train_1b.sh --dry_run --only=stage1 -- --config.sed=3")
  assert done.returncode == 2
  assert "the nearest is --config.seed" in done.stderr


@pytest.mark.parametrize(("name", "near"), [
    ("v5e:4x5", "v5e:4x8"), ("v6e:16x16x1", "v6e:16x16"), ("v5p:4x4x5", "v5p:4x4x[48]"),
    ("v4:2x2x3", "v4:2x2x")])
def test_a_topology_that_nobody_rents_out_names_the_nearest(name, near):
  with pytest.raises(ValueError, match=f"no such slice; the nearest is {near}"):
    check_run.check_topology(name)


def test_known_topologies_count_their_chips():
  assert check_run.check_topology("v5e:16x16*2") == 512
  assert check_run.check_topology("v4:2x2x4") == 16


@pytest.mark.parametrize("name", ["v5e:4x4*0", "v4:2x2x4*0", "v4:2x2x4*x", "v5e:4x4*"])
def test_a_topology_without_slices_is_refused(name):
  with pytest.raises(ValueError, match="number of slices of at least 1"):
    check_run.check_topology(name)


def test_no_slices_are_refused_by_the_scripts():
  done = _shell("bash launch/tpu_queue.sh create --name=a --project=p --zone=z --dry_run "
                "'--topology=v5e:4x4*0'")
  assert (done.returncode, done.stdout) == (2, "")
  assert "expected e.g. v5e:4x4" in done.stderr


@pytest.mark.parametrize(("text", "message"), [
    ("def get_config(:", "SyntaxError: invalid syntax"),
    ("import no_such_module", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
    ("x = 1", "has no attribute 'get_config'; correct the file"),
    ("def get_config():\n  return 1 / 0", "line 2: ZeroDivisionError"),
    ("def get_config():\n  return {}", "returns a dict; return a ConfigDict")])
def test_a_config_of_the_user_that_fails_is_named(tmp_path, text, message):
  path = tmp_path / "mine.py"
  path.write_text(text)
  done = _shell(f"bash launch/gpu_slurm.sh {_RUN['gpu_slurm']} --config={path} --dry_run")
  assert (done.returncode, done.stdout) == (2, "")
  assert f"--config={path}" in done.stderr
  assert message in done.stderr
  assert "Traceback" not in done.stderr


@pytest.mark.parametrize("script", ["tpu_queue.sh create --name=a", "tpu_gke.sh cluster --cluster=a"])
def test_scripts_refuse_an_unknown_topology(script):
  done = _shell(f"bash launch/{script} --project=p --zone=z --topology=v5e:4x5 --dry_run")
  assert done.returncode == 2
  assert "no such slice; the nearest is v5e:4x8" in done.stderr


@pytest.mark.parametrize(("arguments", "message"), [
    (["--config.batch_size=500"], "batch_size=500 does not divide over 256 devices"),
    ([], "examples of batch_size=512 do not divide over 256 devices; unilip plan chooses"),
    (["--config.batch_size=768", "--config.data.part_multiple=256", "--config.mesh.fsdp=6"],
     "mesh.fsdp=6 does not divide 256 devices")])
def test_a_batch_or_mesh_that_does_not_divide_is_refused(arguments, message):
  run = _RUN["tpu_gke"].replace("4x4", "16x16")
  done = _shell(f"bash launch/tpu_gke.sh {run} --config=configs/gen2.py:1b --dry_run -- "
                + " ".join(arguments))
  assert done.returncode == 2
  assert message in done.stderr


# ---- a Python for the hosts

@pytest.fixture
def host(tmp_path):
  """An image whose python3 is 3.10; pip puts a uv there that pretends to install."""
  (tmp_path / "launch").mkdir()
  (tmp_path / "launch/find_python.sh").write_text((_ROOT / "launch/find_python.sh").read_text())
  programs = tmp_path / "bin"
  programs.mkdir()
  for name in ("bash", "env", "dirname", "mkdir", "cat", "chmod"):
    (programs / name).symlink_to(shutil.which(name))
  python = programs / "python3"
  python.write_text("""#!/bin/bash
echo "$*" >> calls
case "$*" in
  -V) echo Python 3.10.12 ;;
  *ensurepip*) exit 1 ;;
  "-m pip install"*)
    mkdir -p .uv/bin
    echo '#!/bin/bash
[ "$2" = install ] && echo "$*" >> calls || echo /opt/python3.12' > .uv/bin/uv
    chmod +x .uv/bin/uv ;;
esac
""")
  python.chmod(0o755)

  def find():
    return subprocess.run(["bash", "launch/find_python.sh"], cwd=tmp_path, env={"PATH": str(programs)},
                          capture_output=True, text=True, timeout=60, check=False)

  find.folder, find.programs = tmp_path, programs
  return find


def test_an_image_with_python_3_10_gets_3_12_by_uv(host):
  done = host()
  assert (done.returncode, done.stdout) == (0, "/opt/python3.12\n"), done.stderr
  calls = (host.folder / "calls").read_text()
  assert "-m pip install --quiet --target .uv uv==" in calls
  assert "python install 3.12" in calls
  assert "Python 3.10.12; 3.11 or newer is needed" in done.stderr
  assert "find_python.sh" in (_ROOT / "launch/setup.sh").read_text()


def test_a_newer_python_that_is_installed_is_taken(host):
  newer = host.programs / "python3.12"
  newer.write_text("#!/bin/bash\n")
  newer.chmod(0o755)
  assert host().stdout == f"{newer}\n"
  assert "-m pip" not in (host.folder / "calls").read_text()  # python3 was asked, and nothing installed


def test_the_python_of_the_hosts_can_be_given():
  done = _shell("bash launch/tpu_queue.sh setup --name=a --project=p --zone=z --python=/opt/py312 "
                "--dry_run")
  assert "ACCELERATOR=tpu PYTHON=/opt/py312 bash unilip_jax/launch/setup.sh" in done.stdout.replace("'", "")
