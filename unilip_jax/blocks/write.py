"""Writes Blocks scenes as WebDataset tars, in the layout of the real data (jpg, txt) plus the scene.

  <directory>/<split>-00000.tar …   members <key>.jpg, <key>.txt (caption), <key>.json (scene)
  <directory>/<split>.json          written last: count, seed, version

A second call finds the manifest and returns at once; an interrupted one goes on with the next tar.
"""

import concurrent.futures
import io
import json
import multiprocessing
import os
import tarfile

from etils import epath
from PIL import Image

from unilip_jax.blocks import render, scene

VERSION = 1
COUNTS = {"train": 8192, "test": 512}
_PER_TAR = 1024
_QUALITY = 95


def ensure_tars(
    directory: epath.PathLike, split: str, *, count: int | None = None, seed: int = 0,
    workers: int | None = None
) -> list[epath.Path]:
  """Makes sure that a split's tars are there.

  Args:
    directory: local or gs://.
    split: "train" or "test".
    count: scenes; defaults to COUNTS.
    seed: of the scenes.
    workers: processes; defaults to the number of cores.

  Returns:
    Paths of the tars, in order.
  """
  directory = epath.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  count = COUNTS[split] if count is None else count
  wanted = {"version": VERSION, "split": split, "count": count, "seed": seed}
  starts = range(0, count, _PER_TAR)
  paths = [directory / f"{split}-{i:05d}.tar" for i in range(len(starts))]
  manifest = directory / f"{split}.json"
  same = manifest.exists() and json.loads(manifest.read_text()) == wanted
  if same and all(p.exists() for p in paths):
    return paths
  stale = manifest.exists() and not same  # tars of other settings must not stay
  jobs = [(os.fspath(p), split, seed, start, min(start + _PER_TAR, count))
          for p, start in zip(paths, starts) if stale or not p.exists()]
  workers = min(workers or os.cpu_count() or 1, len(jobs))
  if workers <= 1:
    for job in jobs:
      _write_tar(*job)
  else:
    # Spawned, never forked: the parent may hold an accelerator's threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
      list(pool.map(_write_tar, *zip(*jobs)))
  manifest.write_text(json.dumps(wanted))
  return paths


def _write_tar(path: str, split: str, seed: int, start: int, stop: int) -> None:
  """Writes one tar beside its name, then renames it: a tar that exists is whole."""
  temporary = epath.Path(f"{path}.tmp{os.getpid()}")
  with temporary.open("wb") as f, tarfile.open(fileobj=f, mode="w") as tar:
    for index in range(start, stop):
      picture = scene.sample(seed, index, split)
      buffer = io.BytesIO()
      Image.fromarray(render.render(picture)).save(
          buffer, "JPEG", quality=_QUALITY, subsampling=0)
      key = f"{split}{index:07d}"
      for suffix, content in (("jpg", buffer.getvalue()),
                              ("txt", scene.describe(picture).encode()),
                              ("json", json.dumps(picture.to_json()).encode())):
        member = tarfile.TarInfo(f"{key}.{suffix}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
  temporary.replace(path)
