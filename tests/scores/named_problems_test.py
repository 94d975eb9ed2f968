"""In every benchmark's own files each malformed record, doubled id and missing file is named."""

import json
import re

from etils import epath
from PIL import Image
import pytest

from tests.scores import made_up, made_up_tables
from unilip_jax.scores import base, image_files, make, records, tiling

_IMAGES = ("wise", "wise-rewrite", "wise-verified", "imgedit", "imgedit-hard", "gedit", "gedit-cn",
           "geneval", "geneval-long", "geneval-hf", "dpg", "dpg-1")
# benchmark: (file, a field that every record needs, id of the first record)
_FILES = {
    "wise": ("natural_science.json", "Explanation", "701"),
    "wise-rewrite": ("natural_science_rewrite.json", "Explanation", "701"),
    "wise-verified": ("natural_science_verified.json", "Explanation", "701"),
    "imgedit": ("singleturn.json", "edit_type", "22"), "imgedit-hard": ("UGE_edit.json", "prompt", "1"),
    "gedit": ("gedit.jsonl", "instruction", "0" * 32), "gedit-cn": ("gedit.jsonl", "instruction", "0" * 32),
    "geneval": ("evaluation_metadata.jsonl", "include", "00000"),
    "geneval-long": ("evaluation_metadata.jsonl", "include", "00000"),
    "geneval-hf": ("evaluation_metadata.jsonl", "include", "00000"),
    "dpg": ("dpg_bench.csv", "dependency", "scene0, question 1"),
    "dpg-1": ("dpg_bench.csv", "dependency", "scene0, question 1"),
    "mmvet": ("mm-vet.json", "capability", "v1_0")}


@pytest.mark.parametrize("name", _FILES)
def test_a_malformed_record_and_a_doubled_id_are_named(tmp_path, name):
  copy, benchmark = made_up.make(name, tmp_path / "items"), base.find(name)
  file, field, item_id = _FILES[name]
  path = copy.items / file
  text = path.read_text()
  dependency = "0.,,1,"  # of the first question in the CSV file
  path.write_text(text.replace(f"{dependency}0", dependency, 1) if path.suffix == ".csv" else
                  text.replace(f'"{field}"', '"absent"', 1))
  with pytest.raises(ValueError, match=f"{re.escape(file)}.*malformed: no (field )?'?{field}"):
    benchmark.read_items(str(copy.items))
  if path.suffix == ".csv":
    path.write_text(text + text.splitlines(keepends=True)[1])
  elif path.suffix == ".jsonl":
    lines = [json.loads(line) for line in text.splitlines()]
    doubled = [line | {"index": f"{i:05d}"} for i, line in enumerate(lines)]
    doubled.append(doubled[0])
    path.write_text("".join(json.dumps(line) + "\n" for line in doubled))
  elif isinstance(records := json.loads(text), list):
    path.write_text(json.dumps([*records, records[0]]))
  else:
    path.write_text(json.dumps(records)[:-1] + f', "{item_id}": {json.dumps(records[item_id])}}}')
  with pytest.raises(ValueError, match=f"(?s)several items of the same id.*{item_id}(:| occurs) 2 times"):
    benchmark.read_items(str(copy.items))


def test_a_pipe_or_device_is_refused_unread():
  with pytest.raises(ValueError, match="is a pipe or a device"):
    records.read_text(epath.Path("/dev/zero"))


@pytest.mark.parametrize("name", _FILES)
def test_files_of_another_form_are_named(tmp_path, name):
  copy, benchmark = made_up.make(name, tmp_path / "items"), base.find(name)
  path = copy.items / _FILES[name][0]
  for text in ("3", "null", "[1]", "[]", "{}", '{"1": null}', '"x"', "[" * 5000, "", b"\xff\xfe\0"):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"{re.escape(path.name)}|{re.escape(str(copy.items))}"):
      benchmark.read_items(str(copy.items))


