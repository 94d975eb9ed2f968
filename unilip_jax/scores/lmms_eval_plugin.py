"""Hands the model to lmms-eval, which finds it by the entry point `lmms_eval.models`; nothing is patched.

  lmms-eval --model unilip_jax --model_args checkpoint=weights/unilip-1b --tasks mme --batch_size 8
  lmms-eval --model unilip_jax --model_args checkpoint=weights/unilip-1b,mode=image --tasks imgedit

mode=answer answers questions about any number of images. mode=image makes an image of each prompt, or edits
the one that comes with it, as `evals make` does, and answers with {"text", "images": [path]}. lmms-eval is
no requirement of this package and is imported by this file alone.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
import os
from typing import Any

from absl import logging
from etils import epath
from PIL import Image

from unilip_jax.common import arguments, paths, png, registry
from unilip_jax.scores import base

try:
  from lmms_eval.api.model import lmms
  from lmms_eval.models.registry_v2 import ModelManifest
except ModuleNotFoundError as error:
  raise ModuleNotFoundError(
      f"unilip_jax.scores.lmms_eval_plugin is for lmms-eval, and {error.name!r} is not installed: "
      "pip install lmms-eval, version 0.7 or later", name=error.name) from error

MODES = ("answer", "image")
_MAKER = "unilip_jax.scores.makers:CheckpointMaker"  # by name: JAX starts with the model, not with a list
_USED = {"max_new_tokens", "temperature", "top_p", "do_sample", "num_beams", "until"}
_NAMED = 10  # ids in a warning

Options = tuple[int, float, float]  # max_new_tokens, temperature, top_p


def manifest() -> ModelManifest:
  """Returns the row of lmms-eval's registry of models."""
  return ModelManifest(model_id="unilip_jax", simple_class_path=f"{__name__}.UniLipModel")


class UniLipModel(lmms):
  """Answers requests of lmms-eval with a checkpoint, on all devices of this process."""

  is_simple = True

  def __init__(
      self, checkpoint: str = "", *, mode: str = "answer", dtype: str = "bfloat16", int8: bool = False,
      batch_size: int | str = 8, max_tiles: int = 6, max_new_tokens: int = 256,
      out: str = "lmms_eval_images", steps: int | None = None, guidance: float | None = None,
      solver: str = "dpm", seed: int = 42, size: int = 0, max_batch_size: int | None = None,
      device: str | None = None):
    """Reads the checkpoint.

    Args:
      checkpoint: as for `UniLIP.load`.
      mode: "answer" or "image".
      dtype, int8: see `UniLIP.load`.
      batch_size: answers or images at once, over all devices of this process.
      max_tiles: most tiles of an image that is asked about; 1 is one square of the model's size.
      max_new_tokens: longest answer of a task that states no length.
      out: folder of the images that are made; <out>/<task>/<hash of its requests>.
      steps, guidance, solver, seed: of images; defaults are UniLIP's protocol, or those of a few-step
        checkpoint.
      size: pixels per side of the images; 0 is the model's.
      max_batch_size, device: lmms-eval passes them; not used, so that they must be empty.

    Raises:
      ValueError: for other values.
    """
    super().__init__()
    arguments.choice("mode", mode, MODES)
    if not checkpoint:
      raise ValueError("--model_args needs checkpoint=PATH, a run, imported weights or shapes:NAME")
    if device or max_batch_size:
      raise ValueError("--device and --max_batch_size are PyTorch's; JAX takes all devices of this "
                       "process: choose them with JAX_PLATFORMS")
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
      raise ValueError("start one process: it uses all devices of this machine, without accelerate or "
                       "torchrun")
    if not str(batch_size).isdigit():
      raise ValueError(f"--batch_size={batch_size}: choose a number")
    self._maker = registry.resolve(_MAKER)(checkpoint, dtype, int(batch_size), int8=int8)
    self._mode, self._max_tiles, self._max_new_tokens = mode, max_tiles, max_new_tokens
    self._out = paths.path(out).absolute()
    self._sampling = {"steps": steps, "guidance": guidance, "solver": solver}
    self._seed, self._size, self._dtype, self._int8 = seed, size, dtype, int8
    logging.info("lmms-eval: %s of %s, weights %s, %s", mode, checkpoint, self._maker.fingerprint,
                 f"at most {max_tiles} tiles of {self._maker.image_size} pixels" if mode == "answer"
                 else f"images below {self._out}")

  def generate_until(self, requests: Sequence[Any]) -> list[str]:
    """Answers each request of lmms-eval, in order.

    An edit of several images is answered with no image, counted and named in a warning.
    """
    asked = [_Request(self, r) for r in requests]
    refused = [r.name for r in asked if len(r.images) > 1] if self._mode == "image" else []
    if refused:
      logging.warning("lmms-eval: %d requests have several images, which the model does not edit; their "
                      "answers are empty: %s%s", len(refused), ", ".join(refused[:_NAMED]),
                      ", …" if len(refused) > _NAMED else "")
    run = self._answers if self._mode == "answer" else self._images
    answers = [_image_answer([])] * len(asked)
    for number, answer in run([(i, r) for i, r in enumerate(asked) if r.name not in refused]):
      answers[number] = answer
      self.cache_hook.add_partial("generate_until", requests[number].args[:2], answer)
    return answers

  def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
    raise NotImplementedError("unilip_jax answers generate_until tasks; this task needs loglikelihood")

  def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
    raise NotImplementedError("unilip_jax answers generate_until tasks; this task has several rounds")

  def _answers(self, asked: "Sequence[tuple[int, _Request]]") -> Iterator[tuple[int, str]]:
    """Yields (number, answer); requests of equal options share batches."""
    groups: dict[Options, list[tuple[int, _Request]]] = {}
    for number, request in asked:
      groups.setdefault(request.options(self._max_new_tokens), []).append((number, request))
    size = self._maker.batch_size
    for (length, temperature, top_p), group in groups.items():
      for start in range(0, len(group), size):
        part = group[start:start + size]
        texts = self._maker.answers(
            [[_rgb(image, r.name) for image in r.images] for _, r in part],
            [r.text for _, r in part], max_new_tokens=length, max_tiles=self._max_tiles,
            temperature=temperature, top_p=top_p)
        for (number, request), text in zip(part, texts):
          yield number, request.cut(text)

  def _images(self, asked: "Sequence[tuple[int, _Request]]") -> Iterator[tuple[int, str]]:
    """Yields (number, {"text", "images"} as JSON); images that are there already are not made again."""
    groups: dict[tuple[str, bool], list[tuple[int, _Request]]] = {}
    for number, request in asked:
      groups.setdefault((request.task, bool(request.images)), []).append((number, request))
    for (task, editing), group in groups.items():
      benchmark, items, keys = _as_benchmark(task, editing, [r for _, r in group])
      folder = self._make(benchmark, items, 1 + max(k for _, k in keys))
      by_id = {item.id: item for item in items}
      for (number, _), (name, k) in zip(group, keys):
        yield number, _image_answer([str(folder / benchmark.output_path(by_id[name], k))])

  def _make(self, benchmark: "_Task", items: Sequence[base.Item], each: int) -> epath.Path:
    """Makes the images of a task; returns their folder."""
    from unilip_jax.sampling import sampler
    from unilip_jax.scores import make, make_record, provenance

    options = sampler.Options.of(self._maker.few_step, **self._sampling)
    settings = make.Settings(options, self._seed,
                             size=self._size or self._maker.image_size, images_per_item=each)
    digest = provenance.items_digest(items)
    record = make.record(benchmark, settings, self._maker, self._dtype, self._int8)
    folder = make_record.open_folder(self._out / benchmark.name / digest[:12], record | {
        "items_sha256": digest, "items_made": len(items), "weights_fingerprint": self._maker.fingerprint})
    make.make_images(benchmark, items, folder, self._maker, settings)
    return folder


