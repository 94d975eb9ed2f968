"""Writes Blocks scenes as WebDataset tars, in the layout of the real data (jpg, txt) plus the scene.

  <directory>/<split>-v1-seed0-8192/train-00000.tar …   members <key>.jpg, <key>.txt (caption),
                                                        <key>.json (scene)
  <directory>/<split>-v1-seed0-8192/manifest.json       written last: the settings

The folder's name holds every setting, so that a tar is never one of other settings: a second call
finds the manifest and returns at once, an interrupted one goes on with the tars that are missing, and
hosts that share a folder may all call it.
"""

from collections.abc import Sequence
import concurrent.futures
import io
import json
import multiprocessing
import os
import tarfile
import uuid

from etils import epath
from PIL import Image

from unilip_jax.blocks import render, scene

VERSION = 1  # raise it when scenes, pixels or captions change
COUNTS = {"train": 8192, "test": 512}
_PER_TAR = 1024
_QUALITY = 95


def ensure_tars(
    directory: epath.PathLike, split: str, *, count: int | None = None, seed: int = 0,
    sizes: Sequence[str] = scene.SIZES, workers: int | None = None
) -> list[epath.Path]:
  """Makes sure that a split's tars are there.

  Args:
    directory: local or gs://.
    split: "train" or "test".
    count: scenes; defaults to COUNTS.
    seed: of the scenes.
    sizes: of the objects; ("large",) is the easy world.
    workers: processes; defaults to the number of cores.

  Returns:
    Paths of the tars, in order.

  Raises:
    ValueError: for another split, an unknown size, or no scenes.
  """
  scene.sample(seed, 0, split, sizes=sizes)  # refuses what no scene can be drawn for
  count = COUNTS[split] if count is None else count
  if count < 1:
    raise ValueError(f"blocks {split}: count {count}; ask for at least 1 scene")
  sizes = tuple(s for s in scene.SIZES if s in sizes)
  only = "" if sizes == scene.SIZES else f"-{'-'.join(sizes)}"
  folder = epath.Path(directory) / f"{split}{only}-v{VERSION}-seed{seed}-{count}"
  starts = range(0, count, _PER_TAR)
  paths = [folder / f"{split}-{i:05d}.tar" for i in range(len(starts))]
  manifest = folder / "manifest.json"
  if manifest.exists() and all(p.exists() for p in paths):
    return paths
  folder.mkdir(parents=True, exist_ok=True)
  jobs = [(os.fspath(p), split, seed, sizes, start, min(start + _PER_TAR, count))
          for p, start in zip(paths, starts) if not p.exists()]
  workers = min(workers or os.cpu_count() or 1, len(jobs))
  if workers <= 1:
    for job in jobs:
      _write_tar(*job)
  else:
    # Spawned, never forked: the parent may hold an accelerator's threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
      list(pool.map(_write_tar, *zip(*jobs)))
  settings = {"version": VERSION, "split": split, "count": count, "seed": seed, "sizes": sizes}
  temporary = _temporary(manifest)
  temporary.write_text(json.dumps(settings))
  temporary.replace(manifest)
  return paths


def _write_tar(
    path: str, split: str, seed: int, sizes: tuple[str, ...], start: int, stop: int
) -> None:
  """Writes one tar beside its name, then renames it: a tar that exists is whole."""
  temporary = _temporary(epath.Path(path))
  with temporary.open("wb") as f, tarfile.open(fileobj=f, mode="w") as tar:
    for index in range(start, stop):
      picture = scene.sample(seed, index, split, sizes=sizes)
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


def _temporary(path: epath.Path) -> epath.Path:
  """A name beside `path` that no other process or host has."""
  return path.parent / f"{path.name}.tmp-{uuid.uuid4().hex}"
