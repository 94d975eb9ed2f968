"""GenEval's rules on detected boxes: which count, relations, colours (arXiv 2310.11513, section 3).

Boxes are float32[5]: x0, y0, x1, y1 in pixels (y down) and the detector's confidence. All arithmetic is in
float32, as the official evaluator's.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, Protocol

import numpy as np
from PIL import Image

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
# What the official colour classifier is asked, with {c} for the colour and {name} for the class.
COLOR_PROMPTS = ("a photo of a {c} {name}", "a photo of a {c}-colored {name}", "a photo of a {c} object")

Classify = Callable[[str, Sequence[np.ndarray]], Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Options:
  """Holds the official evaluator's `--options`.

  Attributes:
    threshold: confidence above which a box is kept.
    counting_threshold: the same for the tag "counting".
    max_objects: boxes kept of a class, at most.
    max_overlap: intersection over union from which the less confident of two boxes is dropped; 1: never.
    position_threshold: part of both boxes' sizes that an offset must exceed.
    bgcolor: what the colour classifier sees outside of the instance mask, or "original".
    crop: whether it sees the box alone.
  """

  threshold: float = 0.3
  counting_threshold: float = 0.9
  max_objects: int = 16
  max_overlap: float = 1.0
  position_threshold: float = 0.1
  bgcolor: str = "#999"
  crop: bool = True


class Detector(Protocol):
  """Finds objects and their colours in an image; another detector makes another benchmark."""

  name: str

  def detect(self, image: Image.Image) -> Mapping[str, tuple[np.ndarray, np.ndarray | None]]:
    """{class name: (float32[N, 5] boxes, bool[N, height, width] instance masks or None)}."""

  def colors(self, crops: Sequence[Image.Image], class_name: str) -> Sequence[str]:
    """One of COLORS for each crop (see `color_crop`)."""


def keep(boxes: np.ndarray, tag: str, options: Options) -> list[int]:
  """Returns the indices of a class's boxes that count, most confident first.

  Args:
    boxes: float32[N, 5].
    tag: of the prompt; "counting" has a threshold of its own.
    options: thresholds.
  """
  boxes = np.asarray(boxes, np.float32).reshape(-1, 5)
  threshold = options.counting_threshold if tag == "counting" else options.threshold
  order = np.argsort(boxes[:, 4])[::-1]
  rest = order[boxes[order, 4] > np.float32(threshold)][:options.max_objects].tolist()
  kept = []
  while rest:
    first, *rest = rest
    kept.append(first)
    if options.max_overlap != 1:
      rest = [i for i in rest if iou(boxes[first], boxes[i]) < options.max_overlap]
  return kept


def iou(a: np.ndarray, b: np.ndarray) -> float:
  """Intersection over union of two boxes; widths and heights count one pixel more."""

  def area(x0, y0, x1, y1):
    return max(x1 - x0 + 1, 0) * max(y1 - y0 + 1, 0)

  shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
  union = area(*a[:4]) + area(*b[:4]) - shared
  return shared / union if union else 0.0


def relations(a: np.ndarray, b: np.ndarray, threshold: float = 0.1) -> list[str]:
  """Returns where box a lies relative to box b: none, one or two of four directions.

  The offset of the centres is shortened on each axis by `threshold` times the sum of both sizes, then
  divided by the length of the unshortened offset; a direction holds beyond 0.5.
  """
  corners = np.asarray([a[:4], b[:4]], np.float32).reshape(2, 2, 2)
  center_a, center_b = corners.mean(axis=-2)
  size_a, size_b = np.abs(np.diff(corners, axis=-2))[..., 0, :]
  offset = center_a - center_b
  short = np.maximum(np.abs(offset) - np.float32(threshold) * (size_a + size_b), 0) * np.sign(offset)
  if np.all(np.abs(short) < 1e-3):
    return []
  dx, dy = short / np.linalg.norm(offset)
  holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
  return [name for name, is_so in holds.items() if is_so]


def check(record: Mapping[str, Any], where: str) -> None:
  """Checks `include` and `exclude` of a prompt's record.

  Args:
    record: of the prompt.
    where: for the error.

  Raises:
    ValueError: naming the entry that is malformed.
  """
  if not record["include"]:
    raise ValueError(f"{where}: malformed: 'include' is empty")
  for field in ("include", "exclude"):
    entries = record.get(field, [])
    for index, wanted in enumerate(entries if isinstance(entries, list) else [None]):
      if not (isinstance(wanted, Mapping) and isinstance(wanted.get("class"), str)
              and type(wanted.get("count")) is int and wanted["count"] >= 1
              and isinstance(wanted.get("color", ""), str) and _is_position(wanted, index)):
        raise ValueError(f"{where}: malformed: {field!r} is {entries!r}")


def _is_position(wanted: Mapping[str, Any], index: int) -> bool:
  """Whether the position of entry `index`, if it has one, is that relative to an earlier entry."""
  match wanted.get("position", ["", 0]):
    case [str(), int(target)]:
      return "position" not in wanted or 0 <= target < index
  return False


def evaluate(
    found: Mapping[str, Sequence[np.ndarray]], record: Mapping[str, Any], classify: Classify,
    options: Options) -> tuple[bool, str]:
  """Checks the kept boxes of an image against the prompt's record.

  Args:
    found: {class: kept boxes, most confident first}.
    record: `include` and `exclude` of the prompt.
    classify: colours of boxes of a class; called only where the record asks for a colour.
    options: uses position_threshold.

  Returns:
    (whether the image is correct, the reasons in the official words, one a line).
  """
  reasons: list[str] = []
  groups: list[Sequence[np.ndarray] | None] = []
  for wanted in record.get("include", []):
    name, count = wanted["class"], wanted["count"]
    boxes = list(found.get(name, []))[:count]
    if len(boxes) < count:
      problem = f"expected {name}>={count}, found {len(boxes)}"
    else:
      problem = _wrong_color(wanted, boxes, classify) or _wrong_position(wanted, boxes, groups, options)
    groups.append(None if problem else boxes)
    if problem:
      reasons.append(problem)
  for unwanted in record.get("exclude", []):
    number = len(found.get(unwanted["class"], []))
    if number >= unwanted["count"]:
      reasons.append(f"expected {unwanted['class']}<{unwanted['count']}, found {number}")
  return not reasons, "\n".join(reasons)


def _wrong_color(wanted: Mapping[str, Any], boxes: Sequence[np.ndarray], classify: Classify) -> str:
  if "color" not in wanted:
    return ""
  name, color, count = wanted["class"], wanted["color"], wanted["count"]
  colors = list(classify(name, boxes))
  right = colors.count(color)
  if right >= count:
    return ""
  all_found = ", ".join(f"{colors.count(c)} {c}" for c in COLORS if c in colors)
  return f"expected {color} {name}>={count}, found {right} {color}; and {all_found}"


def _wrong_position(
    wanted: Mapping[str, Any], boxes: Sequence[np.ndarray],
    groups: Sequence[Sequence[np.ndarray] | None], options: Options) -> str:
  """Checks a relation against every box of the earlier group."""
  if "position" not in wanted:
    return ""
  relation, target = wanted["position"]
  if groups[target] is None:
    return f"no target for {wanted['class']} to be {relation}"
  for box in boxes:
    for other in groups[target]:
      holding = relations(box, other, options.position_threshold)
      if relation not in holding:
        return f"expected {wanted['class']} {relation} target, found {' and '.join(holding)} target"
  return ""


def color_crop(
    image: Image.Image, box: np.ndarray, mask: np.ndarray | None, options: Options) -> Image.Image:
  """Returns what the colour classifier sees of a box, before its own preprocessing.

  Args:
    image: of any mode.
    box: float32[5]; Pillow rounds its corners.
    mask: bool[height, width] of the instance; None keeps everything.
    options: uses bgcolor and crop.
  """
  image = image.convert("RGB")
  if mask is not None:
    blank = image.copy() if options.bgcolor == "original" else Image.new("RGB", image.size, options.bgcolor)
    image = Image.composite(image, blank, Image.fromarray(np.asarray(mask, bool)))
  return image.crop(tuple(float(x) for x in box[:4])) if options.crop else image
