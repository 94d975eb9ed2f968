"""Fenced code blocks of Markdown files, each with the marker that says how a test checks it.

A marker is an HTML comment on the line before the fence: <!-- test: KIND --> or, with the reason why a
block is not executed, <!-- test: KIND: REASON -->.
"""

import dataclasses
import pathlib
import re
import shlex

# {kind: whether it needs a reason}
KINDS = {
    "run": False,  # executed as printed
    "notebook": False,  # parsed; tests/notebook_test.py executes it with fewer updates
    "output": False,  # what the block before it prints
    "parse": True,  # every command is parsed by its own parser and not run; the reason says why
    "plan": True,  # parsed, its batch divides over the devices; run as printed where libtpu is
    "config": False,  # executed on the config `c`
    "install": False,  # tests/install_test.py builds and runs the package; scripts exist
}
_FENCE = re.compile(r"^```(\w*)\n", re.MULTILINE)
_MARKER = re.compile(r"<!-- test: (\w+)(?:: (.+))? -->\n")


@dataclasses.dataclass(frozen=True)
class Block:
  """A fenced block.

  Attributes:
    place: "FILE:LINE" of the fence.
    language: after the fence; "" for output.
    kind: of KINDS.
    reason: why it is not executed; "" where it is.
    text: without the fences.
  """

  place: str
  language: str
  kind: str
  reason: str
  text: str

  def commands(self) -> list[list[str]]:
    """Words of each shell command, with comments dropped and continued lines joined."""
    lines = self.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def read(path: pathlib.Path) -> list[Block]:
  """All fenced blocks of a file.

  Raises:
    ValueError: for a block without a marker, an unknown kind or a missing reason.
  """
  text, blocks, position = path.read_text(), [], 0
  while fence := _FENCE.search(text, position):
    line = text.count("\n", 0, fence.start()) + 1
    before = text[:fence.start()].rsplit("\n", 2)[-2] + "\n"
    marker = _MARKER.fullmatch(before)
    if not marker or marker[1] not in KINDS or (KINDS[marker[1]] and not marker[2]):
      raise ValueError(f"{path.name}:{line}: a code block needs <!-- test: KIND[: REASON] --> before it, "
                       f"of {', '.join(KINDS)}; found {before.strip()!r}")
    end = text.index("\n```", fence.end() - 1)
    blocks.append(Block(
        f"{path.name}:{line}", fence[1], marker[1], marker[2] or "", text[fence.end():end + 1]))
    position = end + 4
  return blocks
