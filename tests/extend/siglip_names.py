"""Names of SigLIP's vision tower in transformers' SiglipVisionModel."""

from tests.extend import siglip
from unilip_jax.convert import engine

# What of the PyTorch weights is not read, with the reason.
SKIP = ((r"(vision_model\.)?head\.", "attention pooling, which no tower has"),)


def rules(dims: siglip.SiglipDims, torch: str, path: str) -> list[engine.Rule]:
  """Rows (PyTorch name, path here, transform).

  Args:
    dims: gives the number of layers.
    torch: prefix of the PyTorch names, "vision_model." in published files.
    path: prefix of the paths here, e.g. "vision_tower/".
  """
  n, layer, here = dims.depth, f"{torch}encoder.layers.{{i}}.", f"{path}layers/"
  patches = f"{torch}embeddings.patch_embedding"
  qkv = [f"{layer}self_attn.{x}_proj" for x in "qkv"]
  return [
      engine.Rule(f"{patches}.weight", f"{path}patch_embed/kernel", "conv"),
      engine.Rule(f"{patches}.bias", f"{path}patch_embed/bias"),
      engine.Rule(f"{torch}embeddings.position_embedding.weight", f"{path}pos_embed"),
      engine.Rule(tuple(f"{x}.weight" for x in qkv), f"{here}qkv/kernel", "linear", count=n),
      engine.Rule(tuple(f"{x}.bias" for x in qkv), f"{here}qkv/bias", count=n),
      *engine.linear(f"{layer}self_attn.out_proj", f"{here}out", n),
      *engine.norm(f"{layer}layer_norm1", f"{here}norm1", n),
      *engine.norm(f"{layer}layer_norm2", f"{here}norm2", n),
      *engine.linear(f"{layer}mlp.fc1", f"{here}fc1", n),
      *engine.linear(f"{layer}mlp.fc2", f"{here}fc2", n),
      *engine.norm(f"{torch}post_layernorm", f"{path}norm")]
