"""Lists are read element by element for any chunk size; errors name the place."""

import json
import tracemalloc

import pytest

from unilip_jax.data.prepare import json_lists

_VALUES = [{"a": "ü\"]}, ," * 5, "b": [1, 2, {"c": None}]}, 12345678901, -1.5e3, "text", [], {}, True, None,
           {"emoji": "🦊" * 3}]


def _list(tmp_path, text):
  path = tmp_path / "list.json"
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  rows = []
  return list(json_lists.array(path, rows)), rows


@pytest.mark.parametrize("piece", [1, 2, 7, 1 << 16])
@pytest.mark.parametrize("indent", [None, 2])
def test_elements_equal_those_of_json_whatever_the_pieces(tmp_path, monkeypatch, piece, indent):
  monkeypatch.setattr(json_lists, "_CHUNK", piece)
  text = "\ufeff" + json.dumps(_VALUES, indent=indent, ensure_ascii=False) + "\n"
  values, rows = _list(tmp_path, text)
  assert values == _VALUES
  assert rows[0]["items"] == len(_VALUES)
  assert rows[0]["bytes"] == len(text.encode())
  assert _list(tmp_path, " [ ]")[0] == []


@pytest.mark.parametrize(("text", "message"), [
    ("", "not a JSON list: it begins with ''"), ('{"a": 1}', r"not a JSON list: it begins with '\{'"),
    ('[{"a": 1}, {"b": ', "element 1, near character 11: broken"), ("[1, 2", "is not closed"),
    ("[1 2]", "expected ',' or ']', not '2'"), ("[1,]", "element 1.*: broken"),
    ("[1] [2]", "follows the end"), (b"[\"\xff\"]", "not UTF-8"),
    ("[" * 100_000, "nested too deeply"), ('["' + "x" * (5 << 20), "longer than 4194304")])
def test_broken_lists_are_named_with_the_place(tmp_path, text, message):
  with pytest.raises(json_lists.ListError, match=message):
    _list(tmp_path, text)


def test_an_element_with_a_name_twice_is_broken_and_the_others_are_read(tmp_path, monkeypatch):
  monkeypatch.setattr(json_lists, "_CHUNK", 5)
  texts = ['{"a": 1}', '{"a": {"b": 1, "b": 2}}', '{"a": [{"b": 1}, {"b": 2}]}']
  values = _list(tmp_path, f"[{', '.join(texts)}]")[0]
  assert values[::2] == [{"a": 1}, {"a": [{"b": 1}, {"b": 2}]}]
  assert isinstance(values[1], json_lists.Broken)
  assert values[1] == "bad JSON: repeated: 'b' is there twice"
  path = tmp_path / "x.jsonl"
  path.write_text("\n".join(texts))
  assert [wrong for _, _, wrong in json_lists.lines(path, [])] == ["", values[1], ""]


def test_memory_does_not_grow_with_the_list(tmp_path):
  peaks = []
  for count in (2_000, 20_000):
    path = tmp_path / f"{count}.json"
    path.write_text(json.dumps([{"image": ["a" * 100, "b" * 100], "i": i} for i in range(count)]))
    tracemalloc.start()
    assert sum(1 for _ in json_lists.array(path, [])) == count
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert peaks[1] < 1.2 * peaks[0] + 10_000
  assert peaks[1] < 2e6, "bytes; the list has 5 MB"


def test_lines_are_numbered_and_broken_ones_marked(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n  \n[1\n"\xff"\n{"b": 2}')
  rows = []
  lines = list(json_lists.lines(path, rows))
  assert [(n, v) for n, v, wrong in lines if not wrong] == [(1, {"a": 1}), (6, {"b": 2})]
  assert [n for n, _, wrong in lines if wrong] == [4, 5]
  assert rows[0]["items"] == 4
  path.write_bytes(b" " * (json_lists.MAX_ELEMENT + 2))
  with pytest.raises(json_lists.ListError, match="line 1 is longer than 4194304 bytes"):
    list(json_lists.lines(path, []))