# benchmark: texts of the first record and what replaces them
_WRONG = {
    "wise": [('"A made-up scene number 701"', '" "', "item 701 has no prompt")],
    "imgedit": [('"22"', '"../../x"', r"the id '\.\./\.\./x' is no name of a file"),
                ('"background"', '"painting"', "key 22: malformed: edit_type is 'painting'")],
    "gedit": [("0" * 32, "..", r"the id '\.\.' is no name of a file"),
              ('"instruction_language": "en"', '"instruction_language": "zh"',
               "line 1: malformed: instruction_language is 'zh'"),
              ('"0.png"', "3", "line 1: malformed: 'input_image' is 3")],
    "geneval": [('"single_object"', '"single"', "line 1: malformed: 'tag' is 'single'"),
                ('"count": 1', '"count": "one"', "line 1: malformed: 'include' is"),
                ('"count": 1', '"count": 1, "position": ["above", 0]', "line 1: malformed: 'include' is"),
                ('{"tag"', '{"index": 3, "tag"', "line 1: malformed: 'index' is 3"),
                ('{"tag"', '{"index": "a/b", "tag"', "the id 'a/b' is no name of a file")],
    "dpg": [("scene0,A made-up scene number 0.,,2", "scene0,Another scene.,,2",
             "row 3: item scene0 has another text"),
            ("scene0,", ",", "row 2: malformed: no item_id"),
            ("number 0?", "number 0?,1", "row 2: malformed: 1 cells more than columns")],
    "mmvet": [('"What is there in way 0?"', '""', "item v1_0 has no prompt")]}


@pytest.mark.parametrize(("name", "old", "new", "message"), [
    (name, *case) for name, cases in _WRONG.items() for case in cases])
def test_what_is_wrong_with_a_record_is_named(tmp_path, name, old, new, message):
  copy, benchmark = made_up.make(name, tmp_path / "items"), base.find(name)
  path = copy.items / _FILES[name][0]
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new, 1))
  with pytest.raises(ValueError, match=message):
    benchmark.read_items(str(copy.items))


@pytest.mark.parametrize("name", [*made_up_tables.NAMES])
def test_a_malformed_row_a_doubled_index_and_a_broken_image_are_named(tmp_path, name):
  path = made_up_tables.make(name, tmp_path / "items")
  benchmark, (head, first, *rows) = base.find(name), path.read_text().splitlines(keepends=True)

  def first_with(column, text):
    cells = first.rstrip("\n").split("\t")
    cells[head.rstrip("\n").split("\t").index(column)] = text
    return "\t".join(cells) + "\n"

  for broken, message in (
      ([head, first_with("question", ""), *rows],
       f"{re.escape(path.name)}, row 1: malformed: no index or no question"),
      ([head, first, first, *rows], "(?s)several items of the same id.*0: 2 times"),
      ([head, first_with("image", "iVBOR!!!" * 9), *rows],
       "row 1: malformed: the image is not in base64")):
    path.write_text("".join(broken))
    with pytest.raises(ValueError, match=message):
      benchmark.read_items(str(path))
  path.write_text("".join([head, first, *rows]))
  items = benchmark.read_items(str(path))
  lost = base.Item("7", "?", "a", images=(str(tmp_path / "no.png"),))
  for run in (lambda: tiling.describe([*items, lost], 8, 1),
              lambda: make.make_answers(benchmark, [lost], tmp_path, made_up_tables.Answerer(),
                                        max_new_tokens=1, max_tiles=1)):
    with pytest.raises(FileNotFoundError, match=r"item 7: no image .*no\.png"):
      run()


@pytest.mark.parametrize("name", _IMAGES)
def test_a_missing_an_unreadable_a_doubled_and_a_file_of_another_size_are_named(tmp_path, name):
  copy, benchmark = made_up.make(name, tmp_path / "items"), base.find(name)
  items, folder = benchmark.read_items(str(copy.items)), tmp_path / "images"
  paths = [benchmark.output_path(item, 0) for item in items]
  for i, item in enumerate(items):
    for k in range(benchmark.images_per_item):
      made_up.write_image(folder / benchmark.output_path(item, k), 10 * i + k, (16, 16))
  (folder / paths[1]).unlink()
  (folder / paths[2]).write_bytes(b"half an image")
  Image.new("RGB", (9, 16)).save(folder / paths[3])
  (folder / paths[4].replace(".png", ".jpg")).write_bytes((folder / paths[4]).read_bytes())
  lines = image_files.check(benchmark, items, folder, size=16 // benchmark.tiles_per_side).lines()
  assert lines[0] == f"missing: image 0 of item {items[1].id}"
  assert lines[1].startswith(f"unreadable: {paths[2]}: 13 bytes")
  assert lines[2] == f"wrong size: {paths[3]}: 9×16, expected 16×16"
  assert lines[3].endswith(f"resembles {paths[4]}: a doubled id or another suffix")
  assert len(lines) == 4
