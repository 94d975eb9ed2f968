"""Every layout of own data gives the same records; what is no record is counted with its reason."""

import json
import os
import pickle
import time

from PIL import Image
import pyarrow as pa
import pytest

from tests.data.own import folders
from unilip_jax.data import decode, sources
from unilip_jax.data.own import layouts, source


def _open(path, example="t2i", **options):
  spec = sources.SourceSpec("own", str(path), options)
  index = os.path.join(os.path.dirname(str(path)), "index")
  return sources.open_source(spec, example=example, folders=sources.Folders(index, index))


def _pairs(opened):
  """{caption: colour} of all records, read from the last to the first."""
  records = [opened[i] for i in reversed(range(len(opened)))]
  return {" ".join(r.parts["text"].decode().split()): folders.colour(r.parts["image"]) for r in records}


def _things(numbers, form="thing {}"):
  return {form.format(i): folders.colour(folders.png(i)) for i in numbers}


@pytest.mark.parametrize(("make", "kind", "expected"), [
    (lambda p: folders.captioned(p), "images", _things(range(4))),
    (lambda p: folders.captioned(p, suffix="caption"), "images", _things(range(4))),
    (lambda p: folders.captioned(p, suffix="json"), "images", _things(range(4))),
    (lambda p: folders.imagefolder(p), "list", _things(range(4), 'thing, "{}"')),
    (lambda p: folders.imagefolder(p, kind="csv", column="prompt"), "list",
     _things(range(4), 'thing, "{}"')),
    (lambda p: folders.parquets(p), "parquet", _things(range(8))),
    (lambda p: folders.saved_dataset(p), "arrow", _things(range(6))),
    (lambda p: folders.saved_dataset(p, splits=True), "arrow", _things(range(6))),
    (lambda p: folders.tar(p / "a.tar", {f"{i}.{s}": folders.png(i) if s == "png" else f"thing {i}"
                                         for i in range(3) for s in ("png", "txt")}).parent,
     "tar", _things(range(3))),
])
def test_layouts_are_detected_and_read_at_any_position(make, kind, expected, tmp_path):
  folder = make(tmp_path / "own")
  found = layouts.detect(str(folder))
  assert found.kind == kind
  assert source.serves(found)[0] == "t2i"
  opened = _open(folder)
  assert len(opened) == len(expected)
  assert _pairs(opened) == expected
  copy = pickle.loads(pickle.dumps(opened))  # as worker processes get it
  assert copy[1].parts == opened[1].parts
  assert folders.colour(opened.without("text")[1].parts["image"]) in expected.values()
  assert len(_open(folder, "reconstruct")) == len(expected)


def test_names_may_hold_dots_spaces_and_links(tmp_path):
  folder = folders.write(tmp_path / "own", {
      "a.b 3.21.png": folders.png(1), "a.b 3.21.txt": "thing 1", "c.png": folders.png(2),
      "c.png.txt": "thing 2", "D.PNG": folders.png(3), "D.TXT": "thing 3"})
  elsewhere = folders.captioned(tmp_path / "elsewhere", 1)
  (folder / "linked").symlink_to(elsewhere)
  assert _pairs(_open(folder)) == _things(range(4))


def test_folders_of_kohya_state_repeats_and_words(tmp_path):
  folder = folders.write(tmp_path / "own", {
      "10_sks dog/a.png": folders.png(1), "10_sks dog/b.png": folders.png(2), "10_sks dog/b.txt": "thing 2",
      "5_cat/c.png": folders.png(3), "2024_holiday/d.png": folders.png(4), "2024_holiday/d.txt": "thing 4"})
  opened = _open(folder)
  texts = [opened[i].parts["text"].decode() for i in range(len(opened))]
  assert sorted(texts) == ["cat"] * 5 + ["sks dog"] * 10 + ["thing 2"] * 10 + ["thing 4"]
  assert opened.folders() == {"10_sks dog": 2, "5_cat": 1}
  assert len(opened.stamps()) == len(opened) == 26
  alone = _open(folder / "10_sks dog")  # equal repeats change nothing
  assert sorted(alone[i].parts["text"].decode() for i in range(len(alone))) == ["sks dog", "thing 2"]


