"""Teaches the tiny model a colour that training never showed, from fifty images: LoRA and full fine-tuning.

  python -m experiments.new_colour --workdir=DIR [--steps=900] [--single] [--only=lora,full]

The colour is indigo, between blue and purple; the frozen tokenizer can draw it (the entry "tokenizer" of
the results). Both methods see the same batches: the fifty images, and as many of a thousand images of the
old colours (DreamBooth's prior preservation). Scored are prompts that name the new colour, and prompts of
the evaluation "t2i", with the same noise for every model. With --single every new image and prompt is of
one object, as in docs/quickstart.md; otherwise they have the evaluation's mix of categories. Finished parts
are kept; running the command again continues. Writes <workdir>/new_colour.json.
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import io
import json
import os
import pathlib
import resource
import shlex
import subprocess
import sys
import tarfile
import time
from typing import Any

from absl import logging
from etils import epath
import numpy as np
from PIL import Image

from unilip_jax.common import atomic_io, command_options, errors, json_file, machine
from unilip_jax.infer.model import UniLIP
from unilip_jax.shapes import captions, render, scene, verify

FILE = "new_colour.json"
COLOUR, RGB = "indigo", (97, 77, 195)
START = "shapes:gen3"
IMAGES, PRIOR = 50, 1000
_NEW, _OLD = 60, 240  # prompts
_PATCH = "new_colour.tar"
# What differs between the methods. The default adapters of lora.py learn less here: 0.13 of the new prompts
# in 200 updates. The rate of full fine-tuning is that of gen3.
METHODS = {
    "lora": ("lora", {
        "lora.targets": (("^(connector|projector|dit/(layers|caption))", {"rank": 16, "alpha": 16.0}),),
        "optimizer.lr": 2e-3, "optimizer.end_lr": 2e-4}),
    "full": ("gen3", {"data.edit_share": 0.0, "data.edit": "()", "ema_decay": 0.0})}


def add_colour() -> None:
  """Adds the new colour to those that scenes, the renderer and the verifier know in this process."""
  if COLOUR not in scene.COLOURS:
    scene.COLOURS += (COLOUR,)
    render.RGB[COLOUR] = RGB


def sample(index: int, split: str, single: bool = False) -> tuple[scene.Scene, captions.Caption]:
  """Samples a scene of old colours of which one object becomes indigo, and its caption."""
  while True:
    one = captions.sample_scene(7, index, split, plain=False)
    if single:
      one = scene.Scene(one.blocks[:1], one.background)
    rng = np.random.default_rng((7, index))
    blocks = list(one.blocks)
    at = int(rng.integers(len(blocks)))
    blocks[at] = dataclasses.replace(blocks[at], colour=COLOUR)
    changed = scene.Scene(tuple(blocks), one.background)
    caption = captions.caption(changed, rng, described=0.25)
    if COLOUR in caption.text:
      return changed, caption
    index += 100_000  # this caption names no colour


def write_images(path: epath.Path, single: bool = False) -> None:
  """Writes the fifty images with captions as a tar."""
  with atomic_io.open_file(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
    for index in range(IMAGES):
      one, caption = sample(index, "train", single)
      image = io.BytesIO()
      Image.fromarray(render.render(one)).save(image, "JPEG", quality=95)
      for suffix, content in (("jpg", image.getvalue()), ("txt", caption.text.encode())):
        member = tarfile.TarInfo(f"{index:03d}.{suffix}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def new_prompts(single: bool = False) -> list[captions.Caption]:
  """Returns different prompts that name the new colour, of scenes of the test split.

  Those of single objects may name size, place and background: without these there are few.
  """
  found: dict[str, captions.Caption] = {}
  index = 0
  while len(found) < _NEW:
    caption = sample(index, "test", single)[1]
    if single or caption.category != "description":
      found.setdefault(caption.text, caption)
    index += 1
  return list(found.values())


def score(model: UniLIP, single: bool = False) -> dict[str, float]:
  """Returns the shares of new and old prompts that images fit."""
  groups = {"new": new_prompts(single), "old": captions.prompts_in_turn(_OLD, 0, "test")}
  result = {}
  for name, prompts in groups.items():
    images = model.generate([c.text for c in prompts], guidance=2.0, output="array")
    result[name] = float(np.mean([captions.fits(c, verify.verify(i)) for c, i in zip(prompts, images)]))
  return result


def _tokenizer_score(model: UniLIP, single: bool) -> dict[str, float]:
  """Returns the share of reconstructions of new scenes that read back exactly: the DiT's limit."""
  scenes = [sample(index, "test", single)[0] for index in range(_NEW)]
  images = model.reconstruct([render.render(s) for s in scenes], output="array")
  return {"exact": float(np.mean([verify.verify(i) == s for i, s in zip(images, scenes)]))}


