"""Tables with a prediction for each question, as VLMEvalKit writes and reads them.

tsv, csv, xlsx, JSON (a list of rows, {"records": rows} or {column: values}) and JSON lines. Cells are text;
empty ones are None, and rows that are no objects are empty. The questions' own tables hold images in
base64.
"""

from collections.abc import Mapping, Sequence
import csv
import io
import math
import re
import string
from typing import Any
from xml.etree import ElementTree
from xml.sax import saxutils
import zipfile

from etils import epath

from unilip_jax.common import atomic_io, paths
from unilip_jax.scores import records

Row = dict[str, str | None]

_SUFFIXES = (".tsv", ".csv", ".xlsx", ".json", ".jsonl")
_SPREADSHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_CELL = re.compile(r"([A-Z]+)(\d+)")
_WHOLE = re.compile(r"0|-?[1-9]\d{0,14}")
_LONGEST_CELL = 32767  # characters, of Excel
_NO_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def read(path: epath.PathLike, what: str) -> list[Row]:
  """Reads a table.

  Args:
    path: of the file, or of a folder that holds one table.
    what: for errors.

  Raises:
    FileNotFoundError, ValueError: naming the file and the forms that are understood.
  """
  file = records.existing(path, what)
  if file.is_dir():
    found = [f for s in _SUFFIXES for f in records.files(file, s)]
    if len(found) != 1:
      names = records.enumerate_names(f.name for f in found)
      raise ValueError(f"{path} holds {len(found)} tables ({names}); pass one file: {what}")
    file = found[0]
  match file.suffix:
    case ".tsv" | ".csv":
      rows = records.csv_rows(file, "\t" if file.suffix == ".tsv" else ",")
    case ".json":
      rows = _json_rows(records.read_json(file, records.Account()), file)
    case ".jsonl":
      rows = [_json_line(line) for _, line in records.json_lines(file) if line.strip()]
    case ".xlsx":
      try:
        rows = _spreadsheet(file.read_bytes())
      except (zipfile.BadZipFile, ElementTree.ParseError, LookupError, ValueError, TypeError) as error:
        raise ValueError(f"{file} is no spreadsheet that can be read: {error}") from error
    case _:
      raise ValueError(f"{file}: a table ends in {', '.join(_SUFFIXES)}")
  columns = dict.fromkeys(k for row in rows for k in row if k is not None)
  return [{str(column): _text(row.get(column)) for column in columns} for row in rows]


def write_tsv(path: epath.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes rows of the same columns as VLMEvalKit's tsv, atomically."""
  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]), delimiter="\t", lineterminator="\n")
  writer.writeheader()
  writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
  target = paths.path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  atomic_io.write(target, text.getvalue().encode())


