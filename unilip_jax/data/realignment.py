"""Images that are rebuilt from themselves: the data of reconstruction alignment (RecA, arXiv 2509.07295).

The row `("tar", "data/*.tar", 1.0, {"same": True})` of data.edit takes the images of any kind of source as
edits whose input and target are the same image. The instruction is one of TEMPLATES, many, so that none of
them becomes a signal to copy. Images are cropped, not stretched.
"""

from collections.abc import Sequence

from unilip_jax.data import omissions, sources

TEMPLATES = (
    "keep everything as it is",
    "show this image again",
    "paint the same image once more",
    "draw exactly what is here",
    "repeat this image in full detail",
    "make an identical image",
    "recreate this scene",
    "reproduce all objects, their shapes and colours",
    "the same objects in the same places",
    "leave the image unchanged",
    "copy the image, with its background",
    "render this view again",
    "same count, same colours, same layout",
    "give me this image back",
    "rebuild the image from what you see",
    "draw all of it again",
    "generate what the image shows",
    "restore the original image",
    "preserve every object and the background",
    "another print of this image",
    "depict the same content",
    "redraw this without any change",
    "an image that matches this one",
    "what you see, as an image",
)
HELD_OUT = (  # of training, for evaluation
    "change nothing",
    "return the image as it was",
    "once more, the same",
    "all shapes and colours stay as they are",
)


class SameImage(sources.Source):
  """Records of another source's images as edits that change nothing."""

  def __init__(self, images: sources.Source):
    self._images = images

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> sources.Record:
    record = self._images[index]
    image = record.parts["image"]
    text = TEMPLATES[index % len(TEMPLATES)].encode()
    return sources.Record(
        {"cond_image": image, "image": image, "text": text}, record.key, record.shard, crop="center")

  def left_out(self) -> omissions.Omissions:
    return self._images.left_out()

  def stamps(self) -> Sequence[str]:
    return self._images.stamps()
