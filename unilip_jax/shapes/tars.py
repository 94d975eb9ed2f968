"""Writes scenes and edits of Shapes as WebDataset tars, in the layouts of the real data plus the scenes.

  <directory>/<split>-v4-seed0-8192/train-00000.tar …   members <key>.jpg, <key>.txt (caption),
                                                        <key>.json (scene, and turns about it)
  <directory>/<split>-edits-v4-seed0-8192/…             <key>.input.jpg, <key>.output.jpg, <key>.txt
                                                        (instruction), <key>.json (both scenes)
  <directory>/<split>[-edits]-paraphrased-v4-…          the same with paraphrased texts (paraphrases.py)
  <directory>/<split>[-edits]-square-wide-tall-v4-…     the same on several canvases
  <directory>/…/manifest.json                           the settings, written last

The folder's name has every setting, so that tars of other settings are never read. A second call reads
the manifest and returns at once. A call after an interruption writes the missing tars. Hosts that share a
folder may all call it.
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

from unilip_jax.common import atomic_io, child
from unilip_jax.shapes import captions, edits, language, paraphrases, questions, render, scene

VERSION = 4  # to be raised when scenes, pixels or captions change
COUNTS = {"train": 8192, "test": 512, "unseen": 256}
_PER_TAR = 1024
_SQUARE = ("square",)
_QUALITY = 95
_DESCRIBE = "describe the image."
_DESCRIBED = 0.25  # share of images whose turn is the description; the others have questions


def ensure_tars(
    directory: epath.PathLike, split: str, *, count: int | None = None, seed: int = 0,
    sizes: Sequence[str] = scene.SIZES, with_edits: bool = False, paraphrased: bool = False,
    canvases: Sequence[str] = _SQUARE, workers: int | None = None
) -> list[epath.Path]:
  """Writes the tars of a split that do not exist yet.

  Args:
    directory: local or gs://.
    split: of scene.SPLITS.
    count: number of samples; None takes COUNTS.
    seed: of the scenes.
    sizes: of the objects, of scene.SIZES.
    with_edits: whether samples are pairs of scenes with an instruction instead of scenes with a caption.
    paraphrased: whether texts are paraphrased; captions are then of the six categories only.
    canvases: of render.CANVASES, among which samples are divided evenly at random.
    workers: processes; None takes the number of cores.

  Returns:
    Paths of the tars, in order.

  Raises:
    ValueError: for another split, an unknown size, or no scenes.
  """
  scene.check(split, sizes)
  count = COUNTS[split] if count is None else count
  if count < 1:
    raise ValueError(f"shapes {split}: count={count}; it must be at least 1")
  sizes = tuple(s for s in scene.SIZES if s in sizes)
  canvases = check_canvases(canvases)
  kind = "-edits" * with_edits + "-paraphrased" * paraphrased
  only = "" if sizes == scene.SIZES else f"-{'-'.join(sizes)}"
  only += "" if canvases == _SQUARE else f"-{'-'.join(canvases)}"
  folder = epath.Path(directory) / f"{split}{kind}{only}-v{VERSION}-seed{seed}-{count}"
  starts = range(0, count, _PER_TAR)
  paths = [folder / f"{split}-{i:05d}.tar" for i in range(len(starts))]
  manifest = folder / "manifest.json"
  if manifest.exists() and all(p.exists() for p in paths):
    return paths
  folder.mkdir(parents=True, exist_ok=True)
  sample = edit_sample if with_edits else scene_sample
  jobs = [(os.fspath(p), sample, split, seed, sizes, paraphrased, canvases, start,
           min(start + _PER_TAR, count))
          for p, start in zip(paths, starts) if not p.exists()]
  workers = min(workers or os.cpu_count() or 1, len(jobs))
  if workers <= 1:
    for job in jobs:
      _write_tar(*job)
  else:
    # Spawned, never forked: the parent may hold an accelerator's threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=child.end_with_parent) as pool:
      list(pool.map(_write_tar, *zip(*jobs)))
  settings = {"version": VERSION, "split": split, "count": count, "seed": seed, "sizes": sizes,
              "edits": with_edits, "paraphrased": paraphrased, "canvases": canvases}
  atomic_io.write(manifest, json.dumps(settings).encode())
  return paths


def check_canvases(canvases: Sequence[str]) -> tuple[str, ...]:
  """Returns canvases in the order of render.CANVASES.

  Raises:
    ValueError: for an unknown canvas, or none.
  """
  if isinstance(canvases, str) or not canvases or not set(canvases) <= set(render.CANVASES):
    raise ValueError(f"canvases {canvases!r}; choose several of {', '.join(render.CANVASES)}")
  return tuple(c for c in render.CANVASES if c in canvases)


def _canvas(seed: int, index: int, split: str, canvases: Sequence[str]) -> str:
  rng = np.random.default_rng((seed, scene.SPLITS.index(split), index, 7))
  return scene.pick(canvases, rng)


def scene_sample(
    seed: int, index: int, split: str, sizes: Sequence[str], paraphrased: bool = False,
    canvases: Sequence[str] = _SQUARE
) -> dict[str, bytes]:
  """Makes the members of a scene, {suffix: content}: a pure function of its arguments."""
  one = captions.sample_scene(seed, index, split, sizes, plain=not paraphrased)
  rng = np.random.default_rng((seed, scene.SPLITS.index(split), index, 3))
  turns = [[_DESCRIBE, language.describe(one)]]
  if rng.random() > _DESCRIBED:  # never both: the description would answer the questions without the image
    about = questions.questions(one, rng, allow_unseen=split == "unseen")
    turns = [[about[i].text, about[i].answer] for i in rng.permutation(len(about))]
  if paraphrased:
    words = captions.caption(one, rng, described=0.0).text  # see sample_caption
    text = paraphrases.paraphrase(words, paraphrases.PROMPTS, index)
  else:
    text = captions.caption(one, rng).text
  return {"jpg": jpeg(one, _canvas(seed, index, split, canvases)), "txt": text.encode(),
          "json": json.dumps(one.to_json() | {"turns": turns}).encode()}


def sample_caption(
    seed: int, index: int, split: str, sizes: Sequence[str] = scene.SIZES) -> captions.Caption:
  """Samples the caption at `index` of a split, in one of the six categories.

  It is never a full description: paraphrased, that has more tokens than fit.
  """
  one = captions.sample_scene(seed, index, split, sizes, plain=False)
  rng = np.random.default_rng((seed, scene.SPLITS.index(split), index, 6))
  return captions.caption(one, rng, described=0.0)


def edit_sample(
    seed: int, index: int, split: str, sizes: Sequence[str], paraphrased: bool = False,
    canvases: Sequence[str] = _SQUARE
) -> dict[str, bytes]:
  """Makes the members of an edit, {suffix: content}: a pure function of its arguments."""
  one = sample_edit(seed, index, split, sizes, paraphrased)
  canvas = _canvas(seed, index, split, canvases)
  return {"input.jpg": jpeg(one.source, canvas), "output.jpg": jpeg(one.target, canvas),
          "txt": one.instruction.encode(),
          "json": json.dumps(one.to_json()).encode()}


def sample_edit(
    seed: int, index: int, split: str, sizes: Sequence[str] = scene.SIZES, paraphrased: bool = False
) -> edits.Edit:
  """Samples the edit at `index` of a split; categories alternate, and scenes are those that allow them."""
  rng = np.random.default_rng((seed, scene.SPLITS.index(split), index, 4))
  category = edits.EDITS[index % len(edits.EDITS)]
  one = None
  while one is None:
    source = scene.sample(int(rng.integers(2**31)), index, split, sizes=sizes)
    one = edits.edit(source, category, rng, sizes=sizes)
  if paraphrased:  # every category occurs in every template
    text = paraphrases.paraphrase(one.instruction, paraphrases.EDITS, index // len(edits.EDITS))
    one = dataclasses.replace(one, instruction=text)
  return one


def jpeg(one: scene.Scene, canvas: str = "square") -> bytes:
  """Renders a scene as JPEG."""
  buffer = io.BytesIO()
  Image.fromarray(render.render(one, canvas=canvas)).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
  return buffer.getvalue()


def _write_tar(
    path: str, sample: Callable[..., dict[str, bytes]], split: str, seed: int,
    sizes: tuple[str, ...], paraphrased: bool, canvases: tuple[str, ...], start: int, stop: int
) -> None:
  """Writes one tar atomically."""
  with atomic_io.open_file(path) as f, tarfile.open(fileobj=f, mode="w") as tar:
    for index in range(start, stop):
      for suffix, content in sample(seed, index, split, sizes, paraphrased, canvases).items():
        member = tarfile.TarInfo(f"{split}{index:07d}.{suffix}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
