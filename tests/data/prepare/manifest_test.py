"""The manifest names all that was left out; settings, shards and jobs that do not fit are refused."""

import json

import pytest

from tests.data.prepare import made_up
from unilip_jax.data.prepare import __main__ as prepare
from unilip_jax.data.prepare import manifest


def _run(arguments, out, status=0):
  assert prepare.main([*arguments, f"--out={out}", "--records_per_shard=5", "--workers=1",
                       "--quiet"]) == status


def _skipped(out):
  return {entry["item"]: entry["why"] for entry in manifest.load(out)["skipped"]}


def test_broken_missing_and_repeated_records_of_lists_are_named(tmp_path):
  root = made_up.gpt_image_edit(tmp_path / "source")
  images = root / "gpt-edit/hqedit"
  (images / "input/00001.png").write_bytes(b"no image")
  whole = (images / "output/00002.png").read_bytes()
  (images / "output/00002.png").write_bytes(whole[:len(whole) // 2])
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
      1: f"broken image: cond_image, {images}/input/00001.png: no image of a known format",
      2: f"broken image: image, {images}/output/00002.png: OSError: ",
      3: f"missing file: {images}/input/00003.png", 4: "0 bytes",
      5: "repeated: the same images and words stood before",
      6: "no pair: 3 images", 7: "empty text", 8: "bad entry: image is missing; there are id",
      9: f"missing file: {images}/input/00009.png", 10: "bad path: ../../../secret.png leaves its folder",
      11: "bad entry: no JSON object but 'nonsense'"}.items():
    assert why in found[name(i)]
  made = manifest.load(tmp_path / "out")
  assert made["counts"] == {"items": 24, "written": 13, "skipped": 11, "long_prompts": 0,
                            "bytes": sum(s["bytes"] for s in made["shards"]), "shards": 4}
  assert made["reasons"] == {
      "bad entry": 2, "bad path": 1, "broken image": 3, "empty text": 1, "missing file": 2, "no pair": 1,
      "repeated": 1}
  assert [row["items"] for row in made["sources"]] == [12, 12]


@pytest.mark.parametrize("layout", ["index", "array_record"])
def test_broken_incomplete_and_repeated_samples_of_tars_are_named(tmp_path, layout):
  jpeg = made_up.image(0, "JPEG")
  path = made_up.tar(tmp_path / "source/a.tar", [
      ("0.jpg", jpeg), ("0.txt", b"zero"), ("1.jpg", jpeg), ("2.txt", b"two"), ("3.jpg", jpeg),
      ("3.txt", b"three"), ("3.jpg", made_up.image(1, "JPEG")), ("4.jpg", jpeg[:200]), ("4.txt", b"four"),
      ("5.jpg", jpeg), ("5.txt", b"\xff\xfe")])
  data = path.read_bytes()
  made_up.write(tmp_path / "source/b.tar", data[:900])
  header = data.index(b"2.txt")
  broken = bytearray(data)
  broken[header + 150] = ord("x")  # its checksum
  made_up.write(tmp_path / "source/c.tar", bytes(broken))
  made_up.write(tmp_path / "source/d.tar", data + data)
  _run(["blip3o", f"--source={tmp_path}/source/*.tar", f"--layout={layout}", "--verify=full"],
       tmp_path / "out")
  found = _skipped(tmp_path / "out")
  a, b, c, d = (f"{tmp_path}/source/{n}.tar" for n in "abcd")
  for item, why in {
      f"{a}:1": "incomplete sample: it has no text", f"{a}:2": "incomplete sample: it has no image",
      f"{a}:3.jpg": "repeated: a member of this name stood before",
      f"{a}:4": "broken image: image, ", f"{a}:5": "broken text: ", b: "broken tar: truncated inside 0.jpg",
      c: "broken tar: a broken header at byte ",
      d: "broken tar: data behind the end-of-archive mark"}.items():
    assert why in found[item], item
  assert manifest.load(tmp_path / "out")["counts"]["written"] == 2 + 0 + 1 + 2


def test_own_data_that_is_wrong_is_named_by_line(tmp_path):
  made_up.json_lines(tmp_path, "understand", count=2)
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
  source = made_up.write(tmp_path / "mine.jsonl", "\n".join(lines))
  _run(["json_lines", f"--source={source}", "--kind=understand"], tmp_path / "out")
  reasons = {line: why for line, why in _skipped(tmp_path / "out").items()}
  for number, why in {
      3: "bad JSON: Expecting property name", 4: "bad turns: there are none", 5: "bad turns: one is",
      6: "['q', 5]", 7: "bad entry: turns is missing", 8: "bad path: /etc/passwd does",
      9: "bad text: no Unicode", 10: "bad key: 'a.b'", 12: "repeated: the key 'x' stood before",
      14: "bad turns: 1 entries", 15: "bad JSON: "}.items():
    assert why in reasons.pop(f"mine.jsonl:{number}")
  assert not reasons
  assert manifest.load(tmp_path / "out")["counts"]["written"] == 3


def test_long_prompts_are_counted_and_written(tmp_path, capsys):
  made_up.json_lines(tmp_path, "t2i", count=2)
  source = made_up.write(tmp_path / "mine.jsonl", "".join(
      json.dumps({"image": "images/0.png", "text": "word " * n}) + "\n" for n in (10, 250)))
  _run(["json_lines", f"--source={source}", "--kind=t2i"], tmp_path / "out")
  assert manifest.load(tmp_path / "out")["counts"] | {"bytes": 0} == {
      "items": 2, "written": 2, "skipped": 0, "long_prompts": 1, "bytes": 0, "shards": 1}
  assert "1 texts have more than 1000 characters, which training passes over" in capsys.readouterr().out


def test_other_settings_are_refused_unless_overwritten(tmp_path, capsys):
  source = made_up.json_lines(tmp_path, "t2i")
  arguments = ["json_lines", f"--source={source}", "--kind=t2i"]
  _run(arguments, tmp_path / "out")
  _run([*arguments, "--resize=9"], tmp_path / "out", status=1)
  assert "was prepared with other settings: resize was 0, is 9" in capsys.readouterr().err
  (tmp_path / "out/mine.txt").write_text("a user's own file")
  _run([*arguments, "--resize=9", "--overwrite"], tmp_path / "out")
  assert (tmp_path / "out/mine.txt").exists()
  _run([*arguments, "--resize=9"], tmp_path / "fresh")
  (tmp_path / "out/mine.txt").unlink()
  assert made_up.tree(tmp_path / "out") == made_up.tree(tmp_path / "fresh")


def test_shards_of_something_else_are_never_touched(tmp_path, capsys):
  source = made_up.json_lines(tmp_path, "t2i")
  out = tmp_path / "out"
  theirs = made_up.tar(out / "t2i-00000.tar", {"0.jpg": made_up.image(0, "JPEG"), "0.txt": b"x"})
  before = theirs.read_bytes()
  _run(["json_lines", f"--source={source}", "--kind=t2i"], out, status=1)
  assert "holds shards of something else" in capsys.readouterr().err
  for more in ([], ["--overwrite"]):
    _run(["blip3o", f"--source={out}/*.tar", *more], out)  # an index beside them
    assert theirs.read_bytes() == before


def test_an_index_never_replaces_the_manifest_of_a_preparation(tmp_path, capsys):
  source = made_up.json_lines(tmp_path, "t2i")
  _run(["json_lines", f"--source={source}", "--kind=t2i"], tmp_path / "out")
  before = made_up.tree(tmp_path / "out")
  _run(["blip3o", f"--source={tmp_path}/out/*.tar"], tmp_path / "out", status=1)
  _run(["blip3o", f"--source={tmp_path}/out/*.tar", "--overwrite"], tmp_path / "out", status=1)
  assert "is the result of another preparation" in capsys.readouterr().err
  assert made_up.tree(tmp_path / "out") == before


def test_jobs_of_an_array_cannot_remove_each_others_work(tmp_path, capsys):
  source = made_up.json_lines(tmp_path, "t2i")
  _run(["json_lines", f"--source={source}", "--kind=t2i", "--shard=0/2", "--overwrite"], tmp_path / "out",
       status=1)
  assert "--shard goes with neither --overwrite" in capsys.readouterr().err


def test_check_finds_shards_that_changed(tmp_path, capsys):
  source = made_up.json_lines(tmp_path, "t2i", count=14)
  out = tmp_path / "out"
  _run(["json_lines", f"--source={source}", "--kind=t2i"], out)
  assert prepare.main(["check", f"--out={out}"]) == 0
  a, b, c = sorted(out.glob("*.tar"))
  data = bytearray(a.read_bytes())
  data[700] ^= 1
  a.write_bytes(data)
  b.write_bytes(b.read_bytes()[:-1])
  c.unlink()
  assert prepare.main(["check", f"--out={out}"]) == 1
  said = capsys.readouterr()
  assert f"{a}: the SHA-256 differs" in said.out
  assert f"{b} has 20479 bytes, not 20480" in said.out
  assert f"{c} is missing" in said.out
  assert "3 shards are not as the manifest says" in said.err
  _run(["json_lines", f"--source={source}", "--kind=t2i"], out)  # lengths are seen, and b and c mended
  assert [line.split()[0] for line in manifest.check(out)] == [f"{a}:"]


def test_nothing_usable_is_an_error_with_the_reason(tmp_path, capsys):
  source = made_up.json_lines(tmp_path, "t2i")
  _run(["json_lines", f"--source={source}", "--kind=t2i", f"--root={tmp_path}/elsewhere"],
       tmp_path / "out", status=1)
  said = capsys.readouterr()
  assert "12 × missing file" in said.out
  assert "nothing could be used" in said.err


@pytest.mark.parametrize(("arguments", "message"), [
    (["gpt_image_edit", "--source={}/absent"], "absent is not there, or no file; docs/data.md"),
    (["sharegpt4o", "--source={}"], "text_to_image.json is not there"),
    (["json_lines", "--source={}/x.jsonl", "--kind=t2i"], "x.jsonl is not there"),
    (["blip3o", "--source={}/*.tar"], "no file matches"),
    (["imagenet", "--source=tfds:imagenet2012"], "tfds:name:split")])
def test_sources_that_are_not_there_are_named(arguments, message, tmp_path, capsys):
  _run([a.format(tmp_path) for a in arguments], tmp_path / "out", status=1)
  assert message in capsys.readouterr().err
