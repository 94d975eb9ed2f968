"""Small made-up folders of own data, one writer for each layout."""

import io
import json
import pathlib
import tarfile

import numpy as np
from PIL import Image
import pyarrow as pa
from pyarrow import parquet


def png(number: int, size: tuple[int, int] = (12, 8)) -> bytes:
  """An image of its own colour."""
  buffer = io.BytesIO()
  Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, number * 13 % 256)).save(buffer, "PNG")
  return buffer.getvalue()


def write(folder: pathlib.Path, files: dict[str, bytes | str]) -> pathlib.Path:
  """Writes {path below the folder: content}."""
  for name, content in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
  return folder


def lines(*rows) -> str:
  return "".join(f"{json.dumps(row)}\n" for row in rows)


def captioned(folder: pathlib.Path, count: int = 4, suffix: str = "txt") -> pathlib.Path:
  """Images with captions of the same name."""
  texts = [json.dumps({"caption": f"thing {i}"}) if suffix == "json" else f"thing {i}\n"
           for i in range(count)]
  return write(folder, {f"{i}.png": png(i) for i in range(count)}
               | {f"{i}.{suffix}": text for i, text in enumerate(texts)})


def imagefolder(
    folder: pathlib.Path, count: int = 4, kind: str = "jsonl", column: str = "text") -> pathlib.Path:
  """Images and metadata.jsonl or .csv."""
  rows = [{"file_name": f"images/{i}.png", column: f'thing, "{i}"'} for i in range(count)]
  quoted = lambda text: '"' + text.replace('"', '""') + '"'
  content = lines(*rows) if kind == "jsonl" else f"file_name,{column}\n" + "".join(
      f"{r['file_name']},{quoted(r[column])}\n" for r in rows)
  return write(folder, {f"images/{i}.png": png(i) for i in range(count)} | {f"metadata.{kind}": content})


def table(count: int = 5, *, start: int = 0, paths: bool = False) -> pa.Table:
  """A table of images, as Hugging Face stores them, or of paths."""
  images = [f"images/{i}.png" if paths else {"bytes": png(i), "path": f"{i}.png"}
            for i in range(start, start + count)]
  return pa.table({"image": images, "caption": [f"thing {i}" for i in range(start, start + count)]})


def parquets(folder: pathlib.Path) -> pathlib.Path:
  """A dataset as it is downloaded: two files of the split train in row groups of two, one of test."""
  (folder / "data").mkdir(parents=True)
  parquet.write_table(table(5), folder / "data/train-00000-of-00002.parquet", row_group_size=2)
  parquet.write_table(table(3, start=5), folder / "data/train-00001-of-00002.parquet", row_group_size=2)
  parquet.write_table(table(2, start=90), folder / "data/test-00000-of-00001.parquet")
  return write(folder, {"README.md": "a dataset"})


def saved_dataset(folder: pathlib.Path, *, splits: bool = False) -> pathlib.Path:
  """A folder as Dataset.save_to_disk of Hugging Face writes it."""
  for split, start in (("train", 0), ("test", 90)) if splits else (("", 0),):
    place = folder / split
    place.mkdir(parents=True)
    for number in range(2):
      part = table(3, start=start + 3 * number)
      with pa.OSFile(str(place / f"data-0000{number}-of-00002.arrow"), "wb") as sink, pa.ipc.new_stream(
          sink, part.schema) as writer:
        writer.write_table(part)
    write(place, {"state.json": "{}", "dataset_info.json": "{}"})
  return write(folder, {"dataset_dict.json": "{}"}) if splits else folder


def tar(path: pathlib.Path, files: dict[str, bytes | str]) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as archive:
    for name, content in files.items():
      data = content.encode() if isinstance(content, str) else content
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return path


def edits(folder: pathlib.Path, count: int = 4) -> pathlib.Path:
  """A list of edits."""
  return write(folder, {f"{side}/{i}.png": png(i + 50 * (side == "after"))
                        for i in range(count) for side in ("before", "after")} | {
      "edits.jsonl": lines(*({"source": f"before/{i}.png", "target": f"after/{i}.png",
                              "instruction": f"make it {i}"} for i in range(count)))})


def colour(data: bytes) -> tuple[int, ...]:
  """The colour of an image of `png`."""
  return tuple(int(x) for x in np.asarray(Image.open(io.BytesIO(data)))[0, 0])
