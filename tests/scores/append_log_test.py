"""A log keeps complete lines, cuts off a torn one, and has one writer."""

import pytest

from unilip_jax.scores import append_log


def test_a_torn_last_line_is_cut_off_and_the_rest_stays(tmp_path):
  path = tmp_path / "a.jsonl"
  with append_log.AppendLog(path) as log:
    log.append({"a": 1})
    log.append({"a": "é\nü"})
  path.write_bytes(path.read_bytes() + b'{"a": 3, "tex')
  assert append_log.read(path) == [{"a": 1}, {"a": "é\nü"}]
  with append_log.AppendLog(path) as log:
    assert (log.records, log.torn) == ([{"a": 1}, {"a": "é\nü"}], 13)
    log.append({"a": 4})
  assert append_log.read(path)[-1] == {"a": 4}


def test_a_damaged_line_is_named(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('{"a": 1}\nnonsense\n{"a": 2}\n')
  with pytest.raises(ValueError, match=r"a\.jsonl, line 2 is damaged"):
    append_log.AppendLog(path)
  path.write_text("[1]\n")
  with pytest.raises(ValueError, match="line 1 is not a JSON object"):
    append_log.read(path)


def test_a_line_nested_without_end_is_named(tmp_path):
  (tmp_path / "log.jsonl").write_text("[" * 100_000 + "\n")
  with pytest.raises(ValueError, match="line 1 is damaged"):
    append_log.read(tmp_path / "log.jsonl")


def test_a_second_writer_is_refused(tmp_path):
  with (append_log.AppendLog(tmp_path / "a.jsonl"),
        pytest.raises(ValueError, match="another process writes")):
    append_log.AppendLog(tmp_path / "a.jsonl")
  append_log.AppendLog(tmp_path / "a.jsonl").close()


def test_a_bucket_is_refused():
  with pytest.raises(ValueError, match="local file"):
    append_log.AppendLog("gs://bucket/answers.jsonl")
