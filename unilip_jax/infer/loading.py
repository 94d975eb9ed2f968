"""Reads the modules that UniLIP needs from a checkpoint; they determine its abilities."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from unilip_jax.common import arguments, tree
from unilip_jax.data import text as text_lib
from unilip_jax.infer import description
from unilip_jax.models import presets, tokenizer, unilip
from unilip_jax.weights import dims as dims_lib
from unilip_jax.weights import language, sources


@dataclasses.dataclass(frozen=True)
class Loaded:
  """Holds parameters on the device and their description; fields as UniLIP's arguments."""

  params: Mapping[str, Any]
  tokenizer_dims: presets.TokenizerDims
  dims: presets.UnilipDims | None
  condition: str
  text: text_lib.Text | None
  system: str
  name: str
  stage: str


DTYPES = ("bfloat16", "float32")


def check_options(dtype: str, *, batch_size: int, int8: bool) -> None:
  """Refuses options that UniLIP does not have, before anything is read.

  Raises:
    ValueError: with the choices.
  """
  arguments.choice(
      "dtype", dtype, DTYPES, "; int8 weights are the option int8=True" if dtype == "int8" else "")
  arguments.integer("batch_size", batch_size, 1)
  arguments.flag("int8", int8)


def read(path: str, dtype: str) -> Loaded:
  """Reads arrays from disk onto the first device in `dtype`, one after another.

  Args:
    path: as for `UniLIP.load`.
    dtype: of the arrays in memory.

  Raises:
    FileNotFoundError: if there are no weights or no tokenizer; the message explains what to download.
    ValueError: if the weights can neither reconstruct nor chat.
  """
  stored = sources.open_weights(path)
  model, dims = stored.model, None
  if set(unilip.MODULES) <= stored.modules and (dims := dims_lib.unilip_dims(model)):
    tokenizer_dims, modules = dims.tokenizer, unilip.MODULES
  elif set(unilip.UNDERSTANDING) <= stored.modules:
    complete = set(tokenizer.MODULES) <= stored.modules
    tokenizer_dims = dims_lib.tokenizer_dims(model) if complete else dims_lib.vision_dims(model)
    dims = presets.UnilipDims(
        tokenizer_dims, presets.from_json(presets.LlmDims, model["modules"]["llm"]), None, None, 0.0)
    modules = (*tokenizer.MODULES, "llm") if complete else unilip.UNDERSTANDING
  elif set(tokenizer.MODULES) <= stored.modules:
    tokenizer_dims, modules = dims_lib.tokenizer_dims(model), tokenizer.MODULES
  else:
    raise ValueError(
        f"{path} holds {', '.join(sorted(stored.modules))}: neither a tokenizer "
        f"({', '.join(tokenizer.MODULES)}) nor the modules of chat ({', '.join(unilip.UNDERSTANDING)})")
  text, system = _language(path, model) if dims else (None, "")  # before arrays are read: it may be absent
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  params = tree.unflatten(stored.restore({
      name: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=here)
      for name, leaf in stored.shapes.items() if name.split("/")[0] in modules}))
  condition = model.get("generate", {}).get("condition", "both")
  stage = description.stage_of(path, model)
  return Loaded(params, tokenizer_dims, dims, condition, text, system, str(path), stage)


def _language(path: str, model: Mapping[str, Any]) -> tuple[text_lib.Text, str]:
  """Reads the tokenizer of weights and their system message."""
  settings = language.language_of(path, model)
  if settings is None:
    raise FileNotFoundError(
        f"{path} holds neither tokenizer.json nor a run's config.json; put the tokenizer.json of the "
        "language model there (docs/weights.md)")
  tokenizer_path, system = settings
  return text_lib.Text(tokenizer_path), system