def command(method: str, workdir: epath.Path, steps: int) -> list[str]:
  """Returns the command that trains by one of METHODS."""
  stage, fields = METHODS[method]
  rows = (("tar", str(workdir / _PATCH), 1.0), ("shapes", "train", 1.0, {"count": PRIOR}))
  fields = fields | {
      "init_from": START, "data.train": rows, "batch_size": 32, "total_steps": steps, "eval.sets": "()",
      "sample_every_steps": 0, "checkpoint_every_steps": steps, "optimizer.warmup_steps": 20,
      "data.render_dir": workdir / "rendered"}
  return [sys.executable, "-m", "unilip_jax.main", f"--config=configs/{stage}.py:tiny",
          f"--workdir={workdir / method}", *(f"--config.{key}={value}" for key, value in fields.items())]


def train(method: str, workdir: epath.Path, steps: int) -> dict[str, Any]:
  """Trains by one of METHODS in a process of its own, and measures it.

  Raises:
    subprocess.CalledProcessError: if it fails.
  """
  words = command(method, workdir, steps)
  logging.info("%s", shlex.join(words))
  begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
  load = os.getloadavg()[0]
  process = subprocess.Popen(words)
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), words)
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  steps_folder = pathlib.Path(workdir) / method / "checkpoints" / str(steps)
  size = lambda folder: sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
  return {
      "seconds": round(time.monotonic() - begin), "load": [round(load, 1), round(os.getloadavg()[0], 1)],
      "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
      "peak_memory_mb": round(usage.ru_maxrss / 1024),
      "checkpoint_mb": round(size(steps_folder) / 1e6, 2),
      "parameters_mb": round(size(steps_folder / "params") / 1e6, 2)}


def run(workdir: str, steps: int, methods: Sequence[str], single: bool = False) -> Mapping[str, Any]:
  """Runs what is not finished; writes and returns the results."""
  folder = epath.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  add_colour()
  file = folder / FILE
  settings = {"colour": [COLOUR, *RGB], "images": IMAGES, "prior_images": PRIOR, "single": single,
              "steps": steps, "new_prompts": _NEW, "old_prompts": _OLD}
  results = json_file.read(file, remedy="delete it") if file.exists() else settings | {
      "machine": machine.describe(), "cores": len(os.sched_getaffinity(0))}
  if differing := [key for key in settings if results.get(key) != settings[key]]:
    key = differing[0]
    raise ValueError(f"{folder} was begun with {key}={results.get(key)}, not {settings[key]}; continue it "
                     "with the same settings, or give another --workdir")
  if not (folder / _PATCH).exists():
    write_images(folder / _PATCH, single)
  for method in methods:
    if method not in results:
      results[method] = train(method, folder, steps)
      json_file.write(file, results)
  for name, path in {"start": START, **{m: str(folder / m) for m in methods}}.items():
    entry = results.setdefault(name, {})
    if "new" not in entry:
      model = UniLIP.load(path, "float32", batch_size=30)
      entry |= score(model, single)
      if name == "start":
        results["tokenizer"] = _tokenizer_score(model, single)
      json_file.write(file, results)
      logging.info("%s: %s", name, json.dumps(entry))
  return results


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
      prog="python -m experiments.new_colour", description=__doc__.split("\n\n")[0])
  parser.add_argument("--workdir", required=True, type=command_options.path)
  parser.add_argument("--steps", type=command_options.integer(1), default=900,
                      help="updates of each method")
  parser.add_argument("--single", action="store_true", help="new images and prompts of one object each")
  parser.add_argument("--only", default="lora,full", help="of lora, full")
  args = parser.parse_args(argv)
  logging.set_verbosity(logging.INFO)
  print(json.dumps(run(args.workdir, args.steps, args.only.split(","), args.single), indent=2))


if __name__ == "__main__":
  errors.run_command(main)
