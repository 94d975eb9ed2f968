"""A small benchmark with the interface of real ones, and folders of images for it."""

from collections.abc import Sequence
import json
import pathlib

import numpy as np
from PIL import Image

from unilip_jax.scores import base, requests


class Colors(base.Benchmark):
  """Twelve colours in two categories; two images each; a judge that answers one digit."""

  name, kind, revision, images_per_item = "colors", "generation", "r1", 2
  judge = requests.Preset("judge-x", tries=2)

  def read_items(self, source: str) -> list[base.Item]:
    return [base.Item(str(i), f"colour {i}", "warm" if i % 3 else "cold", record={"n": i})
            for i in range(12)]

  def output_path(self, item: base.Item, k: int) -> str:
    return f"{item.id}/{k:05d}.png"

  def judge_requests(self, item, images, prompts, attempt=0):
    parts = (f"Rate <{item.prompt}>", requests.Image(images[0]))
    return [requests.Request((requests.Message("user", parts),), temperature=0.0, max_tokens=20)]

  def parse(self, answers):
    text = answers[""].strip()
    return {"score": float(text)} if text.isdigit() else None

  def write_judgements(self, folder, items, judgements):
    path = pathlib.Path(folder) / "scores.jsonl"
    path.write_text("".join(json.dumps({"id": j.item_id, "k": j.k, **j.scores}) + "\n"
                            for j in judgements if j.scores))

  def aggregate(self, source, *, rules="official", items=None):
    rows = [json.loads(line) for line in (pathlib.Path(source) / "scores.jsonl").read_text().splitlines()]
    category = {i.id: i.category for i in self.read_items("")}
    values = tuple(base.Value(r["id"], category[r["id"]], r["score"]) for r in rows)
    groups = {c: base.mean(v.value for v in values if v.category == c) for c in ("warm", "cold")}
    score = base.mean(v.value for v in values)
    return base.Score(score, groups, len(values), 24 - len(values), 0, rules, {"micro": score}, "micro",
                      values=values)


def write_images(
    folder: pathlib.Path, benchmark: base.Benchmark, items: Sequence[base.Item], size: int = 8,
    count: int | None = None) -> None:
  """Writes an image of another colour for each (item, k)."""
  number = 0
  for item in items:
    for k in range(count or benchmark.images_per_item):
      path = folder / benchmark.output_path(item, k)
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = np.full((size, size, 3), (number % 256, number // 256, 7), np.uint8)
      Image.fromarray(pixels).save(path)
      number += 1
