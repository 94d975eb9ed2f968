"""Scores the included weights on scenes that training never uses, with images of their results.

  python -m benchmarks.shapes_scores --write=docs/results [--only=gen2] [--guidance=1,4.5] [--seeds=0,1]

Writes <name>.json for each shapes:<name>. For weights that generate images it writes <name>.png too, with
prompts of the six categories and edits of every category in order, none left out, and <name>_curve.png with
the scores over updates if they were recorded.
"""

import argparse
from collections.abc import Iterator
import dataclasses
import importlib
import io
import itertools
import json
import pathlib
import tempfile
import textwrap
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
from PIL import Image

from benchmarks import harness
from experiments import showcase
from unilip_jax import evaluate
from unilip_jax.shapes import captions, pretrained, render, verify

_SPLITS = ("test", "unseen")
_SAMPLED = ("t2i", "edits")  # protocols that sample images, with a guidance


@dataclasses.dataclass(frozen=True)
class Row:
  """Describes how weights are scored: the name of their config, and (protocol, examples) of each set.

  Prompts and edits are also paraphrased. The config of these sets is gen3's, since paraphrases are longer.
  """

  config: str
  protocols: tuple[tuple[str, int], ...]


_GENERATION = (("t2i", 240), ("edits", 210), ("flow_t2i", 240), ("flow_edit", 240))
ROWS = {
    "mllm": Row("tiny_mllm", (("questions", 960),)),
    "dcae": Row("tiny_dcae", (("native", 240),)),
    "stage1": Row("stage1", (("native", 240), ("scenes", 240), ("questions", 960))),
    "stage2": Row("stage2", (("native", 240), ("scenes", 240), ("questions", 960))),
    "sana": Row("", ()),  # a DiT alone: nothing to score
    "gen1": Row("gen1", (("flow_t2i", 240),)),
    "gen2": Row("gen2", _GENERATION),
    "gen3": Row("gen3", _GENERATION),
    "rl_nft": Row("rl_nft", _GENERATION),
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--write", default="docs/results", help="folder for JSON and PNG")
  parser.add_argument("--only", default="", help="names, comma-separated; default: all")
  parser.add_argument("--guidance", default="1,2,3,4.5", help="of the weights that generate images")
  parser.add_argument("--seeds", default="0", help="of the noise; of several: means and deviations")
  args = parser.parse_args()
  folder = pathlib.Path(args.write)
  wanted = [n for n in args.only.split(",") if n] or ["verifier", *pretrained.names()]
  for name in wanted:
    if name == "verifier":
      _save(folder, name, {"scores": _verifier()})
    elif ROWS[name].config:
      guidances = [float(g) for g in args.guidance.split(",")]
      _save(folder, name, _scored(name, guidances, [int(s) for s in args.seeds.split(",")]))
      if ROWS[name].protocols == _GENERATION:
        (folder / f"{name}.png").write_bytes(_images(name, _best(folder, name)))
        curve = _history(name, pretrained.read_about(name)["origin"])
        if len(curve) > 1:
          (folder / f"{name}_curve.png").write_bytes(_curves(name, curve))


def _save(folder: pathlib.Path, name: str, content: dict[str, Any]) -> None:
  harness.save(folder / f"{name}.json", harness.about("shapes_scores") | content)
  print(json.dumps({name: content["scores"]}, indent=1), flush=True)


def _sets(row: Row) -> Iterator[tuple[str, str, int, list[tuple[str, str, dict[str, Any]]]]]:
  """Yields (config, protocol, examples, [(suffix, split, options) of each set])."""
  for protocol, count in row.protocols:
    yield row.config, protocol, count, [(split, split, {}) for split in _SPLITS]
  for protocol, count in row.protocols:
    if protocol in _SAMPLED:
      yield "gen3", protocol, count, [("paraphrased", "test", {"paraphrased": True})]


def _scored(name: str, guidances: list[float], seeds: list[int]) -> dict[str, Any]:
  """Returns {"weights", "scores"} of both splits and of paraphrases, with each guidance of generators.

  With several seeds of their noise, scores are means, and "spread" has the standard deviations.
  """
  scores, spread = {}, {}
  for config_name, protocol, count, sets in _sets(ROWS[name]):
    for guidance in guidances if protocol in _SAMPLED else [None]:
      suffix = "" if guidance is None else f"@{guidance:g}"
      config = importlib.import_module(f"unilip_jax.configs.{config_name}").get_config("tiny")
      config.init_from = "shapes:gen1,shapes:dcae" if name == "gen1" else f"shapes:{name}"
      config.eval.max_examples = count
      config.eval.sets = tuple((f"{protocol}_{label}{suffix}", protocol, "shapes", split, options)
                               for label, split, options in sets)
      if guidance is not None:
        config.sample.guidance = guidance
      results = []
      for seed in [0] if guidance is None else seeds:
        config.eval.seed = seed
        with tempfile.TemporaryDirectory() as workdir:
          results.append(evaluate.evaluate_checkpoint(config, workdir))
      scores |= {k: round(float(np.mean([r[k] for r in results])), 4) for k in results[0]}
      if len(results) > 1:
        spread |= {k: round(float(np.std([r[k] for r in results], ddof=1)), 4) for k in results[0]}
  return {"weights": f"shapes:{name}", "scores": scores} | ({"spread": spread} if spread else {})


def _history(name: str, origin: dict[str, Any]) -> list[dict[str, float]]:
  """Joins the curve of a run with the curves of the runs that it continued."""
  chain = [origin]
  # Runs of the time when Shapes was called Blocks name their start by the old prefix.
  continued = (f"{pretrained.PREFIX}{name}", f"blocks:{name}")
  while (before := chain[0].get("before")) and chain[0]["started_from"] in continued:
    chain.insert(0, before)
  curve, first = [], 0
  for part in chain:
    curve += [row | {"step": first + row["step"]} for row in part.get("curve", [])
              if row["step"] > 0 or first == 0]
    first += part["steps"]
  return curve


def _best(folder: pathlib.Path, name: str) -> float:
  """Returns the guidance with the largest sum of prompt accuracy and edit success on the test split."""
  scores = json.loads((folder / f"{name}.json").read_text())["scores"]
  total: dict[float, float] = {}
  for key, value in scores.items():
    head, _, metric = key.partition("/")
    if "@" in head and "_test" in head and metric in ("score", "success_and_preserved"):
      guidance = float(head.rpartition("@")[2])
      total[guidance] = total.get(guidance, 0.0) + value
  return max(total, key=lambda g: (total[g], -g))


def _verifier(count: int = 512) -> dict[str, float]:
  """Computes the share of scenes that the verifier reads exactly, from clean and degraded images."""
  rng = np.random.default_rng(0)

  def jpeg(pixels: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer))

  def noise(pixels: np.ndarray) -> np.ndarray:
    added = pixels + rng.normal(0.0, 0.02 * 255, pixels.shape)
    return np.clip(np.rint(added), 0, 255).astype(np.uint8)

  scenes = [captions.sample_scene(0, i, split) for split in _SPLITS for i in range(count // 2)]
  degradations = {"clean": lambda x: x, "jpeg75": jpeg, "noise2percent": noise}
  return {label: float(np.mean([verify.verify(degrade(render.render(s))) == s for s in scenes]))
          for label, degrade in degradations.items()} | {"count": float(count)}


def _images(name: str, guidance: float, each: int = 14) -> bytes:
  """Draws a PNG of `each` prompts and edits, since gen3 half paraphrased; green: correct, red: not."""
  with tempfile.TemporaryDirectory() as workdir:
    path = showcase.write(f"shapes:{name}", workdir, each, guidance, 20, name in ("gen3", "rl_nft"))
    entries = [e for e in json.loads(path.read_text())["entries"]
               if e["ability"] in ("generate", "edit")]
    examples = [[np.asarray(Image.open(path.parent / image["file"])) for image in e["images"]]
                for e in entries]
  columns = 7
  rows = -(-len(entries) // columns)
  with matplotlib.rc_context({"font.size": 7}):
    figure = matplotlib.figure.Figure(figsize=(2.1 * columns, 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns).ravel()
    for axis, entry, images in itertools.zip_longest(axes, entries, examples):
      axis.axis("off")
      if entry is None:
        continue
      gap = np.full((images[0].shape[0], 6, 3), 255, np.uint8)
      axis.imshow(np.concatenate([part for i in images for part in (i, gap)][:-1], axis=1))
      axis.set_title("\n".join(textwrap.wrap(entry["asked"], 34)),
                     color="#1b7837" if entry["right"] else "#b2182b")
    figure.suptitle(f"shapes:{name}, guidance {guidance:g}, 20 steps; edits: before, after")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
  return buffer.getvalue()


def _curves(name: str, curve: list[dict[str, float]]) -> bytes:
  """Draws a PNG of scores and losses over the updates of the runs that trained the weights."""
  panels = {  # {title: {label: keys, today's and older ones}}
      "share of 240 prompts and edits": {
          "prompt accuracy": ("t2i/score",),
          "prompt accuracy, paraphrased": ("paraphrases/score", "wishes/score"),
          "edit success": ("edits/success",),
          "edit success, other objects unchanged": ("edits/success_and_preserved",),
          "the same, paraphrased": (
              "edit_paraphrases/success_and_preserved", "edit_wishes/success_and_preserved")},
      "flow-matching loss, test scenes": {
          "text": ("pairs/flow_loss",), "text of another scene": ("pairs/wrong_prompt_loss",),
          "edits": ("edit_pairs/flow_loss",), "edits of another": ("edit_pairs/wrong_prompt_loss",)}}
  figure = matplotlib.figure.Figure(figsize=(10, 3.6), layout="constrained")
  for axes, (title, lines) in zip(figure.subplots(1, len(panels)), panels.items()):
    for label, keys in lines.items():
      points = [(row["step"], row[key]) for row in curve for key in keys if key in row]
      if points:
        axes.plot(*zip(*points), marker="o", markersize=3, label=label)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("update")
    axes.set_ylim(bottom=0)
    axes.grid(color="#e3e5e8", linewidth=0.6)
    axes.legend(fontsize=8, frameon=False)
  figure.suptitle(f"shapes:{name}")
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=90)
  return buffer.getvalue()


if __name__ == "__main__":
  main()
