"""Writes small copies of the layouts of downloaded datasets and of users' own data."""

import io
import json
import pathlib
import tarfile

import numpy as np
from PIL import Image


def image(seed: int, fmt: str = "PNG", size: tuple[int, int] = (24, 18)) -> bytes:
  """Encodes a small image of noise."""
  pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, fmt)
  return buffer.getvalue()


def write(path: pathlib.Path, data: bytes | str) -> pathlib.Path:
  """Writes a file, its folders included."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data.encode() if isinstance(data, str) else data)
  return path


def tar(path: pathlib.Path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> pathlib.Path:
  """Writes a tar of these members, in order."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as file:
    for name, data in members.items() if isinstance(members, dict) else members:
      member = tarfile.TarInfo(name)
      member.size = len(data)
      file.addfile(member, io.BytesIO(data))
  return path


def gpt_image_edit(root: pathlib.Path, count: int = 12) -> pathlib.Path:
  """Writes GPT-Image-Edit-1.5M: gptedit.txt, two lists, images in folders; PNG inputs, JPEG outputs."""
  listing = []
  for name in ("hqedit", "omniedit"):
    entries = []
    for i in range(count):
      write(root / f"gpt-edit/{name}/input/{i:05d}.png", image(2 * i))
      write(root / f"gpt-edit/{name}/output/{i:05d}.png", image(2 * i + 1, "JPEG"))
      entries.append({
          "id": i, "image": [f"input/{i:05d}.png", f"output/{i:05d}.png"],
          "conversations": [{"from": "human", "value": f"<image>\nmake it {name} {i}"},
                            {"from": "gpt", "value": "<image>"}]})
    write(root / f"training_json/{name}.json", json.dumps(entries, indent=1))
    listing.append(f"gpt-edit/{name},training_json/{name}.json,false")
  write(root / "gptedit.txt", "\n".join(listing) + "\n")
  return root


def sharegpt4o(root: pathlib.Path, count: int = 12) -> pathlib.Path:
  """Writes ShareGPT-4o-Image: two lists, images in folders."""
  t2i, edit = [], []
  for i in range(count):
    write(root / f"text_to_image/image_{i}.png", image(i))
    write(root / f"text_and_image_to_image/input_{i}.png", image(100 + i))
    write(root / f"text_and_image_to_image/output_{i}.png", image(200 + i))
    t2i.append({"input_prompt": f"an image, number {i}", "output_image": f"text_to_image/image_{i}.png",
                "output_image_resolution": [24, 18]})
    edit.append({"input_prompt": f"change number {i}",
                 "input_image": [f"text_and_image_to_image/input_{i}.png"],
                 "output_image": f"text_and_image_to_image/output_{i}.png"})
  write(root / "text_to_image.json", json.dumps(t2i))
  write(root / "text_and_image_to_image.json", json.dumps(edit))
  return root


def blip3o(root: pathlib.Path, tars: int = 4, count: int = 6) -> str:
  """Writes BLIP3o tars of jpg, txt; returns the pattern that matches them."""
  for t in range(tars):
    members = {}
    for i in range(count):
      members[f"{i:09d}.jpg"] = image(t * count + i, "JPEG")
      members[f"{i:09d}.txt"] = f"caption {i} of tar {t}".encode()
    tar(root / f"{t:05d}.tar", members)
  return str(root / "*.tar")


def imagenet(root: pathlib.Path, tars: int = 3, count: int = 6) -> str:
  """Writes ImageNet-val tars of jpg, cls; returns the pattern that matches them."""
  for t in range(tars):
    members = {}
    for i in range(count):
      members[f"ILSVRC2012_val_{t * count + i:08d}.jpg"] = image(t * count + i, "JPEG")
      members[f"ILSVRC2012_val_{t * count + i:08d}.cls"] = str(i).encode()
    tar(root / f"imagenet-val-{t:06d}.tar", members)
  return str(root / "*.tar")


def json_lines(root: pathlib.Path, kind: str, count: int = 12) -> pathlib.Path:
  """Writes a user's own data: a list, and a folder of images next to it."""
  lines = []
  for i in range(count):
    write(root / f"images/{i}.png", image(i))
    write(root / f"images/{i}-after.jpg", image(50 + i, "JPEG"))
    lines.append({
        "t2i": {"key": f"mine-{i}", "image": f"images/{i}.png", "text": f"a photo of {i}"},
        "edit": {"input": f"images/{i}.png", "output": f"images/{i}-after.jpg", "text": f"number {i}"},
        "understand": {"image": f"images/{i}.png",
                       "turns": [["how many?", str(i)], ["which colour?", "red"]]}}[kind])
  return write(root / f"{kind}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def tree(folder: pathlib.Path) -> dict[str, bytes]:
  """Returns {path below `folder`: bytes} of every file in it."""
  return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