def write(path: epath.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes rows of the same columns as a tsv or xlsx by the name, atomically.

  In xlsx a column of whole numbers alone holds numbers, as pandas reads it from a tsv.

  Raises:
    ValueError: for another suffix, no rows, or a text that is too long for a cell of xlsx.
  """
  target, columns = paths.path(path), list(rows[0]) if rows else []
  if target.suffix not in (".tsv", ".xlsx") or not rows:
    raise ValueError(f"{path}: a table of at least one row ends in .tsv or .xlsx")
  if target.suffix == ".tsv":
    write_tsv(target, rows)
    return
  whole = {c for c in columns if all(_WHOLE.fullmatch(str(row[c])) for row in rows if row[c] is not None)}
  typed = [{c: int(row[c]) if c in whole and row[c] is not None else row[c] for c in columns}
           for row in rows]
  target.parent.mkdir(parents=True, exist_ok=True)
  atomic_io.write(target, _as_spreadsheet(columns, typed))


def require_columns(rows: Sequence[Row], columns: Sequence[str], where: str) -> None:
  """Raises ValueError if a table is empty or lacks a column."""
  if not rows:
    raise ValueError(f"{where} holds no rows")
  if lacking := [c for c in columns if not any(c in row for row in rows)]:
    raise ValueError(f"{where} lacks the columns {', '.join(lacking)}")


def _text(value: Any) -> str | None:
  if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
    return None
  if isinstance(value, float) and value.is_integer():
    return str(int(value))
  return value if isinstance(value, str) else str(value)


def _json_rows(value: Any, file: epath.Path) -> list[dict[str, Any]]:
  if isinstance(value, dict) and isinstance(value.get("records"), list):
    value = value["records"]
  elif isinstance(value, dict) and all(isinstance(v, list) for v in value.values()):
    value = [dict(zip(value, cells)) for cells in zip(*value.values())]
  if not isinstance(value, list):
    raise ValueError(f"{file} is no table: expected a list of objects, or an object of lists")
  return [row if isinstance(row, dict) else {} for row in value]  # an empty row is malformed


def _json_line(line: str) -> dict[str, Any]:
  """A row; an empty one, which is malformed, if the line is no object."""
  try:
    row = records.parse_json(line)
  except ValueError:
    return {}
  return row if isinstance(row, dict) else {}


def _spreadsheet(data: bytes) -> list[dict[str, Any]]:
  """Reads the first sheet of an xlsx file; the first row holds the columns' names."""
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    shared = []
    if "xl/sharedStrings.xml" in archive.namelist():
      strings = ElementTree.fromstring(archive.read("xl/sharedStrings.xml"))
      shared = ["".join(t.text or "" for t in s.iter(f"{_SPREADSHEET}t")) for s in strings]
    sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
  lines = []
  for row in sheet.iter(f"{_SPREADSHEET}row"):
    cells = {}
    for cell in row:
      value = cell.find(f"{_SPREADSHEET}v")
      text = "".join(t.text or "" for t in cell.iter(f"{_SPREADSHEET}t"))
      if value is not None:
        text = shared[int(value.text)] if cell.get("t") == "s" else value.text
      cells[_CELL.match(cell.get("r"))[1]] = text
    lines.append(cells)
  names = lines[0] if lines else {}
  return [{name: cells.get(column) for column, name in names.items()} for cells in lines[1:]]


def _as_spreadsheet(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
  """Makes an xlsx file of one sheet.

  Raises:
    ValueError: for a text that a cell cannot hold.
  """
  names = [_letters(i) for i in range(len(columns))]
  lines = "".join(
      f"<row>{''.join(_as_cell(value, f'{name}{number}') for name, value in zip(names, values))}</row>"
      for number, values in enumerate((columns, *([row[c] for c in columns] for row in rows)), 1))
  schemas = "http://schemas.openxmlformats.org"
  files = {
      "[Content_Types].xml":
          f'<Types xmlns="{schemas}/package/2006/content-types">'
          '<Default Extension="rels" ContentType='
          '"application/vnd.openxmlformats-package.relationships+xml"/>'
          '<Override PartName="/xl/workbook.xml" ContentType='
          '"application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/>'
          '<Override PartName="/xl/worksheets/sheet1.xml" ContentType='
          '"application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/></Types>',
      "_rels/.rels": _relation(schemas, "officeDocument", "xl/workbook.xml"),
      "xl/_rels/workbook.xml.rels": _relation(schemas, "worksheet", "worksheets/sheet1.xml"),
      "xl/workbook.xml":
          f'<workbook xmlns="{schemas}/spreadsheetml/2006/main" '
          f'xmlns:r="{schemas}/officeDocument/2006/relationships">'
          '<sheets><sheet name="Sheet1" sheetId="1" r:id="r1"/></sheets></workbook>',
      "xl/worksheets/sheet1.xml":
          f'<worksheet xmlns="{schemas}/spreadsheetml/2006/main"><sheetData>{lines}</sheetData>'
          '</worksheet>'}
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, text in files.items():
      archive.writestr(name, '<?xml version="1.0" encoding="UTF-8"?>' + text)
  return out.getvalue()


def _relation(schemas: str, kind: str, target: str) -> str:
  return (f'<Relationships xmlns="{schemas}/package/2006/relationships"><Relationship Id="r1" '
          f'Type="{schemas}/officeDocument/2006/relationships/{kind}" Target="{target}"/></Relationships>')


def _letters(column: int) -> str:
  """A, …, Z, AA, …"""
  before, last = divmod(column, 26)
  return (_letters(before - 1) if before else "") + string.ascii_uppercase[last]


def _as_cell(value: Any, address: str) -> str:
  if value is None:
    return f'<c r="{address}"/>'
  if isinstance(value, int):
    return f'<c r="{address}"><v>{value}</v></c>'
  text = _NO_XML.sub("\ufffd", str(value))
  if len(text) > _LONGEST_CELL:
    raise ValueError(
        f"{address}: {len(text)} characters ({text[:40]!r}…) are too many for xlsx; write a .tsv")
  return (f'<c r="{address}" t="inlineStr"><is><t xml:space="preserve">{saxutils.escape(text)}</t></is>'
          "</c>")
