"""Opens Shapes as a kind of data source: a split's tars, rendered if they are absent, or its prompts."""

from collections.abc import Sequence
import os

from unilip_jax.data import source_kinds, sources
from unilip_jax.shapes import prompts, scene, tars


def check_source(
    path: str, *, count: int | None = None, paraphrased: bool = False,
    sizes: Sequence[str] = scene.SIZES, canvases: Sequence[str] = ("square",)) -> None:
  """Checks what `open_source` would refuse; renders nothing."""
  del paraphrased
  scene.check(path, tuple(sizes))
  tars.check_canvases(canvases)
  if count is not None and count < 1:
    raise ValueError(f"count={count}; it must be at least 1")


def open_source(
    path: str, example: str, folders: sources.Folders, *, count: int | None = None,
    paraphrased: bool = False, sizes: Sequence[str] = scene.SIZES,
    canvases: Sequence[str] = ("square",)
) -> sources.Source:
  """Opens a split.

  Args:
    path: "train" | "test" | "unseen".
    example: a key of sources.PARTS.
    folders: tars are written below `render`.
    count: scenes; None takes tars.COUNTS.
    paraphrased: whether prompts and instructions are in the words of paraphrases.py.
    sizes: of the objects, of scene.SIZES.
    canvases: of render.CANVASES, among which images are divided; prompts alone have squares.

  Raises:
    ValueError: for an unknown split, size or canvas, or no scenes.
  """
  sizes = tuple(sizes)
  if example in ("prompt", "edit_prompt"):
    if tuple(canvases) != ("square",):
      raise ValueError(f"shapes {path}: canvases={tuple(canvases)} are of images; prompts have squares")
    return prompts.PromptSource(
        path, tars.COUNTS[path] if count is None else count, with_edits=example == "edit_prompt",
        paraphrased=paraphrased, sizes=sizes)
  paths = tars.ensure_tars(
      folders.render, path, with_edits=example == "edit", paraphrased=paraphrased, count=count,
      sizes=sizes, canvases=canvases)
  return source_kinds.TarSource([os.fspath(p) for p in paths], folders.index, sources.PARTS[example])
