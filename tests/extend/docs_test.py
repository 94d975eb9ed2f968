"""The code printed in docs/extend.md is the code that the tests run.

  python -m tests.extend.docs_test      # writes the files' code into the document
"""

import pathlib
import re

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PAGE = _ROOT / "docs" / "extend.md"
_BLOCK = re.compile(r"```python\n# (tests/extend/\S+)\n.*?```", re.DOTALL)


def _current(match: re.Match) -> str:
  return f"```python\n# {match[1]}\n{(_ROOT / match[1]).read_text()}```"


def test_printed_code_is_the_code_that_runs():
  text = _PAGE.read_text()
  assert {m[1] for m in _BLOCK.finditer(text)} == {
      str(p.relative_to(_ROOT)) for p in (_ROOT / "tests" / "extend").glob("*.py")
      if not p.stem.endswith("_test")}
  assert _BLOCK.sub(_current, text) == text


if __name__ == "__main__":
  _PAGE.write_text(_BLOCK.sub(_current, _PAGE.read_text()))
