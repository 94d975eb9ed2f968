"""The manifest names every skipped item; conflicting settings, shards and jobs are refused."""

import json
import re

import pytest

from tests.data.prepare import small_datasets
from unilip_jax.data.prepare import __main__ as prepare
from unilip_jax.data.prepare import manifest


def _run(arguments, out):
  prepare.main([*arguments, f"--out={out}", "--records_per_shard=5", "--workers=1", "--quiet"])


def _refused(arguments, out, message):
  with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
    _run(arguments, out)


def _skipped(out):
  return {entry["item"]: entry["why"] for entry in manifest.load(out)["skipped"]}


def test_broken_missing_and_repeated_records_of_lists_are_named(tmp_path):
  root = small_datasets.gpt_image_edit(tmp_path / "source")
  images = root / "gpt-edit/hqedit"
  (images / "input/00001.png").write_bytes(b"no image")
  original = (images / "output/00002.png").read_bytes()
  (images / "output/00002.png").write_bytes(original[:len(original) // 2])
  (images / "input/00003.png").unlink()
  (images / "output/00004.png").write_bytes(b"")
  (images / "input/00009.png").unlink()
  (images / "input/00009.png").mkdir()
  path = root / "training_json/hqedit.json"
  entries = json.loads(path.read_text())
  entries[5] = entries[0]
  entries[6]["image"].append("third.png")
  entries[7]["conversations"][0]["value"] = "<image>\n"
  del entries[8]["image"]
  entries[10]["image"][0] = "../../../secret.png"
  entries[11] = "nonsense"
  path.write_text(json.dumps(entries))
  _run(["gpt_image_edit", f"--source={root}"], tmp_path / "out")
  name = "training_json/hqedit.json[{}]".format
  found = _skipped(tmp_path / "out")
  assert found.keys() == {name(i) for i in range(1, 12)}
  for i, why in {
      1: f"broken image: cond_image, {images}/input/00001.png: not an image of a known format",
      2: f"broken image: image, {images}/output/00002.png: OSError: ",
      3: f"missing file: {images}/input/00003.png", 4: "0 bytes",
      5: "repeated: an earlier item has the same images and words",
      6: "no pair: 3 images", 7: "empty text", 8: "bad entry: image is missing; fields: id",
      9: f"missing file: {images}/input/00009.png", 10: "bad path: ../../../secret.png leaves its folder",
      11: "bad entry: expected a JSON object, not 'nonsense'"}.items():
    assert why in found[name(i)]
  content = manifest.load(tmp_path / "out")
  assert content["counts"] == {"items": 24, "written": 13, "skipped": 11, "long_prompts": 0,
                            "bytes": sum(s["bytes"] for s in content["shards"]), "shards": 4}
  assert content["reasons"] == {
      "bad entry": 2, "bad path": 1, "broken image": 3, "empty text": 1, "missing file": 2, "no pair": 1,
      "repeated": 1}
  assert [row["items"] for row in content["sources"]] == [12, 12]


@pytest.mark.parametrize("layout", ["index", "array_record"])
def test_broken_incomplete_and_repeated_samples_of_tars_are_named(tmp_path, layout):
  jpeg = small_datasets.image(0, "JPEG")
  path = small_datasets.tar(tmp_path / "source/a.tar", [
      ("0.jpg", jpeg), ("0.txt", b"zero"), ("1.jpg", jpeg), ("2.txt", b"two"), ("3.jpg", jpeg),
      ("3.txt", b"three"), ("3.jpg", small_datasets.image(1, "JPEG")), ("4.jpg", jpeg[:200]),
      ("4.txt", b"four"), ("5.jpg", jpeg), ("5.txt", b"caf\xe9")])
  data = path.read_bytes()
  small_datasets.write(tmp_path / "source/b.tar", data[:900])
  header = data.index(b"2.txt")
  broken = bytearray(data)
  broken[header + 150] = ord("x")  # its checksum
  small_datasets.write(tmp_path / "source/c.tar", bytes(broken))
  small_datasets.write(tmp_path / "source/d.tar", data + data)
  _run(["blip3o", f"--source={tmp_path}/source/*.tar", f"--layout={layout}", "--verify=full"],
       tmp_path / "out")
  found = _skipped(tmp_path / "out")
  a, b, c, d = (f"{tmp_path}/source/{n}.tar" for n in "abcd")
  for item, why in {
      f"{a}:1": "incomplete sample: it has no text", f"{a}:2": "incomplete sample: it has no image",
      f"{a}:3.jpg": "repeated: an earlier member has this name",
      f"{a}:4": "broken image: image, ", f"{a}:5": "broken text: ", b: "broken tar: truncated inside 0.jpg",
      c: "broken tar: a broken header at byte ",
      d: "broken tar: data after the end-of-archive mark"}.items():
    assert why in found[item], item
  assert manifest.load(tmp_path / "out")["counts"]["written"] == 2 + 0 + 1 + 2


def test_own_data_that_is_wrong_is_named_by_line(tmp_path):
  small_datasets.json_lines(tmp_path, "understand", count=2)
  lines = [
      '{"image": "images/0.png", "turns": [["q", "a"]]}', "", "{broken",
      '{"image": "images/0.png", "turns": []}', '{"image": "images/0.png", "turns": [["q"]]}',
      '{"image": "images/0.png", "turns": [["q", 5]]}', '{"image": "images/0.png"}',
      '{"image": "/etc/passwd", "turns": [["q", "a"]]}',
      '{"image": "images/1.png", "turns": [["\\ud800", "a"]]}',
      '{"key": "a.b", "image": "images/1.png", "turns": [["q", "a"]]}',
      '{"key": "x", "image": "images/1.png", "turns": [["q", "a"]]}',
      '{"key": "x", "image": "images/1.png", "turns": [["r", "a"]]}',
      '{"image": "images/1.png", "conversations": [{"from": "human", "value": "<image>\\nwhat?"}, '
      '{"from": "gpt", "value": "a dog"}]}',
      '{"image": "images/1.png", "conversations": [{"from": "gpt", "value": "a dog"}]}', "[" * 100_000]
  source = small_datasets.write(tmp_path / "mine.jsonl", "\n".join(lines))
  _run(["json_lines", f"--source={source}", "--kind=understand"], tmp_path / "out")
  reasons = {line: why for line, why in _skipped(tmp_path / "out").items()}
  for number, why in {
      3: "bad JSON: Expecting property name", 4: "bad turns: there are none", 5: "bad turns: one is",
      6: "['q', 5]", 7: "bad entry: turns is missing", 8: "bad path: /etc/passwd is not below",
      9: "bad text: not Unicode", 10: "bad key: 'a.b'", 12: "repeated: an earlier item has the key 'x'",
      14: "bad turns: 1 entries", 15: "bad JSON: "}.items():
    assert why in reasons.pop(f"mine.jsonl:{number}")
  assert not reasons
  assert manifest.load(tmp_path / "out")["counts"]["written"] == 3


def test_long_prompts_are_counted_and_written(tmp_path, capsys):
  small_datasets.json_lines(tmp_path, "t2i", count=2)
  source = small_datasets.write(tmp_path / "mine.jsonl", "".join(
      json.dumps({"image": "images/0.png", "text": "word " * n}) + "\n" for n in (10, 250)))
  _run(["json_lines", f"--source={source}", "--kind=t2i"], tmp_path / "out")
  assert manifest.load(tmp_path / "out")["counts"] | {"bytes": 0} == {
      "items": 2, "written": 2, "skipped": 0, "long_prompts": 1, "bytes": 0, "shards": 1}
  assert "1 texts have more than 1000 characters: training skips them" in capsys.readouterr().out


def test_other_settings_are_refused_unless_overwritten(tmp_path):
  source = small_datasets.json_lines(tmp_path, "t2i")
  arguments = ["json_lines", f"--source={source}", "--kind=t2i"]
  _run(arguments, tmp_path / "out")
  _refused([*arguments, "--resize=9"], tmp_path / "out",
           "was prepared with other settings: resize was 0, is 9")
  (tmp_path / "out/mine.txt").write_text("a user's own file")
  _run([*arguments, "--resize=9", "--overwrite"], tmp_path / "out")
  assert (tmp_path / "out/mine.txt").exists()
  _run([*arguments, "--resize=9"], tmp_path / "fresh")
  (tmp_path / "out/mine.txt").unlink()
  assert small_datasets.tree(tmp_path / "out") == small_datasets.tree(tmp_path / "fresh")


def test_shards_of_something_else_are_never_touched(tmp_path):
  source = small_datasets.json_lines(tmp_path, "t2i")
  out = tmp_path / "out"
  shard = small_datasets.tar(
      out / "t2i-00000.tar", {"0.jpg": small_datasets.image(0, "JPEG"), "0.txt": b"x"})
  before = shard.read_bytes()
  _refused(["json_lines", f"--source={source}", "--kind=t2i"], out, "holds shards of something else")
  for more in ([], ["--overwrite"]):
    _run(["blip3o", f"--source={out}/*.tar", *more], out)  # an index next to them
    assert shard.read_bytes() == before


def test_an_index_never_replaces_the_manifest_of_a_preparation(tmp_path):
  source = small_datasets.json_lines(tmp_path, "t2i")
  _run(["json_lines", f"--source={source}", "--kind=t2i"], tmp_path / "out")
  before = small_datasets.tree(tmp_path / "out")
  index = ["blip3o", f"--source={tmp_path}/out/*.tar"]
  _refused(index, tmp_path / "out", "was prepared with other settings")
  _refused([*index, "--overwrite"], tmp_path / "out", "is the result of another preparation")
  assert small_datasets.tree(tmp_path / "out") == before


def test_jobs_of_an_array_cannot_remove_each_others_work(tmp_path):
  source = small_datasets.json_lines(tmp_path, "t2i")
  _refused(["json_lines", f"--source={source}", "--kind=t2i", "--shard=0/2", "--overwrite"],
           tmp_path / "out", "--shard cannot be combined with --overwrite")


def test_check_finds_shards_that_changed(tmp_path, capsys):
  source = small_datasets.json_lines(tmp_path, "t2i", count=14)
  out = tmp_path / "out"
  _run(["json_lines", f"--source={source}", "--kind=t2i"], out)
  prepare.main(["check", f"--out={out}"])
  a, b, c = sorted(out.glob("*.tar"))
  data = bytearray(a.read_bytes())
  data[700] ^= 1
  a.write_bytes(data)
  b.write_bytes(b.read_bytes()[:-1])
  c.unlink()
  with pytest.raises(ValueError, match="3 shards differ from the manifest"):
    prepare.main(["check", f"--out={out}"])
  report = capsys.readouterr().out
  assert f"{a}: the SHA-256 differs" in report
  assert f"{b} has 20479 bytes, not 20480" in report
  assert f"{c} is missing" in report
  _run(["json_lines", f"--source={source}", "--kind=t2i"], out)  # makes b and c again
  assert [line.split()[0] for line in manifest.check(out)] == [f"{a}:"]


def test_nothing_usable_is_an_error_with_the_reason(tmp_path, capsys):
  source = small_datasets.json_lines(tmp_path, "t2i")
  _refused(["json_lines", f"--source={source}", "--kind=t2i", f"--root={tmp_path}/elsewhere"],
           tmp_path / "out", "no record could be used")
  assert "12 × missing file" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (["gpt_image_edit", "--source={}/absent"], "absent does not exist or is not a file; docs/data.md"),
    (["sharegpt4o", "--source={}"], "text_to_image.json does not exist"),
    (["json_lines", "--source={}/x.jsonl", "--kind=t2i"], "x.jsonl does not exist"),
    (["blip3o", "--source={}/*.tar"], "no file matches"),
    (["imagenet", "--source=tfds:imagenet2012"], "tfds:name:split")])
def test_sources_that_are_not_there_are_named(arguments, message, tmp_path):
  _refused([a.format(tmp_path) for a in arguments], tmp_path / "out", message)