def test_one_prompt_serves_all_images_without_a_caption(tmp_path):
  folder = folders.write(folders.captioned(tmp_path / "own", 2), {"x.png": folders.png(7)})
  opened = _open(folder, prompt="a photo of sks dog")
  assert _pairs(opened) == _things(range(2)) | _things([7], "a photo of sks dog")
  assert not opened.left_out().bad
  listed = folders.write(tmp_path / "list", {
      "a.png": folders.png(1), "b.png": folders.png(2),
      "metadata.jsonl": folders.lines({"file_name": "a.png", "text": ""}, {"file_name": "b.png"})})
  opened = _open(listed, prompt="all")
  assert [opened[i].parts["text"] for i in range(len(opened))] == [b"all"] * 2
  with pytest.raises(ValueError, match=r"no column of captions .* --config.data.own_prompt=TEXT"):
    _open(folders.write(tmp_path / "bare", {
        "a.png": folders.png(1), "metadata.jsonl": folders.lines({"file_name": "a.png"})}))


def test_captions_are_not_left_out_where_images_alone_are_read(tmp_path):
  folder = folders.write(folders.captioned(tmp_path / "own", 2), {
      "c.png": folders.png(3), "c.png.txt": "thing 3", "d.png": folders.png(4), "d.json": "{}",
      "x.txt": "x"})
  assert str(_open(folder, "reconstruct").left_out()) == "1 × file of another kind, first: x.txt"


def test_hidden_files_and_missing_partners_are_counted(tmp_path):
  folder = folders.write(folders.captioned(tmp_path / "own", 2), {
      "._0.png": b"x", ".DS_Store": b"x", "Thumbs.db": b"x", "__MACOSX/0.png": b"x",
      "lonely.png": folders.png(1), "text.txt": "no image", "photo.heic": b"x", "cache.npz": b"x"})
  left_out = str(_open(folder).left_out())
  assert "4 × hidden or system file" in left_out
  remedy = "--config.data.own_prompt=TEXT serves those without"
  assert f"no text under the suffixes txt, caption, json ({remedy}), first: lonely.png" in left_out
  assert "1 × no image under the suffixes" in left_out
  assert "1 × HEIC files are not read: convert them to JPEG or PNG, first: photo.heic" in left_out
  assert "1 × file of another kind, first: cache.npz" in left_out
  with pytest.raises(ValueError, match=r"3 of 5 records are left out, more than data.max_bad_fraction"):
    sources.open_source(sources.SourceSpec("own", str(folder)), example="t2i",
                        folders=sources.Folders("", ""), max_bad_fraction=0.01)


@pytest.mark.parametrize("name", ["list.json", "list.jsonl"])
def test_a_row_with_a_name_twice_is_left_out_and_named(tmp_path, name):
  good, bad = '{"image": "a.png", "text": "x"}', '{"image": "a.png", "text": "x", "text": "y"}'
  text = f"[{good}, {bad}]" if name.endswith(".json") else f"{good}\n{bad}\n"
  source = _open(folders.write(tmp_path / "in", {"a.png": folders.png(1), name: text}), "t2i")
  assert len(source) == 1
  assert "repeated: 'text' is there twice" in str(source.left_out())


def test_rows_of_a_list_that_are_no_records_are_counted(tmp_path):
  folder = folders.write(folders.imagefolder(tmp_path / "own", 2), {
      "images/unnamed.png": folders.png(9), "empty.png": b""})
  with (folder / "metadata.jsonl").open("a") as file:
    file.write(folders.lines(
        {"file_name": "images/none.png", "text": "x"}, {"file_name": "images/0.png", "text": " "},
        {"text": "x"}, {"file_name": ["images/0.png"] * 2, "text": "x"},
        {"file_name": "https://example.com/a.png", "text": "x"}, ["a"]) + "{broken\n")
  opened = _open(folder)
  assert _pairs(opened) == _things(range(2), 'thing, "{}"')
  left_out = str(opened.left_out())
  for reason in ("1 × image that does not exist, first: metadata.jsonl:3", "1 × row without text",
                 "1 × row without an image", "1 × image that is a URL", "2 × line that is no JSON object",
                 "2 × image that the list does not name",
                 "1 × row with several images"):
    assert reason in left_out
  assert opened.left_out().bad == 7


def test_orientation_of_a_camera_is_not_applied(tmp_path):
  (tmp_path / "own").mkdir()
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.new("RGB", (12, 8)).save(tmp_path / "own/a.jpg", exif=exif)
  record = _open(tmp_path / "own", "reconstruct")[0]
  assert decode.decode(record.parts["image"], 1000).size == (12, 8)


@pytest.mark.parametrize("names", [
    ("source", "target", "instruction"), ("input_image", "edited_image", "edit_prompt"),
    ("input", "output", "prompt"), ("image", "edited", "text")])
