"""Packs and unpacks recorded adapters of PEFT and diffusers: `lora.tar.xz`.

  python -m tests.golden.lora --source=DIR    # the complete recordings; leaves out the files of _LEFT_OUT
"""

import argparse
import pathlib

from tests.golden import unpack as recordings

_ARCHIVE = pathlib.Path(__file__).parent / "lora.tar.xz"
# Merged weights follow from base and adapter, and the outputs that they give are recorded.
_LEFT_OUT = ("merged_changed_tensors.safetensors",)


def unpack(folder: pathlib.Path) -> pathlib.Path:
  """Writes the recordings into an empty folder; returns it."""
  return recordings.extract(_ARCHIVE, folder)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--source", required=True, type=pathlib.Path)
  source = parser.parse_args().source
  files = {str(p.relative_to(source)): p.read_bytes() for p in sorted(source.rglob("*"))
           if p.is_file() and p.name not in _LEFT_OUT}
  _ARCHIVE.write_bytes(recordings.archive(files))
  print(f"{_ARCHIVE.name}: {len(files)} files, {_ARCHIVE.stat().st_size:,} bytes")


if __name__ == "__main__":
  main()
