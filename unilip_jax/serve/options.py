"""What a server offers and what it refuses."""

import dataclasses

from unilip_jax.common import rectangles


@dataclasses.dataclass(frozen=True)
class Limits:
  """Holds the limits of requests.

  Attributes:
    queue: rows (images or answers) that wait for the device at most.
    body_bytes: of one request.
    open_bytes: of all bodies that are being read or parsed at once.
    pixels: of an image that a client sends; checked before it is decoded.
    images: that a request asks for, or that a conversation has.
    prompt_tokens: of a conversation with its image.
    new_tokens: of an answer.
    read_seconds: from the first to the last byte of a request's header, and of its body.
    seconds: from the start of a request to the end of its answer.
    connections: open at once.
  """

  queue: int = 64
  body_bytes: int = 32 * 2**20
  open_bytes: int = 128 * 2**20
  pixels: int = 2**25
  images: int = 10
  prompt_tokens: int = 8192
  new_tokens: int = 4096
  read_seconds: float = 30.0
  seconds: float = 300.0
  connections: int = 512


@dataclasses.dataclass(frozen=True)
class Offer:
  """Holds what requests may choose.

  Attributes:
    steps: numbers of network evaluations of an image, the default first. Each is a compiled program, so
      that clients cannot choose others.
    guidance: strength of the prompt unless a request chooses another.
    max_guidance: largest that a request may choose.
    max_tiles: tiles that an image of a conversation is cut into.
    sizes: (height, width) of images that are made besides the model's square; each is a compiled program.
    aliases: names of models by which requests may call the first checkpoint.
  """

  steps: tuple[int, ...] = (20, 10, 30, 50)
  guidance: float = 4.5
  max_guidance: float = 20.0
  max_tiles: int = 12
  aliases: tuple[str, ...] = ()
  sizes: tuple[rectangles.Size, ...] = ()

  def all_sizes(self, image_size: int) -> tuple[rectangles.Size, ...]:
    """Returns (height, width) of all images that are made, the square of the model first."""
    square = (image_size, image_size)
    return square, *(size for size in self.sizes if size != square)