def test_edits_are_found_by_the_common_names_of_columns(names, tmp_path):
  folder = folders.edits(tmp_path / "own")
  rows = [json.loads(line) for line in (folder / "edits.jsonl").read_text().splitlines()]
  (folder / "edits.jsonl").write_text(folders.lines(*(dict(zip(names, r.values())) for r in rows)))
  assert source.serves(layouts.detect(str(folder))) == ("edit", "reconstruct")
  for place in (folder, folder / "edits.jsonl"):
    opened = _open(place, "edit")
    record = opened[2]
    assert record.parts["text"] == b"make it 2"
    assert [folders.colour(record.parts[p]) for p in ("cond_image", "image")] == [
        folders.colour(folders.png(2)), folders.colour(folders.png(52))]
  assert "cond_image" not in opened.without("cond_image")[0].parts


_TALK = [["what is this?", "a cat"], ["which colour?", "red"]]
_WORDS = [text for turn in _TALK for text in turn]
_LLAVA = {"conversations": [
    {"from": ("human", "gpt")[i % 2], "value": ("" if i else "<image>\n") + text}
    for i, text in enumerate(_WORDS)]}
_MESSAGES = {"messages": [{"role": "system", "content": "be short"}] + [
    {"role": ("user", "assistant")[i % 2],
     "content": [{"type": "image"}, {"type": "text", "text": text}] if not i else text}
    for i, text in enumerate(_WORDS)]}


@pytest.mark.parametrize("talk", [_LLAVA, _MESSAGES, {"turns": _TALK}, {"conversations": json.dumps(
    _LLAVA["conversations"])}])
@pytest.mark.parametrize("place", ["list.json", "list.jsonl", "a.json"])
def test_conversations_of_every_form_are_turns(talk, place, tmp_path):
  row = {"id": 1, "image": "a.png", **talk}
  content = {"list.json": json.dumps([row]), "list.jsonl": folders.lines(row), "a.json": json.dumps(talk)}
  folder = folders.write(tmp_path / "own", {"a.png": folders.png(3), place: content[place]})
  assert source.serves(layouts.detect(str(folder)))[0] == "understand"
  record = _open(folder, "understand")[0]
  assert json.loads(record.parts["turns"]) == {"turns": _TALK}
  assert folders.colour(record.parts["cond_image"]) == folders.colour(folders.png(3))


def test_questions_with_answers_are_conversations(tmp_path):
  folder = folders.write(tmp_path / "own", {
      "a.png": folders.png(3), "q.csv": "image,question,answer\na.png,a?,b\n"})
  assert json.loads(_open(folder, "understand")[0].parts["turns"]) == {"turns": [["a?", "b"]]}
  with pytest.raises(ValueError, match="bad turns: conversations must alternate"):
    _open(folders.write(tmp_path / "bad", {"a.png": folders.png(3), "q.jsonl": folders.lines(
        {"image": "a.png", "conversations": [{"from": "gpt", "value": "a"}] * 2})}), "understand")


def test_parquet_may_name_images_by_paths(tmp_path):
  from pyarrow import parquet

  folder = folders.write(tmp_path / "own", {f"images/{i}.png": folders.png(i) for i in range(3)})
  parquet.write_table(folders.table(3, paths=True), folder / "list.parquet")
  assert _pairs(_open(folder)) == _things(range(3))


def test_a_table_that_changes_is_noticed(tmp_path):
  opened = _open(folders.parquets(tmp_path / "own"))
  opened[0]
  os.utime(tmp_path / "own/data/train-00000-of-00002.parquet", (1, 1))
  with pytest.raises(ValueError, match=r"train-00000-of-00002\.parquet changed"):
    opened[0]


