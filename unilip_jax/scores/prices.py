"""Estimates tokens and cost of judge requests before the first is sent; counts the cost of answers after.

The prices of PRICES were not looked up: they are estimates, for the plan and the cap alone, and may be
wrong or out of date. State the price of your account. Models that you serve yourself cost 0.
"""

from collections.abc import Mapping
import dataclasses
import io
import math
from typing import Any

from PIL import Image

from unilip_jax.scores import requests

# Estimates in USD per million tokens, (input, output).
PRICES = {
    "gpt-4o-2024-05-13": (5.0, 15.0), "gpt-4o-2024-08-06": (2.5, 10.0), "gpt-4o-2024-11-20": (2.5, 10.0),
    "gpt-4o": (2.5, 10.0), "gpt-4o-mini": (0.15, 0.6), "gpt-4.1": (2.0, 8.0),
    "gpt-4.1-2025-04-14": (2.0, 8.0), "gpt-4-turbo": (10.0, 30.0), "gpt-4-1106-preview": (10.0, 30.0),
    "gpt-4-0613": (30.0, 60.0)}
_CHARS_PER_TOKEN = 4  # of English text
_ANSWER_TOKENS = 250  # of an answer with a reason, where the request sets no lower limit
_BASE, _TILE, _SIDE, _SHORT, _LONG = 85, 170, 512, 768, 2048  # OpenAI's count of a "high detail" image


@dataclasses.dataclass(frozen=True)
class Price:
  """Holds USD per million tokens.

  Attributes:
    input, output: see above.
    origin: where the price comes from, for messages and records.
  """

  input: float
  output: float
  origin: str = "as stated by --price"

  def __str__(self) -> str:
    return f"{self.input:g} and {self.output:g} USD per million tokens, {self.origin}"

  def cost(self, usage: Mapping[str, int]) -> float:
    """Returns the USD of an answer; `usage` holds prompt_tokens and completion_tokens."""
    return (usage.get("prompt_tokens", 0) * self.input
            + usage.get("completion_tokens", 0) * self.output) / 1e6


def find(model: str, kind: str, stated: str | None) -> Price:
  """Returns the price of a model.

  Args:
    model: id as requested.
    kind: of the endpoint; "local" costs nothing unless a price is stated.
    stated: "IN,OUT" in USD per million tokens; None takes the estimate.

  Raises:
    ValueError: for another form, or a model without a known price.
  """
  if stated is not None:
    try:
      price = Price(*(float(part) for part in stated.split(",")))
    except (ValueError, TypeError):
      raise ValueError(f"--price={stated!r} is not IN,OUT in USD per million tokens, e.g. 2.5,10") from None
    if not all(math.isfinite(v) and v >= 0 for v in (price.input, price.output)):
      raise ValueError(f"--price={stated!r}: prices are finite and at least 0")
    return price
  if kind == "local":
    return Price(0.0, 0.0, "of an endpoint on this machine or network")
  if model not in PRICES:
    raise ValueError(f"no price is known for the judge {model!r}, so that its cost cannot be limited; "
                     "state --price=IN,OUT in USD per million tokens (0,0 if it costs nothing)")
  return Price(*PRICES[model], "an estimate: state the price of your account by --price=IN,OUT")


def estimate(request: requests.Request) -> dict[str, int]:
  """Estimates {"prompt_tokens", "completion_tokens"} of a request."""
  tokens = 0
  for message in request.messages:
    for part in message.parts:
      if isinstance(part, str):
        tokens += math.ceil(len(part) / _CHARS_PER_TOKEN)
      else:
        tokens += _image_tokens(part.data)
  return {"prompt_tokens": tokens, "completion_tokens": min(
      request.max_tokens or _ANSWER_TOKENS, _ANSWER_TOKENS)}


def add(total: Mapping[str, int], usage: Mapping[str, Any]) -> dict[str, int]:
  """Adds two counts of tokens."""
  return {name: total.get(name, 0) + usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens")}


def _image_tokens(data: bytes) -> int:
  try:
    with Image.open(io.BytesIO(data)) as image:
      width, height = image.size
  except (OSError, SyntaxError, Image.DecompressionBombError) as error:
    raise ValueError(f"{len(data)} bytes that are no image ({error})") from error
  scale = min(1.0, _LONG / max(width, height))
  scale *= min(1.0, _SHORT / (scale * min(width, height)))
  tiles = math.ceil(width * scale / _SIDE) * math.ceil(height * scale / _SIDE)
  return _BASE + _TILE * tiles
