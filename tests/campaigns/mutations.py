"""Random damage to one file of a folder: what disks, copies, editors and killed processes leave."""

from collections.abc import Callable, Sequence
import os
import pathlib
import random
import shutil


def truncate(file: pathlib.Path, rng: random.Random, files: Sequence[pathlib.Path]) -> None:
  """Cuts the end off."""
  os.truncate(file, rng.randrange(file.stat().st_size) if file.stat().st_size else 0)


def flip(file: pathlib.Path, rng: random.Random, files: Sequence[pathlib.Path]) -> None:
  """Flips one bit."""
  data = bytearray(file.read_bytes())
  if data:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  file.write_bytes(data)


def zero(file: pathlib.Path, rng: random.Random, files: Sequence[pathlib.Path]) -> None:
  """Overwrites a range with zeros."""
  data = bytearray(file.read_bytes())
  if data:
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.randrange(1, 4097))
    data[start:end] = bytes(end - start)
  file.write_bytes(data)


def empty(file: pathlib.Path, rng: random.Random, files: Sequence[pathlib.Path]) -> None:
  """Leaves 0 bytes."""
  os.truncate(file, 0)


def delete(file: pathlib.Path, rng: random.Random, files: Sequence[pathlib.Path]) -> None:
  """Removes the file."""
  file.unlink()


def swap(file: pathlib.Path, rng: random.Random, files: Sequence[pathlib.Path]) -> None:
  """Exchanges the file with another one, with the same suffix if there is one."""
  same = [f for f in files if f != file and f.suffix == file.suffix] or [f for f in files if f != file]
  if same:
    other, between = rng.choice(same), file.with_name(file.name + ".between")
    file.rename(between)
    other.rename(file)
    between.rename(other)


def folder(file: pathlib.Path, rng: random.Random, files: Sequence[pathlib.Path]) -> None:
  """Puts a folder in its place."""
  file.unlink()
  file.mkdir()


def double(file: pathlib.Path, rng: random.Random, files: Sequence[pathlib.Path]) -> None:
  """Writes the content twice."""
  file.write_bytes(2 * file.read_bytes())


def junk(file: pathlib.Path, rng: random.Random, files: Sequence[pathlib.Path]) -> None:
  """Appends random bytes."""
  with file.open("ab") as stream:
    stream.write(rng.randbytes(rng.randrange(1, 513)))


ALL: Sequence[Callable[[pathlib.Path, random.Random, Sequence[pathlib.Path]], None]] = (
    truncate, flip, zero, empty, delete, swap, folder, double, junk)


def files_of(root: pathlib.Path) -> list[pathlib.Path]:
  """Lists the files below a folder, sorted."""
  return sorted(p for p in root.rglob("*") if p.is_file())


def reset(root: pathlib.Path, backup: pathlib.Path) -> None:
  """Makes a folder equal to its backup, modification times included."""
  shutil.rmtree(root, ignore_errors=True)
  shutil.copytree(backup, root)