@pytest.mark.parametrize(("files", "options", "message"), [
    ({"a.png": folders.png(1), "a.txt": "x", "metadata.jsonl": "{}"}, {},
     r"several ways \(list: metadata.jsonl; images: 1 images, 1 captions .* --config.data.own_layout=list"),
    ({"a.png": folders.png(1), "t.tar": b""}, {}, "tar: 1 tars; images: 1 images"),
    ({"a.jsonl": "{}", "b.jsonl": "{}"}, {}, r"holds several lists, a\.jsonl, b\.jsonl: name one"),
    ({"metadata.csv": "file_name\n", "metadata.jsonl": "{}"}, {}, "name one of them as data.own"),
    ({"a.png": folders.png(1)}, {"layout": "tar"}, "holds no such layout; detected: images"),
    ({"notes.md": "x"}, {}, r"holds no data that is known \(1 files, e\.g\. notes\.md\)"),
    ({"metadata.jsonl": folders.lines({"file_name": "a.png", "text": "x", "caption": "y"})}, {},
     r"captions may be in the columns text, caption: choose one, e\.g\. --config.data.own_caption=text"),
    ({"metadata.jsonl": folders.lines({"file_name": "a.png", "tag": "x"})}, {"caption": "tags"},
     r"there is no column 'tags' \(data.own_caption\); the columns are file_name, tag"),
    ({"list.jsonl": folders.lines({"picked": "a.png", "text": "x"})}, {},
     "no column holds an image: the columns are picked, text; rename one to 'image'"),
    ({"a.png": folders.png(1), "metadata.csv": "file_name;text\na.png;a cat\n"}, {"prompt": "p"},
     r"metadata\.csv is no list of images: a CSV needs UTF-8, commas"),
    ({"a.png": folders.png(1), "metadata.csv": "file_name,text\na.png,x".encode("utf-16")},
     {"prompt": "p"}, r"metadata\.csv is no list of images"),
    ({"a.png": folders.png(1), "metadata.json": '{"a.png": {"text": "x"}}'}, {"prompt": "p"},
     r"metadata\.json is no list of images"),
    ({"metadata.csv": "file_name,text,text\na.png,x,y\n"}, {}, "two columns of one name"),
    ({"metadata.csv": "Image,image,text\na.png,b.png,y\n"}, {}, "differ in capitals alone"),
    ({"a.png": folders.png(1), "metadata.csv": "file_name,text\na.png,a dog, running\n"}, {},
     r"metadata\.csv: no rows.*more values than columns"),
    ({"metadata.jsonl": ""}, {}, r"metadata\.jsonl: no rows"),
    ({"a.parquet": b"PAR1" + b"\xff" * 100 + b"PAR1"}, {}, r"a\.parquet is no Parquet file, or damaged"),
    ({"a.arrow": b"\xff" * 200, "state.json": "{}"}, {}, r"a\.arrow is no Arrow file, or damaged"),
    ({"a.tar": b"\1" * 2000}, {}, r"a\.tar is no tar, compressed, or damaged"),
])
def test_what_is_ambiguous_or_unknown_is_refused_with_the_choices(files, options, message, tmp_path):
  folder = folders.write(tmp_path / "own", files)

  def look():
    source.serves(layouts.detect(str(folder), options.get("layout", "")))
    _open(folder, **options)

  with pytest.raises(ValueError, match=message):
    look()


def test_columns_of_one_name_are_refused(tmp_path):
  from pyarrow import parquet

  table = pa.Table.from_arrays([pa.array([folders.png(1)]), pa.array(["x"]), pa.array(["y"])],
                               names=["image", "text", "text"])
  (tmp_path / "own").mkdir()
  parquet.write_table(table, tmp_path / "own/a.parquet")
  with pytest.raises(ValueError, match="two columns of one name: image, text, text"):
    _open(tmp_path / "own")


def test_the_time_of_a_look_is_linear_in_the_files():
  def seconds(count):
    names = [f"{i}.jpg{suffix}" for i in range(count) for suffix in ("", ".txt")]
    start = time.perf_counter()
    assert layouts._possible("folder", names)["images"].note.endswith(f"{count} captions of the same name")
    return time.perf_counter() - start

  assert seconds(20_000) < 40 * max(seconds(2000), 1e-3)  # 100 times if it grew with the square


def test_a_choice_decides_what_is_ambiguous(tmp_path):
  folder = folders.imagefolder(folders.captioned(tmp_path / "own", 2), 3, column="caption")
  assert len(_open(folder, layout="images")) == 2
  assert _pairs(_open(folder, layout="list")) == _things(range(3), 'thing, "{}"')
  both = folders.write(tmp_path / "both", {
      "a.png": folders.png(1), "metadata.jsonl": folders.lines(
          {"file_name": "a.png", "text": "x", "caption": "thing 1"})})
  assert _pairs(_open(both, caption="caption")) == _things([1])


def test_a_path_that_does_not_exist_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"data.own=.*none does not exist"):
    layouts.detect(str(tmp_path / "none"))
  with pytest.raises(ValueError, match="is a file of an unknown kind"):
    layouts.detect(str(folders.write(tmp_path, {"a.zip": b""}) / "a.zip"))


def test_a_bucket_is_read_like_a_folder(bucket):
  for i in range(2):
    bucket.pipe_file(f"/b/own/{i}.png", folders.png(i))
    bucket.pipe_file(f"/b/own/{i}.txt", f"thing {i}".encode())
  assert _pairs(_open("gs://b/own")) == _things(range(2))
