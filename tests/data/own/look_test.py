"""The first look counts, names what is left out, and draws what the model gets; without JAX."""

import io
import os
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from tests.data.own import folders
from unilip_jax.common import errors
from unilip_jax.data import sources
from unilip_jax.data.own import look, look_command, source


def _look(folder, example, **options):
  opened = source.open_own(str(folder), example, sources.Folders("", ""))
  return look.look(opened, example, **dict(
      image_size=16, crop="stretch", flip=False, max_pixels=10_000) | options)


def test_the_grid_holds_the_images_after_the_crop(tmp_path):
  seen = _look(folders.captioned(tmp_path / "own", 3), "t2i")
  grid = np.asarray(Image.open(io.BytesIO(seen.png)))
  for i in range(3):
    assert (grid[6, 4 + 20 * i + 2] == folders.colour(folders.png(i))).all()
  edits = np.asarray(Image.open(io.BytesIO(_look(folders.edits(tmp_path / "edits", 1), "edit").png)))
  assert (edits[6, 6] == folders.colour(folders.png(0))).all()
  assert (edits[6, 6 + 16] == folders.colour(folders.png(50))).all()


def test_lines_tell_sizes_texts_and_what_is_left_out(tmp_path):
  folder = folders.write(folders.captioned(tmp_path / "own", 3), {
      "big.png": folders.png(4, (40, 30)), "big.txt": "a " * 50, "lonely.png": folders.png(1),
      "broken.png": b"no image", "broken.txt": "x", ".DS_Store": b"x"})
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.new("RGB", (20, 20)).save(folder / "turned.jpg", exif=exif)
  (folder / "turned.txt").write_text("turned")
  text = "\n".join(_look(folder, "t2i").lines)
  for line in ("6 records for the example t2i", "sizes: 12×8 to 40×30, median 12×8; the model gets 16×16",
               "3 images have an edge below 16 pixels", "5 different ones of 6 to 99 characters",
               "'thing 0'",
               "left out: 1 × no text under", "1 × EXIF orientation 6 is not applied",
               "cannot be read: 1 × not an image of a known format"):
    assert line in text
  assert max(map(len, text.splitlines())) < 400


def test_files_that_end_early_are_named(tmp_path):
  photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
  stream = io.BytesIO()
  photo.save(stream, "JPEG")
  folder = folders.write(folders.captioned(tmp_path / "own", 20), {
      "x.jpg": stream.getvalue()[:1500], "x.txt": "a photo"})
  problem, = (line for line in _look(folder, "t2i").lines if "cannot be read" in line)
  assert "1 × OSError: image file is truncated" in problem
  assert problem.endswith("first: x.jpg")


def test_large_data_is_looked_at_in_parts(tmp_path):
  folder = folders.write(tmp_path / "own", {f"{i:03d}.png": folders.png(i) for i in range(150)})
  lines = _look(folder, "reconstruct", crop="center").lines
  assert lines[0] == "150 records for the example reconstruct"
  assert lines[1].startswith("sizes (of 100 looked at): ")


def test_conversations_and_folders_that_state_repeats_are_shown(tmp_path):
  talk = folders.write(tmp_path / "talk", {
      "a.png": folders.png(1), "a.json": '{"turns": [["what?", "this"]]}'})
  assert "'what? → this'" in "\n".join(_look(talk, "understand").lines)
  kohya = folders.write(tmp_path / "own", {"2_sks dog/a.png": folders.png(1), "3_x/b.png": folders.png(1)})
  assert "folders that state repeats: 2_sks dog (1), 3_x (1)" in _look(kohya, "t2i").lines


def test_data_without_a_readable_image_is_refused(tmp_path):
  with pytest.raises(ValueError, match="none of the images can be read: 1 × not an image"):
    _look(folders.write(tmp_path / "own", {"a.png": b"x"}), "reconstruct")


def test_the_command_looks_without_jax(tmp_path):
  folder = folders.imagefolder(tmp_path / "own")
  code = ("import sys; from unilip_jax.data.own import look_command; look_command.main(sys.argv[1:]); "
          "sys.exit('jax' in sys.modules)")
  done = subprocess.run(
      [sys.executable, "-c", code, str(folder), f"--out={tmp_path}/new/look.png", "--image_size=32"],
      capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": os.getcwd()})
  assert done.returncode == 0, done.stderr
  assert f"{folder}: metadata.jsonl (list), can train t2i, reconstruct" in done.stdout
  assert "columns: image from file_name, text from text" in done.stdout
  assert Image.open(tmp_path / "new/look.png").size[0] > 100


def test_the_command_refuses_in_words(tmp_path, capsys):
  with pytest.raises(SystemExit):
    errors.run_command(lambda: look_command.main([str(tmp_path)]))
  assert "holds no data that is known (0 files)" in capsys.readouterr().err
  folders.write(tmp_path, {"a.txt": "a cat", "b.txt": "a dog"})
  with pytest.raises(SystemExit):
    errors.run_command(lambda: look_command.main([str(tmp_path)]))
  assert f"{tmp_path} holds 2 texts, but no image; docs/data.md" in capsys.readouterr().err


@pytest.mark.parametrize(("lonely", "refused"), [(0, False), (1, True)])
def test_the_last_line_tells_whether_training_refuses_the_folder(lonely, refused, tmp_path, capsys):
  folder = folders.write(folders.captioned(tmp_path / "own", 9), {
      f"lonely{i}.png": folders.png(1) for i in range(lonely)})
  look_command.main([str(folder), f"--out={tmp_path}/look.png"])
  last = capsys.readouterr().out.splitlines()[-1]
  line = ("training refuses this data: 1 of 10 records are left out, more than data.max_bad_fraction=0.01; "
          "--config.data.max_bad_fraction=0.1 accepts it")
  assert (last == line) is refused


def test_transparency_is_named(tmp_path):
  folder = folders.captioned(tmp_path / "own", 3)
  Image.new("RGBA", (12, 8), (1, 2, 3, 0)).save(folder / "0.png")
  lines = _look(folder, "t2i").lines
  assert sum("transparency" in line for line in lines) == 1


def test_the_look_reads_texts_as_training_does(tmp_path):
  folder = folders.write(tmp_path / "own", {
      "a.png": folders.png(1), "a.txt": "\ufeffa cat", "b.png": folders.png(1), "b.txt": b"caf\xe9"})
  text = "\n".join(_look(folder, "t2i").lines)
  assert "'a cat'" in text
  assert "cannot be read: 1 × broken text: not UTF-8" in text
  talk = folders.write(tmp_path / "talk", {
      "a.png": folders.png(1), "a.json": '{"conversations": [{"from": "human", "value": "q"}, '
                                         '{"from": "gpt", "value": "a"}]}'})
  folders.tar(tmp_path / "tars" / "a.tar", {p.name: p.read_bytes() for p in talk.iterdir()})
  opened = sources.open_source(sources.SourceSpec("own", str(tmp_path / "tars"), {}), example="understand",
                               folders=sources.Folders("", str(tmp_path)))
  seen = look.look(opened, "understand", image_size=16, crop="stretch", flip=False, max_pixels=10_000)
  assert "'q → a'" in "\n".join(seen.lines)
