"""Packs and unpacks recorded runs of the official scorers: `evals.tar.xz`.

  python -m tests.golden.evals --source=DIR    # the complete recordings; keeps the folders of _FOLDERS
"""

import argparse
import pathlib

from tests.golden import unpack as recordings

_ARCHIVE = pathlib.Path(__file__).parent / "evals.tar.xz"
_FOLDERS = ("dpg", "gedit", "geneval", "imgedit", "mcq", "mme", "mmmu", "mmvet", "tiling", "wise")


def unpack(folder: pathlib.Path) -> pathlib.Path:
  """Writes the recordings into an empty folder; returns it."""
  return recordings.extract(_ARCHIVE, folder)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--source", required=True, type=pathlib.Path)
  source = parser.parse_args().source
  files = {str(p.relative_to(source)): p.read_bytes()
           for folder in _FOLDERS for p in sorted((source / folder).rglob("*")) if p.is_file()}
  _ARCHIVE.write_bytes(recordings.archive(files))
  print(f"{_ARCHIVE.name}: {len(files)} files, {_ARCHIVE.stat().st_size:,} bytes")


if __name__ == "__main__":
  main()
