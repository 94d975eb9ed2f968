"""Prompts and instructions as people put them to an assistant: "can you paint three squares?".

The words around a caption or an instruction are none of the Shapes world's own: its tokenizer spells
them, and of the stages before gen3 none has met them. What is asked for, and so its score, stays.
"""

from collections.abc import Sequence

PROMPTS = ("please draw {}", "show me {}", "can you paint {}?", "i would like to see {}", "{}, please")
EDITS = ("please {}", "can you {}?", "{}, please", "{} for me", "now {}!")


def paraphrase(words: str, ways: Sequence[str], number: int) -> str:
  """`words` put in one of `ways` (PROMPTS or EDITS), which numbers take in turn."""
  return ways[number % len(ways)].format(words)
