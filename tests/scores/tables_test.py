"""Every form of a table gives the same rows."""

import json
import re
import zipfile

import pytest

from unilip_jax.scores import tables

_ROWS = [{"index": "1", "question": 'a "b"\n c', "A": None, "prediction": "B"},
         {"index": "2", "question": "é\tx", "A": "x, y", "prediction": None}]
_MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


def _write_xlsx(path):
  """A sheet with shared and inline strings, numbers and absent cells, as openpyxl writes it."""
  names = "".join(f"<si><t>{name}</t></si>" for name in _ROWS[0])
  shared = f'{names}<si><r><t>a "b"</t></r><r><t>\n c</t></r></si><si><t>é\tx</t></si>'
  header = "".join(f'<c r="{column}1" t="s"><v>{i}</v></c>' for i, column in enumerate("ABCD"))
  first = ('<c r="A2"><v>1</v></c><c r="B2" t="s"><v>4</v></c>'
           '<c r="D2" t="inlineStr"><is><t>B</t></is></c>')
  second = '<c r="A3"><v>2</v></c><c r="B3" t="s"><v>5</v></c><c r="C3" t="str"><v>x, y</v></c>'
  rows = "".join(f"<row>{cells}</row>" for cells in (header, first, second))
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("xl/sharedStrings.xml", f"<sst {_MAIN}>{shared}</sst>")
    archive.writestr("xl/worksheets/sheet1.xml",
                     f"<worksheet {_MAIN}><sheetData>{rows}</sheetData></worksheet>")


@pytest.mark.parametrize("form", ["tsv", "xlsx", "json", "records.json", "columns.json", "jsonl"])
def test_every_form_gives_the_same_rows(tmp_path, form):
  path = tmp_path / f"table.{form}"
  match form:
    case "tsv":
      tables.write_tsv(path, _ROWS)
    case "xlsx":
      _write_xlsx(path)
    case "json":
      path.write_text(json.dumps([{**_ROWS[0], "index": 1}, {**_ROWS[1], "index": 2.0}]))
    case "records.json":
      path.write_text(json.dumps({"records": _ROWS}))
    case "columns.json":
      path.write_text(json.dumps({key: [row[key] for row in _ROWS] for key in _ROWS[0]}))
    case "jsonl":
      path.write_text("".join(f"{json.dumps(row)}\n" for row in _ROWS))
  assert tables.read(path, "a table") == _ROWS


def test_rows_that_are_no_objects_are_empty(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('{"index": 1}\nbroken\n[1]\n\n')
  assert tables.read(path, "a table") == [{"index": "1"}, {"index": None}, {"index": None}]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.tsv", b"index\tanswer\n1\tA\tB\n", r"a\.tsv, row 2: malformed: 1 cells more than columns"),
    ("a.csv", "index,answer\n1,\u00e9\n".encode("latin-1"), r"a\.csv is not a text file in UTF-8"),
    ("a.xlsx", b"PK\3\4junk", r"a\.xlsx is no spreadsheet"),
    ("a.json", b"[" * 9999, r"a\.json is not a JSON")])
def test_files_that_are_no_tables_are_named(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message):
    tables.read(tmp_path / name, "answers")


def test_a_folder_needs_one_table(tmp_path):
  for name in ("a.tsv", "b.tsv"):
    tables.write_tsv(tmp_path / name, _ROWS)
  with pytest.raises(ValueError, match=r"holds 2 tables \(a.tsv, b.tsv\); pass one file: a table"):
    tables.read(tmp_path, "a table")
  with pytest.raises(ValueError, match=r"a table ends in \.tsv"):
    tables.read(__file__, "a table")


@pytest.mark.parametrize("form", ["tsv", "xlsx"])
def test_tables_are_read_as_they_were_written(tmp_path, form):
  rows = [*_ROWS, {"index": "30", "question": " <b>&amp; ", "A": "7", "prediction": "C"}]
  tables.write(tmp_path / f"t.{form}", rows)
  assert tables.read(tmp_path / f"t.{form}", "a table") == rows


def test_a_column_of_whole_numbers_holds_numbers(tmp_path):
  tables.write(tmp_path / "t.xlsx", [{"index": "1", "answer": "A", "code": "007"},
                                     {"index": "1000002", "answer": None, "code": "8"}])
  with zipfile.ZipFile(tmp_path / "t.xlsx") as archive:
    sheet = archive.read("xl/worksheets/sheet1.xml").decode()
  assert re.findall(r'r="(\w+)"><v>(\d+)', sheet) == [("A2", "1"), ("A3", "1000002")]
  assert '<c r="B3"/>' in sheet


def test_what_a_table_cannot_hold_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"A2: 40000 characters"):
    tables.write(tmp_path / "t.xlsx", [{"prediction": "x" * 40000}])
  with pytest.raises(ValueError, match=r"ends in \.tsv or \.xlsx"):
    tables.write(tmp_path / "t.csv", _ROWS)
