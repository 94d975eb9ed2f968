"""Paraphrases prompts and instructions as people put them to an assistant: "can you paint three squares?".

The added words are not in the vocabulary of Shapes: its tokenizer spells them, and no stage before gen3
trains on them. The caption inside, and so its score, stays the same.
"""

from collections.abc import Sequence

PROMPTS = ("please draw {}", "show me {}", "can you paint {}?", "i would like to see {}", "{}, please")
EDITS = ("please {}", "can you {}?", "{}, please", "{} for me", "now {}!")


def paraphrase(words: str, ways: Sequence[str], number: int) -> str:
  """Puts `words` into the template `number` of `ways` (PROMPTS or EDITS), counted round and round."""
  return ways[number % len(ways)].format(words)
