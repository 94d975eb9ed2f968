"""Writes Shapes scenes and edits as WebDataset tars, in the layouts of the real data plus the scenes.

  <directory>/<split>-v3-seed0-8192/train-00000.tar …   members <key>.jpg, <key>.txt (caption),
                                                        <key>.json (scene, and turns about it)
  <directory>/<split>-edits-v3-seed0-8192/…             <key>.input.jpg, <key>.output.jpg, <key>.txt
                                                        (instruction), <key>.json (both scenes)
  <directory>/<split>-wishes-…, <split>-edits-wishes-…  the same, asked for as people do (paraphrases.py)
  <directory>/…/manifest.json                           written last: the settings

The folder's name holds every setting, so that a tar is never one of other settings: a second call
finds the manifest and returns at once, an interrupted one goes on with the tars that are missing, and
hosts that share a folder may all call it.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import dataclasses
import io
import json
import multiprocessing
import os
import tarfile

from etils import epath
import numpy as np
from PIL import Image

from unilip_jax.common import atomic_io
from unilip_jax.shapes import captions, edits, language, paraphrases, questions, render, scene

VERSION = 4  # raise it when scenes, pixels or captions change
COUNTS = {"train": 8192, "test": 512, "unseen": 256}
_PER_TAR = 1024
_QUALITY = 95
_DESCRIBE = "describe the image."
_DESCRIBED = 0.25  # share of images whose turn is the description; of the others questions are asked


def ensure_tars(
    directory: epath.PathLike, split: str, *, count: int | None = None, seed: int = 0,
    sizes: Sequence[str] = scene.SIZES, with_edits: bool = False, paraphrased: bool = False,
    workers: int | None = None
) -> list[epath.Path]:
  """Makes sure that a split's tars are there.

  Args:
    directory: local or gs://.
    split: of scene.SPLITS.
    count: samples; defaults to COUNTS.
    seed: of the scenes.
    sizes: of the objects; ("large",) is the easy world.
    with_edits: pairs of scenes with an instruction, in place of scenes with captions.
    paraphrased: captions of the six categories alone, and instructions, as paraphrases.py puts them.
    workers: processes; defaults to the number of cores.

  Returns:
    Paths of the tars, in order.

  Raises:
    ValueError: for another split, an unknown size, or no scenes.
  """
  scene.check(split, sizes)
  count = COUNTS[split] if count is None else count
  if count < 1:
    raise ValueError(f"blocks {split}: count {count}; ask for at least 1 scene")
  sizes = tuple(s for s in scene.SIZES if s in sizes)
  kind = "-edits" * with_edits + "-paraphrased" * paraphrased
  only = "" if sizes == scene.SIZES else f"-{'-'.join(sizes)}"
  folder = epath.Path(directory) / f"{split}{kind}{only}-v{VERSION}-seed{seed}-{count}"
  starts = range(0, count, _PER_TAR)
  paths = [folder / f"{split}-{i:05d}.tar" for i in range(len(starts))]
  manifest = folder / "manifest.json"
  if manifest.exists() and all(p.exists() for p in paths):
    return paths
  folder.mkdir(parents=True, exist_ok=True)
  sample = edit_sample if with_edits else scene_sample
  jobs = [(os.fspath(p), sample, split, seed, sizes, paraphrased, start, min(start + _PER_TAR, count))
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
  settings = {"version": VERSION, "split": split, "count": count, "seed": seed, "sizes": sizes,
              "edits": with_edits, "paraphrased": paraphrased}
  atomic_io.write(manifest, json.dumps(settings).encode())
  return paths


def scene_sample(
    seed: int, index: int, split: str, sizes: Sequence[str], paraphrased: bool = False
) -> dict[str, bytes]:
  """{suffix: content} of a scene: a pure function of its arguments."""
  picture = captions.sample_scene(seed, index, split, sizes, plain=not paraphrased)
  rng = np.random.default_rng((seed, scene.SPLITS.index(split), index, 3))
  turns = [[_DESCRIBE, language.describe(picture)]]
  if rng.random() > _DESCRIBED:  # never both: a reader of the description could answer without the image
    asked = questions.questions(picture, rng, allow_unseen=split == "unseen")
    turns = [[asked[i].text, asked[i].answer] for i in rng.permutation(len(asked))]
  if paraphrased:  # of full accounts the end would be cut off: wishes take more tokens
    words = captions.caption(picture, rng, described=0.0).text
    text = paraphrases.paraphrase(words, paraphrases.PROMPTS, index)
  else:
    text = captions.caption(picture, rng).text
  return {"jpg": _jpeg(picture), "txt": text.encode(),
          "json": json.dumps(picture.to_json() | {"turns": turns}).encode()}


def edit_sample(
    seed: int, index: int, split: str, sizes: Sequence[str], paraphrased: bool = False
) -> dict[str, bytes]:
  """{suffix: content} of an edit: a pure function of its arguments."""
  one = sample_edit(seed, index, split, sizes, paraphrased)
  return {"input.jpg": _jpeg(one.source), "output.jpg": _jpeg(one.target),
          "txt": one.instruction.encode(),
          "json": json.dumps({"category": one.category, "source": one.source.to_json(),
                              "target": one.target.to_json()}).encode()}


def sample_edit(
    seed: int, index: int, split: str, sizes: Sequence[str] = scene.SIZES, paraphrased: bool = False
) -> edits.Edit:
  """The edit at `index` of a split: categories in turn, each of a scene that it is possible for."""
  rng = np.random.default_rng((seed, scene.SPLITS.index(split), index, 4))
  category = edits.EDITS[index % len(edits.EDITS)]
  one = None
  while one is None:
    source = scene.sample(int(rng.integers(2**31)), index, split, sizes=sizes)
    one = edits.edit(source, category, rng, sizes=sizes)
  if paraphrased:  # each category in every way
    asked = paraphrases.paraphrase(one.instruction, paraphrases.EDITS, index // len(edits.EDITS))
    one = dataclasses.replace(one, instruction=asked)
  return one


def _jpeg(picture: scene.Scene) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(render.render(picture)).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
  return buffer.getvalue()


def _write_tar(
    path: str, sample: Callable[..., dict[str, bytes]], split: str, seed: int,
    sizes: tuple[str, ...], paraphrased: bool, start: int, stop: int
) -> None:
  """Writes one tar; one that exists is whole."""
  with atomic_io.open_file(path) as f, tarfile.open(fileobj=f, mode="w") as tar:
    for index in range(start, stop):
      for suffix, content in sample(seed, index, split, sizes, paraphrased).items():
        member = tarfile.TarInfo(f"{split}{index:07d}.{suffix}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
