"""Names of the layers that adapters can have, in each library's model; from the rules of the weights.

A layout is one PyTorch model that PEFT or diffusers adapts. Its layers follow from the same rules as its
weights: each rule of a kernel names the layers that the kernel joins.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from unilip_jax.convert import engine, internvit, qwen2, reading, sana, unilip
from unilip_jax.models import lora


@dataclasses.dataclass(frozen=True)
class Place:
  """Where the adapter of one PyTorch layer is stored here.

  Attributes:
    dense: path of the dense layer.
    part: of its outputs (models/lora.py).
    layer: index in a scan; None outside of one.
    layers: length of the scan; 0 outside of one.
    conv: whether PyTorch has a 1×1 convolution there.
  """

  dense: str
  part: str
  layer: int | None
  layers: int
  conv: bool


@dataclasses.dataclass(frozen=True)
class Layout:
  """One PyTorch model.

  Attributes:
    name: for messages, and of the folder in an export.
    rules: module -> its rules, see reading.Layout.
  """

  name: str
  rules: reading.Layout

  def places(self, dims: Mapping[str, Any]) -> dict[str, Place]:
    """Returns {PyTorch layer: place} of the modules in `dims` ({module: parsed dimensions})."""
    places: dict[str, Place] = {}
    for module, rules in self.rules.items():
      if module in dims:
        for rule in rules(dims):
          places |= _of_rule(rule)
    return places


def _of_rule(rule: engine.Rule) -> dict[str, Place]:
  if not rule.path.endswith("/kernel") or rule.transform not in ("linear", "conv1x1_linear"):
    return {}
  dense, conv = rule.path.removesuffix("/kernel"), rule.transform == "conv1x1_linear"
  names = lora.FUSED.get(dense.split("/")[-1], ()) if len(rule.parts) > 1 else (lora.FULL,)
  return {
      torch.removesuffix(".weight"): Place(dense, part, i if rule.count else None, rule.count, conv)
      for i, layer in enumerate(rule.layers) for torch, part in zip(layer, names, strict=True)}


UNILIP = Layout("unilip", {name: unilip.FOLDER[name] for name in lora.MODULES})
QWEN2 = Layout("llm", {"llm": lambda d: qwen2.rules(d["llm"], "model.", "llm/", head="lm_head.weight")})
SANA = Layout("dit", sana.TRANSFORMER)
# In the order in which they are tried. InternVL as transformers 4 and 5 name it, and as its authors do.
LAYOUTS = (QWEN2, SANA, UNILIP, Layout("InternVL", internvit.TRANSFORMERS),
           Layout("InternVL", internvit.TRANSFORMERS_5), Layout("InternVL", internvit.ORIGINAL))
