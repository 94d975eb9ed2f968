"""`evals detect`: GenEval's rules on detections of transformers' Mask2Former and CLIP (needs PyTorch).

  python -m unilip_jax.evals detect --images=runs/a/geneval --out=runs/a/geneval-hf

Writes `results.jsonl`, which `evals aggregate --benchmark=geneval-hf` reads. Another implementation of the
detector is another benchmark: these scores do not stand next to GenEval's. A rerun keeps the lines of
unchanged images.
"""

import argparse
from collections.abc import Iterable, Sequence
import hashlib
import json
from typing import Any

from absl import logging
from etils import epath
import numpy as np
from PIL import Image
import torch
import tqdm
import transformers

from unilip_jax.common import atomic_io
from unilip_jax.scores import geneval, geneval_rules, records

_DETECTOR = "facebook/mask2former-swin-small-coco-instance"
_CLIP = "openai/clip-vit-large-patch14"
# COCO's names that GenEval renamed.
_RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}


class Detector:
  """Instances from Mask2Former, colours from CLIP; a detector of geneval_rules."""

  name = "geneval-hf"

  def __init__(self, detector: str = _DETECTOR, clip: str = _CLIP, device: str = "cpu"):
    """Loads both networks.

    Args:
      detector: folder or hub id of a Mask2Former for instance segmentation on COCO.
      clip: folder or hub id of a CLIP.
      device: of PyTorch.
    """
    self._device = device
    self._processor = transformers.AutoImageProcessor.from_pretrained(detector)
    self._network = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(detector)
    self._network.to(device).eval()
    self._clip_processor = transformers.AutoProcessor.from_pretrained(clip)
    self._clip = transformers.CLIPModel.from_pretrained(clip).to(device).eval()
    self._colors: dict[str, torch.Tensor] = {}

  @torch.no_grad()
  def detect(self, image: Image.Image) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Boxes around instance masks: {class: (float32[N, 5], bool[N, height, width])}."""
    image = image.convert("RGB")
    inputs = self._processor(images=image, return_tensors="pt").to(self._device)
    result = self._processor.post_process_instance_segmentation(
        self._network(**inputs), threshold=0.0, target_sizes=[image.size[::-1]], return_binary_maps=True)[0]
    found: dict[str, list[tuple[list[float], np.ndarray]]] = {}
    for mask, segment in zip(result["segmentation"], result["segments_info"]):
      mask = mask.cpu().numpy().astype(bool)
      label = self._network.config.id2label[segment["label_id"]]
      found.setdefault(_RENAMED.get(label, label), []).append((box_around(mask, segment["score"]), mask))
    return {name: (np.array([b for b, _ in pairs], np.float32), np.stack([m for _, m in pairs]))
            for name, pairs in found.items()}

  @torch.no_grad()
  def colors(self, crops: Sequence[Image.Image], class_name: str) -> list[str]:
    """The colour whose three prompts are nearest to a crop."""
    inputs = self._clip_processor(images=list(crops), return_tensors="pt").to(self._device)
    features = _normalized(_features(self._clip.get_image_features(pixel_values=inputs["pixel_values"])))
    nearest = (features @ self._color_features(class_name).T).argmax(-1)
    return [geneval_rules.COLORS[i] for i in nearest.tolist()]

  def _color_features(self, class_name: str) -> torch.Tensor:
    """float32[10, D] of unit length: mean of the prompts' features of each colour."""
    if class_name not in self._colors:
      means = []
      for color in geneval_rules.COLORS:
        prompts = [p.format(c=color, name=class_name) for p in geneval_rules.COLOR_PROMPTS]
        tokens = self._clip_processor(text=prompts, return_tensors="pt", padding=True).to(self._device)
        means.append(_normalized(_features(self._clip.get_text_features(**tokens))).mean(0))
      self._colors[class_name] = _normalized(torch.stack(means))
    return self._colors[class_name]


def box_around(mask: np.ndarray, score: float) -> list[float]:
  """x0, y0, x1, y1 and score of a mask's box, the far corner exclusive, as mmdetection's."""
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  if not len(rows):
    return [0.0, 0.0, 0.0, 0.0, score]
  return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1), score]


def judge_folder(
    images: str, out: str, detector: geneval_rules.Detector, options: geneval_rules.Options
) -> dict[str, int]:
  """Appends a line to `results.jsonl` for each image that has none, or has changed.

  Returns:
    {"judged", "kept"}: numbers of images.
  """
  folder = epath.Path(out).expanduser()
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / "results.jsonl"
  stored = _stored(path) if path.exists() else {}
  found = [(file, record, hashlib.sha256(file.read_bytes()).hexdigest())
           for file, record in geneval.images(images)]
  lines = {str(f): stored[str(f), digest] for f, _, digest in found if (str(f), digest) in stored}
  counts = {"judged": len(found) - len(lines), "kept": len(lines)}
  _write(path, lines.values())  # without those of images that are gone or changed
  with path.open("a") as stream:
    for file, record, digest in tqdm.tqdm([x for x in found if str(x[0]) not in lines]):
      line = geneval.judge_image(str(file), file.read_bytes(), record, detector, options)
      lines[str(file)] = line | {"sha256": digest}
      stream.write(f"{json.dumps(lines[str(file)])}\n")
      stream.flush()
  _write(path, [lines[str(file)] for file, _, _ in found])
  return counts


def main(arguments: Sequence[str]) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(prog="python -m unilip_jax.evals detect", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--images", required=True, help="folder in GenEval's layout, of any model")
  parser.add_argument("--out", required=True, help="folder of results.jsonl")
  parser.add_argument("--detector", default=_DETECTOR, help="Mask2Former, folder or hub id")
  parser.add_argument("--clip", default=_CLIP, help="CLIP, folder or hub id")
  parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
  options = parser.parse_args(arguments)
  detector = Detector(options.detector, options.clip, options.device)
  counts = judge_folder(options.images, options.out, detector, geneval_rules.Options())
  logging.info("geneval-hf: %d images judged, %d unchanged", counts["judged"], counts["kept"])


def _stored(path: epath.Path) -> dict[tuple[str, str], dict[str, Any]]:
  """{(file, hash of the image): line}; a line that was cut off is left out."""
  lines = {}
  for _, text in records.json_lines(path):
    try:
      line = json.loads(text)
    except ValueError:
      continue
    lines[line["filename"], line.get("sha256", "")] = line
  return lines


def _write(path: epath.Path, lines: Iterable[dict[str, Any]]) -> None:
  atomic_io.write(path, "".join(f"{json.dumps(line)}\n" for line in lines).encode())


def _features(output: Any) -> torch.Tensor:
  """Projected features; newer releases of transformers return them inside an object."""
  return output if isinstance(output, torch.Tensor) else output.pooler_output


def _normalized(x: torch.Tensor) -> torch.Tensor:
  return x / x.norm(dim=-1, keepdim=True)