class _Request:
  """One request of lmms-eval: text, images and options."""

  def __init__(self, model: UniLipModel, request: Any):
    text, options, doc_to_visual, doc, task, split = request.args
    self.text, self.task, self.doc, self.name = text, task, doc, f"{task}/{split}/{doc}"
    self.images = list(doc_to_visual(model.task_dict[task][split][doc]) or ())
    self._options: Mapping[str, Any] = options

  def options(self, max_new_tokens: int) -> Options:
    """Options of the answer.

    Raises:
      ValueError: for beam search.
    """
    get = lambda name, default: default if self._options.get(name) is None else self._options[name]
    if get("num_beams", 1) != 1:
      raise ValueError(f"{self.name}: num_beams={self._options['num_beams']}: the model has no beam search")
    if unknown := sorted(self._options.keys() - _USED):
      logging.log_first_n(logging.WARNING, "lmms-eval: options of %s that have no effect: %s", 10,
                          self.task, ", ".join(unknown))
    greedy = get("do_sample", get("temperature", 0.0) > 0) is False
    return (int(get("max_new_tokens", max_new_tokens)),
            0.0 if greedy else float(get("temperature", 1.0)), 1.0 if greedy else float(get("top_p", 1.0)))

  def cut(self, text: str) -> str:
    """Cuts an answer before the first of the strings at which the task ends it."""
    until = self._options.get("until") or ()
    ends = [text.find(end) for end in ([until] if isinstance(until, str) else until) if end and end in text]
    return text[:min(ends)] if ends else text


class _Task(base.Benchmark):
  """A task of lmms-eval as a benchmark whose images are made by make.py."""

  revision = "lmms-eval"

  def __init__(self, name: str, kind: str):
    self.name, self.kind = name, kind

  def read_items(self, source: str) -> list[base.Item]:
    raise ValueError("the items of a task come from lmms-eval")

  def output_path(self, item: base.Item, k: int) -> str:
    return f"{item.id}/{k:05d}.png"

  def aggregate(self, source: str, *, rules: str = "official", items: str | None = None) -> base.Score:
    raise ValueError("the score of a task is computed by lmms-eval")


def _as_benchmark(
    task: str, editing: bool, asked: Sequence[_Request]
) -> tuple[_Task, list[base.Item], list[tuple[str, int]]]:
  """Returns (benchmark, items, (item id, k) of each request): k counts the repeats of a document."""
  items: dict[str, base.Item] = {}
  seen: dict[str, int] = {}
  keys = []
  for request in asked:
    name = str(request.doc)
    images = (_png(request),) if request.images else ()
    items.setdefault(name, base.Item(name, request.text, task, images=images))
    keys.append((name, seen.setdefault(name, 0)))
    seen[name] += 1
  return _Task(task, "editing" if editing else "generation"), list(items.values()), keys


def _rgb(image: Any, name: str) -> Image.Image:
  """Converts an image of any mode, as training does."""
  from unilip_jax.infer import user_images

  return Image.fromarray(user_images.as_array(image, name))


def _png(request: _Request) -> bytes:
  return png.encode(_rgb(request.images[0], request.name))


def _image_answer(files: Sequence[str]) -> str:
  return json.dumps({"text": "", "images": list(files)})
