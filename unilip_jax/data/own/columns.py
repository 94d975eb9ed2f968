"""Finds which columns of a list hold images, captions, edits and conversations, by their common names."""

from collections.abc import Mapping, Sequence

from unilip_jax.data import conversations

_IMAGE = ("image", "images", "img", "file_name", "filename", "image_path", "image_file", "img_path", "path",
          "file", "jpg", "png")
CAPTION = ("text", "prompt", "caption")
_SOURCE = ("source", "input", "input_image", "source_image", "original_image", "original", "before", "src",
           "cond_image", "conditioning_image", "control")
_TARGET = ("target", "output", "output_image", "target_image", "edited_image", "edited", "after", "tgt",
           "result")
_INSTRUCTION = ("instruction", "edit_prompt", "edit_instruction", "edit", "prompt", "text", "caption")
_QUESTION, _ANSWER = ("question", "query"), ("answer", "response")
CHAT = "turns"  # role of the column of conversations

Roles = Mapping[str, tuple[str, ...]]  # {part of a record: columns that it is made of}


def serves(columns: Sequence[str]) -> tuple[str, ...]:
  """Returns the kinds of examples that a list with these columns is made for, the most special first."""
  if _first(columns, conversations.FIELDS) or (_first(columns, _QUESTION) and _first(columns, _ANSWER)):
    return ("understand", "reconstruct")
  if _first(columns, _TARGET) and (_first(columns, _SOURCE) or _first(columns, _IMAGE)):
    return ("edit", "reconstruct")
  return ("t2i", "reconstruct") if _first(columns, _IMAGE) or _first(columns, _TARGET) else ()


def roles(columns: Sequence[str], example: str, *, caption: str = "", prompt: str = "") -> Roles:
  """Finds the columns of the parts of an example.

  Args:
    columns: of the list.
    example: a key of sources.PARTS.
    caption: name of the column of captions or instructions; "" finds it.
    prompt: of records without text; with one, a list needs no column of text.

  Raises:
    ValueError: for a part without a column, or text in several columns, with the columns that there are.
  """
  image = _first(columns, _IMAGE)
  if example == "understand":
    talk = _first(columns, conversations.FIELDS)
    question, answer = _first(columns, _QUESTION), _first(columns, _ANSWER)
    turns = (talk,) if talk else (question, answer) if question and answer else ()
    return {"cond_image": _found(columns, image, "an image", _IMAGE),
            CHAT: turns or _found(columns, "", "conversations", conversations.FIELDS)}
  source, target = _first(columns, _SOURCE), _first(columns, _TARGET)
  if example == "reconstruct":
    return {"image": _found(columns, image or target, "an image", _IMAGE)}
  if example == "t2i":
    parts = {"image": _found(columns, image or target, "an image", _IMAGE)}
    text = _text(columns, caption, CAPTION, prompt, strict=True)
  else:
    parts = {"cond_image": _found(columns, source or image, "the input image", _SOURCE),
             "image": _found(columns, target, "the edited image", _TARGET)}
    text = _text(columns, caption, _INSTRUCTION, prompt, strict=False)
  return parts | ({"text": (text,)} if text else {})


def _text(
    columns: Sequence[str], named: str, known: Sequence[str], prompt: str, *, strict: bool) -> str:
  """Returns the column of captions or instructions; "" if there is none and a prompt replaces it."""
  if named:
    if named not in columns:
      raise ValueError(f"there is no column {named!r} (data.own_caption); the columns are "
                       f"{', '.join(columns)}")
    return named
  found = [name for name in _all(columns, known)]
  if len(found) > 1 and strict:
    raise ValueError(f"captions may be in the columns {', '.join(found)}: choose one, e.g. "
                     f"--config.data.own_caption={found[0]}")
  if not found and not prompt:
    raise ValueError(
        f"no column of captions ({', '.join(known)}) is among {', '.join(columns)}: name it with "
        "--config.data.own_caption=COLUMN, or give all images one prompt with "
        "--config.data.own_prompt=TEXT")
  return found[0] if found else ""


def _found(columns: Sequence[str], name: str, what: str, known: Sequence[str]) -> tuple[str, ...]:
  if not name:
    raise ValueError(f"no column holds {what}: the columns are {', '.join(columns) or 'none'}; rename one "
                     f"to {known[0]!r} (known names: {', '.join(known)})")
  return (name,)


def _all(columns: Sequence[str], known: Sequence[str]) -> list[str]:
  by_name: dict[str, str] = {}
  for column in columns:
    other = by_name.setdefault(column.lower(), column)
    if other != column and column.lower() in known:
      raise ValueError(f"the columns {other!r} and {column!r} differ in capitals alone: rename one")
  return [by_name[name] for name in known if name in by_name]


def _first(columns: Sequence[str], known: Sequence[str]) -> str:
  return next(iter(_all(columns, known)), "")
