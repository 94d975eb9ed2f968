"""gs:// against a real server on loopback: a run from tars in a bucket, and a storage that fails."""

import io
import itertools
import json
import os
import tarfile
import time

import pytest

from tests import micro
from tests.buckets import proxy as proxy_lib
from tests.buckets import server
from tests.campaigns import forks

_WAIT = 120
_STEPS = 6


@pytest.fixture(scope="module")
def children():
  with forks.Server() as processes:
    yield processes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Folder with images, the same as tars, and the URL of a server that has the tars."""
  folder = tmp_path_factory.mktemp("buckets")
  files = sorted(micro.write_images(folder / "images").iterdir())
  (folder / "data").mkdir()
  with server.running() as url:
    for i, part in enumerate((files[:10], files[10:])):
      data = io.BytesIO()
      with tarfile.open(fileobj=data, mode="w") as tar:
        for file in part:
          tar.add(file, file.name)
      server.write(url, f"data/{i:05d}.tar", data.getvalue())
      (folder / f"data/{i:05d}.tar").write_bytes(data.getvalue())
    yield folder, url


def _fields(root, **more):
  data = f"{root}/data/*.tar"
  return {"data__train": [["tar", data, 1.0]], "eval__sets": [["images", "native", "tar", data]],
          "sample_every_steps": 0, "total_steps": _STEPS, "gan__start_step": 3} | more


class _Commands:
  """Runs commands in forked children."""

  def __init__(self, children, folder, url):
    self._children, self._folder, self._env = children, folder, server.environment(url)
    self._cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(folder / "xla")
    self._number = itertools.count()

  def start(self, function, *arguments):
    log = self._folder / f"log-{next(self._number)}-{function.rpartition(':')[2]}.txt"
    return self._children.start(function, *arguments, log=log, env=self._env)

  def run(self, function, *arguments):
    self.finish(self.start(function, *arguments))

  def train(self, stage, workdir, **fields):
    root = "gs://bucket" if workdir.startswith("gs://") else self._folder
    return self.start("tests.campaigns.runs:train", self._cache, stage, "", workdir,
                      _fields(root, **fields))

  def finish(self, child):
    status = child.wait(_WAIT)
    assert status == 0, child.output()[-3000:]

  def evaluate(self, stage, workdir):
    self.run("tests.campaigns.runs:evaluates", self._cache, stage, "", workdir, _fields("gs://bucket"))


def _run_killed_and_resumed(commands, url, stage, folder):
  """Trains in the bucket, kills after the first checkpoint, and continues; compares with a local run."""
  local, remote = str(folder / f"local-{stage}"), f"gs://bucket/{stage}"
  commands.finish(commands.train(stage, local))
  child = commands.train(stage, remote, sleep=0.4)
  deadline = time.monotonic() + _WAIT
  while f"{stage}/checkpoints/3/commit_success.txt" not in server.names(url, f"{stage}/checkpoints/"):
    assert child.poll() is None, child.output()[-3000:]
    assert time.monotonic() < deadline
    time.sleep(0.05)
  child.kill()
  assert f"{stage}/checkpoints/{_STEPS}/commit_success.txt" not in server.names(url, stage)
  child = commands.train(stage, remote)
  commands.finish(child)
  assert "starting at step 3 from this workdir" in child.output()
  commands.run("tests.buckets.clients:compare_runs", local, remote, _STEPS)
  return local, remote


@pytest.mark.slow
def test_a_run_from_tars_in_a_bucket_is_resumed_evaluated_and_exported(children, place):
  folder, url = place
  commands = _Commands(children, folder, url)
  local, remote = _run_killed_and_resumed(commands, url, "stage2", folder)
  commands.evaluate("stage2", remote)
  results = json.loads(server.read(url, "stage2/results.json"))
  rows = map(json.loads, server.read(url, "stage2/metrics.jsonl").splitlines())
  assert results["step"] == _STEPS
  scores = {name.removeprefix("eval/"): value for row in rows if row["step"] == _STEPS
            for name, value in row.items() if name.startswith("eval/")}
  assert scores == pytest.approx(results["metrics"], rel=1e-5)
  commands.run("tests.buckets.clients:export", [remote, local],
               ["gs://bucket/export/unilip.pth", str(folder / "local.pth")])
  assert server.read(url, "export/unilip.pth") == (folder / "local.pth").read_bytes()


@pytest.mark.thorough
def test_a_run_through_a_storage_that_fails_now_and_then_is_the_same(children, place):
  folder, url = place
  count = itertools.count()

  def rule(request):
    number = next(count)
    if number % 23 == 7:
      return proxy_lib.Fault(status=503)
    if number % 29 == 5 and request.method == "GET":
      return proxy_lib.Fault(keep=0.5)
    return proxy_lib.Fault(delay=0.2) if number % 31 == 3 else None

  with proxy_lib.Proxy(url, rule) as proxy:
    _run_killed_and_resumed(_Commands(children, folder, proxy.url), url, "stage1", folder)
    assert proxy.faults > 20


def test_inputs_are_staged_into_a_bucket_once_and_found_there(children, place, tmp_path):
  _, url = place
  sizes = {"weights/perceptual/model.json": 10, "weights/perceptual/arrays/d/0": 90,
           "weights/internvl3-1b/tokenizer.json": 7, "data/imagenet-val/0.tar": 300,
           "data/imagenet-val/1.tar": 200, "data/imagenet-val/notes.txt": 5}
  for name, size in sizes.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"x" * size)
  commands = _Commands(children, tmp_path, url)

  def check(*more):
    child = commands.start("tests.buckets.clients:check", "--config=unilip_jax/configs/stage2.py:1b",
                           "--config.root=gs://bucket/inputs", *more)
    assert child.wait(_WAIT) == 1, child.output()[-3000:]  # some are missing
    return child.output()

  assert "7 inputs, 0.00 GB, 7 missing" in check()
  staged = check(f"--stage_from={tmp_path}")
  assert "7 inputs, 0.00 GB, 4 missing" in staged
  assert "2 files, 0.00 GB  gs://bucket/inputs/data/imagenet-val/*.tar" in staged
  assert "2 files, 0.00 GB  gs://bucket/inputs/weights/perceptual" in staged
  assert sorted(server.names(url, "inputs/")) == [f"inputs/{name}" for name in sorted(sizes)
                                               if not name.endswith(".txt")]  # it matches no pattern
  assert len(server.read(url, "inputs/data/imagenet-val/0.tar")) == 300
  assert "copied 0 files" in check(f"--stage_from={tmp_path}")


def test_faults_that_end_are_retried(children, place):
  folder, url = place
  server.write(url, "small/object", b"0123456789abcdef")
  _Commands(children, folder, url).run("tests.buckets.clients:write_tree", "gs://bucket/arrays")
  faults = {0: proxy_lib.Fault(status=503), 1: proxy_lib.Fault(keep=0.5), 2: proxy_lib.Fault(delay=0.8)}
  slow = {"TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "1"}

  def rule(request):
    """The first answer of each request is refused, the second cut, the third late."""
    fault = faults.get(request.number)
    is_read = request.method == "GET"
    return fault if is_read or (fault is not None and fault.status) else None

  with proxy_lib.Proxy(url, rule) as proxy:
    commands = _Commands(children, folder, proxy.url)
    commands._env |= slow
    commands.run("tests.buckets.clients:survive", "gs://bucket/small/object", "gs://bucket/arrays")
    assert proxy.faults > 10


@pytest.mark.parametrize("fault", [
    proxy_lib.Fault(status=503), proxy_lib.Fault(keep=0.5), proxy_lib.Fault(delay=0.3)],
    ids=["refused", "cut", "late"])
def test_a_storage_that_goes_on_failing_is_named(children, place, fault):
  folder, url = place
  server.write(url, "small/object", b"0123456789abcdef")
  with proxy_lib.Proxy(url, lambda request: fault) as proxy:
    begin = time.monotonic()
    _Commands(children, folder, proxy.url).run("tests.buckets.clients:give_up", "gs://bucket/small/object")
    assert time.monotonic() - begin < 30


def test_records_are_read_without_the_bytes_around_them(children, place):
  """A record of 100 KB costs one request of 100 KB: gcsfs' files read 5 MiB ahead."""
  folder, url = place
  server.write(url, "large/object", bytes(8_000_000))
  requests = []
  with proxy_lib.Proxy(url, requests.append) as proxy:
    _Commands(children, folder, proxy.url).run(
        "unilip_jax.data.files:read_range", "gs://bucket/large/object", 1000, 100_000)
    assert [r.method for r in requests] == ["GET"]
    assert proxy.bytes < 200_000
