"""`evals detect`: GenEval's rules on the detections of transformers' Mask2Former, colours by its CLIP.

  python -m unilip_jax.evals detect --items=evaluation_metadata.jsonl --images=runs/a/geneval
      --detector=weights/mask2former-swin-small-coco-instance --clip=weights/clip-vit-large-patch14
      --out=runs/a/detected

Both are folders of `save_pretrained` or names on the Hugging Face hub, and run in PyTorch. The official
detector is mmdetection's: scores of this one have the name geneval-hf, and are not comparable with those
of GenEval. Writes results.jsonl in the official form; a rerun looks only at new or changed images.
"""

import argparse
from collections.abc import Mapping, Sequence
import functools
import hashlib
import io
import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from unilip_jax.common import command_options, errors, json_file, paths
from unilip_jax.scores import (
  append_log,
  base,
  geneval,
  geneval_rules,
  image_files,
  judge,
  make_record,
  provenance,
)

# COCO's names of three classes that GenEval calls otherwise.
_RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
_INSTANCES = 100  # most confident ones of an image, as in mmdetection
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_DETECTIONS = "detections.jsonl"


class HfDetector:
  """Finds objects with Mask2Former and their colours with CLIP; see geneval_rules.Detector.

  Attributes:
    name: of both models, with the hash of their weights.
  """

  def __init__(self, detector: str, clip: str, device: str = "cpu"):
    """Reads both models.

    Args:
      detector: a Mask2Former of COCO's 80 classes.
      clip: a CLIP with tokenizer.
      device: of PyTorch.

    Raises:
      ValueError: for a detector of other classes.
    """
    import torch
    import transformers

    self._torch, self._device = torch, device
    model = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(detector)
    self._model = model.to(device).eval()
    self._clip = transformers.CLIPModel.from_pretrained(clip).to(device).eval()
    self._tokenizer = transformers.AutoTokenizer.from_pretrained(clip)
    config, _ = transformers.image_processing_utils.ImageProcessingMixin.get_image_processor_dict(detector)
    self._size, self._mean, self._std = config["size"], config["image_mean"], config["image_std"]
    names = self._model.config.id2label
    self._names = [_RENAMED.get(names[i], names[i]) for i in range(len(names))]
    if len(names) != 80 or "person" not in names.values():
      raise ValueError(f"{detector} knows {len(names)} classes ({names[0]}, …); GenEval needs COCO's 80")
    self.name = f"{_label(detector, self._model)} + {_label(clip, self._clip)}"

  def detect(self, image: Image.Image) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns {class: (float32[N, 5] boxes with confidence, bool[N, height, width] masks)}."""
    torch, rgb = self._torch, image.convert("RGB")
    resized = rgb.resize(_target(rgb.size, self._size), Image.Resampling.BILINEAR)
    with torch.no_grad():
      out = self._model(pixel_values=self._tensor(resized, self._mean, self._std))
      labels = out.class_queries_logits[0].softmax(-1)[:, :-1]
      scores, order = labels.flatten().topk(min(_INSTANCES, labels.numel()))
      masks = out.masks_queries_logits[0, order // labels.shape[1]]
      for size in (resized.size, rgb.size):  # to the network's input, then to the image
        masks = torch.nn.functional.interpolate(masks[None], size[::-1], mode="bilinear")[0]
      binary = masks > 0
      inside = (masks.sigmoid() * binary).flatten(1).sum(1) / (binary.flatten(1).sum(1) + 1e-6)
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for label, score, mask in zip(order % labels.shape[1], scores * inside, binary.cpu().numpy()):
      if mask.any():
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, float(score)]
        found.setdefault(self._names[int(label)], []).append((np.array(box, np.float32), mask))
    return {name: (np.stack([b for b, _ in pairs]), np.stack([m for _, m in pairs]))
            for name, pairs in found.items()}

  def colors(self, crops: Sequence[Image.Image], class_name: str) -> list[str]:
    """Returns the likeliest of geneval_rules.COLORS for each crop."""
    if not crops:
      return []
    size = self._clip.config.vision_config.image_size
    with self._torch.no_grad():
      pixels = self._torch.cat([
          self._tensor(ImageOps.fit(crop.convert("RGB"), (size, size), Image.Resampling.BICUBIC),
                       _CLIP_MEAN, _CLIP_STD) for crop in crops])
      features = self._clip.visual_projection(self._clip.vision_model(pixel_values=pixels).pooler_output)
      best = (features @ self._color_features(class_name).T).argmax(-1)
    return [geneval_rules.COLORS[int(i)] for i in best]

  @functools.lru_cache(maxsize=128)  # noqa: B019  (a command has one detector)
  def _color_features(self, class_name: str):
    """Returns [colours, width]: the normalised mean of each colour's normalised prompts."""
    texts = [prompt.format(c=color, name=class_name) for color in geneval_rules.COLORS
             for prompt in geneval_rules.COLOR_PROMPTS]
    tokens = self._tokenizer(texts, padding=True, return_tensors="pt").to(self._device)
    features = self._clip.text_projection(self._clip.text_model(
        input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output)
    normalize = self._torch.nn.functional.normalize
    features = normalize(features, dim=-1).reshape(len(geneval_rules.COLORS), -1, features.shape[-1])
    return normalize(features.mean(1), dim=-1)

  def _tensor(self, image: Image.Image, mean: Sequence[float], std: Sequence[float]):
    values = (np.asarray(image, np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return self._torch.from_numpy(values.transpose(2, 0, 1)[None].copy()).to(self._device)


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command."""
  out = argparse.ArgumentParser(prog="unilip evals detect", description=__doc__,
                                formatter_class=command_options.Help)
  add = out.add_argument
  add("--items", required=True, help="GenEval's prompts")
  add("--images", required=True, help="folder of images in GenEval's layout, made by any model")
  add("--detector", required=True, help="Mask2Former, e.g. facebook/mask2former-swin-small-coco-instance")
  add("--clip", required=True, help="CLIP, e.g. openai/clip-vit-large-patch14")
  add("--out", required=True, help="folder of results; of this machine")
  add("--device", default="cpu", help="of PyTorch, e.g. cuda")
  return out


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command."""
  args = parser().parse_args(argv)
  geneval.GenEvalHf().read_items(args.items)  # what is wrong there is told before the models are read
  paths.existing_folder(args.images, "--images")
  paths.output_folder(args.out, "--out")
  for option in ("detector", "clip"):
    _check_model(getattr(args, option), f"--{option}")
  detector = HfDetector(args.detector, args.clip, args.device)
  print(f"scored {run(args.items, args.images, args.out, detector)} new images; score them: python -m "
        f"unilip_jax.evals aggregate --benchmark=geneval-hf --source={args.out} --items={args.items}")


def run(items: str, images: str, out: str, detector: geneval_rules.Detector) -> int:
  """Writes results.jsonl about a folder of images and its record; returns the number of new images."""
  benchmark = geneval.GenEvalHf()
  read = benchmark.read_items(items)
  folder = image_files.check(benchmark, read, images)
  print(errors.listed(folder.lines()) or "every image is there")
  place = pathlib.Path(paths.expand(out))
  (place / judge.FOLDER).mkdir(parents=True, exist_ok=True)
  lines, new = [], 0
  by_id = {item.id: item for item in read}
  with append_log.AppendLog(place / judge.FOLDER / _DETECTIONS) as log:
    stored = {record["key"]: record["line"] for record in log.records if {"key", "line"} <= record.keys()}
    for (item_id, k), path in folder.files.items():
      data = folder.read((item_id, k))
      key = _key(by_id[item_id], data, detector.name)
      if key not in stored:
        with Image.open(io.BytesIO(data)) as image:
          stored[key] = geneval.judge_image(
              path, ImageOps.exif_transpose(image), dict(by_id[item_id].record), detector,
              geneval_rules.Options())
        log.append({"key": key, "time": provenance.now(), "line": stored[key]})
        new += 1
      lines.append(stored[key] | {"filename": path})
  provenance.write_lines(place / "results.jsonl", lines)
  json_file.write(place / judge.FOLDER / judge.ABOUT, {
      "format": 1, "benchmark": benchmark.name, "revision": benchmark.revision, "model": detector.name,
      "last_answer": provenance.now(), "judged": len(lines), "images": folder.summary(),
      "items_sha256": provenance.items_digest(read), "make": make_record.read(images),
      "versions": provenance.versions()})
  return new


def _check_model(name: str, option: str) -> None:
  """Raises FileNotFoundError for a local folder without a model; names on the hub pass."""
  place = pathlib.Path(paths.expand(name, option))
  if (place.is_absolute() or place.is_dir()) and not (place / "config.json").is_file():
    raise FileNotFoundError(f"{option}={name} is no folder of `save_pretrained`: it lacks config.json")


def _key(item: base.Item, data: bytes, detector: str) -> str:
  parts = [item.id, dict(item.record), hashlib.sha256(data).hexdigest(), detector]
  text = json.dumps(parts, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _label(name: str, model: Any) -> str:
  """Name of a model with a hash of its weights."""
  digest = hashlib.sha256()
  for key, value in sorted(model.state_dict().items()):
    digest.update(key.encode())
    digest.update(value.cpu().contiguous().numpy().tobytes())
  return f"{pathlib.PurePath(name).name} {digest.hexdigest()[:12]}"


def _target(size: tuple[int, int], config: Mapping[str, int]) -> tuple[int, int]:
  """Returns the (width, height) to which the detector's configuration resizes an image."""
  if "height" in config:
    return config["width"], config["height"]
  scale = config["shortest_edge"] / min(size)
  scale = min(scale, config.get("longest_edge", float("inf")) / max(size))
  return tuple(max(32, round(side * scale)) for side in size)
