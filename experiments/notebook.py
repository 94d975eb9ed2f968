"""Makes docs/quickstart.ipynb from docs/quickstart.md, so that both hold the same text and code.

  python -m experiments.notebook

Blocks that tests run (the marker on the line before them) are code cells, and a block of what they print is
their output. All else is Markdown, without the markers.
"""

import json
import pathlib
import re
from typing import Any

_DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
SOURCE, TARGET = _DOCS / "quickstart.md", _DOCS / "quickstart.ipynb"
_BLOCK = re.compile(r"<!-- test: (run|notebook|output) -->\n```(\w*)\n(.*?)\n```\n", re.DOTALL)
_MARKER = re.compile(r"<!-- test: .+? -->\n")
_START = ("Start Jupyter in the environment that has the package: `pip install jupyterlab`, then "
          "`jupyter lab docs/quickstart.ipynb`.")


def make(text: str) -> str:
  """Returns the notebook of a document as JSON of nbformat 4.5.

  Args:
    text: Markdown; blocks that tests run are Python or bash.
  """
  cells: list[dict[str, Any]] = []
  title, _, rest = text.partition("\n\n")
  rest, position = f"{title}\n\n{_START}\n\n{rest}", 0
  for match in _BLOCK.finditer(rest):
    _add_markdown(cells, rest[position:match.start()])
    position = match.end()
    kind, language, code = match.groups()
    if kind == "output":
      cells[-1]["outputs"].append(
          {"output_type": "stream", "name": "stdout", "text": (code + "\n").splitlines(keepends=True)})
    else:
      _add(cells, "code", code if language == "python" else f"%%bash\n{code}",
           execution_count=None, outputs=[])
  _add_markdown(cells, rest[position:])
  metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
              "language_info": {"name": "python"}}
  notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
  return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _add_markdown(cells: list[dict[str, Any]], text: str) -> None:
  if text := _MARKER.sub("", text).strip():
    _add(cells, "markdown", text)


def _add(cells: list[dict[str, Any]], kind: str, text: str, **more: Any) -> None:
  cells.append({"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}, **more,
                "source": text.splitlines(keepends=True)})


if __name__ == "__main__":
  TARGET.write_text(make(SOURCE.read_text()))
