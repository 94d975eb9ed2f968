"""JSON files are written atomically, and a damaged one is named with the remedy."""

import pytest

from unilip_jax.common import json_file


def test_what_was_written_is_read_without_the_checksum(tmp_path):
  json_file.write(tmp_path / "a.json", {"b": 1.5, "c": (1, 2)}, checksum=True)
  assert json_file.read(tmp_path / "a.json", remedy="", kinds={"b": float}) == {"b": 1.5, "c": [1, 2]}
  assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(("content", "message"), [
    (b"", "0 bytes and no text"), (b"\0" * 40, "40 bytes and no text"), (b'{"b": 1', "Expecting"),
    (b'{"b": "\xff"}', "not UTF-8"), (b"[1]", "a list, not an object"), (b'{"c": 1}', "lacks `b`"),
    (b'{"b": [1]}', r"`b` is '\[1\]'"), (b"[" * 200_000, "recursion"), (b'{"b": 1}\0\0', "Extra data"),
    (b'{"b": 1, "crc32c": "00000000"}', "checksum differs")])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, content, message):
  path = tmp_path / "a.json"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=f"{path} is damaged: .*{message}.*; make it again"):
    json_file.read(path, remedy="make it again", kinds={"b": int})


def test_any_flipped_digit_differs_from_the_checksum(tmp_path):
  path = tmp_path / "a.json"
  json_file.write(path, {"factor": 0.538}, checksum=True)
  path.write_text(path.read_text().replace("0.538", "0.938"))
  with pytest.raises(ValueError, match="checksum differs"):
    json_file.read(path, remedy="")
