"""Names of InternViT: original (`encoder.layers.N`) and transformers layout (`encoder.layer.N`)."""

from unilip_jax.convert import rules as engine
from unilip_jax.models import presets

Rule = engine.Rule


def rules(dims: presets.VitDims, torch: str, path: str) -> list[Rule]:
  """The original layout, in InternVL's own files, `.pth` and UniLIP folders.

  Args:
    dims: gives the number of layers.
    torch: prefix of the PyTorch names, e.g. "encoder." or "vision_model.".
    path: prefix of ours, e.g. "vision_tower/".
  """
  layer, ours, n = f"{torch}encoder.layers.{{i}}.", f"{path}layers/", dims.depth
  table = [
      Rule(f"{torch}embeddings.class_embedding", f"{path}cls_embed"),
      Rule(f"{torch}embeddings.position_embedding", f"{path}pos_embed"),
      Rule(f"{torch}embeddings.patch_embedding.weight", f"{path}patch_embed/kernel", "conv"),
      Rule(f"{torch}embeddings.patch_embedding.bias", f"{path}patch_embed/bias"),
      Rule(f"{layer}ls1", f"{ours}ls1", count=n),
      Rule(f"{layer}ls2", f"{ours}ls2", count=n)]
  for name in ("norm1", "norm2"):
    table += norm(f"{layer}{name}", f"{ours}{name}", n)
  for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
    table += linear(f"{layer}{name}", ours + name.replace(".", "/"), n)
  return table


def rules_transformers(dims: presets.VitDims, torch: str, path: str) -> list[Rule]:
  """transformers' InternVL layout; arguments as of `rules`, torch e.g. "vision_tower."."""
  layer, ours, n = f"{torch}encoder.layer.{{i}}.", f"{path}layers/", dims.depth
  attention = f"{layer}attention."
  qkv = [f"{attention}{x}_proj" for x in "qkv"]
  table = [
      Rule(f"{torch}embeddings.cls_token", f"{path}cls_embed"),
      Rule(f"{torch}embeddings.position_embeddings", f"{path}pos_embed"),
      Rule(f"{torch}embeddings.patch_embeddings.projection.weight", f"{path}patch_embed/kernel",
           "conv"),
      Rule(f"{torch}embeddings.patch_embeddings.projection.bias", f"{path}patch_embed/bias"),
      Rule(f"{layer}lambda_1", f"{ours}ls1", count=n),
      Rule(f"{layer}lambda_2", f"{ours}ls2", count=n),
      Rule(tuple(f"{x}.weight" for x in qkv), f"{ours}attn/qkv/kernel", "linear", count=n),
      Rule(tuple(f"{x}.bias" for x in qkv), f"{ours}attn/qkv/bias", count=n)]
  table += norm(f"{layer}layernorm_before", f"{ours}norm1", n)
  table += norm(f"{layer}layernorm_after", f"{ours}norm2", n)
  table += linear(f"{attention}projection_layer", f"{ours}attn/proj", n)
  table += linear(f"{layer}mlp.fc1", f"{ours}mlp/fc1", n)
  table += linear(f"{layer}mlp.fc2", f"{ours}mlp/fc2", n)
  return table


def linear(torch: str, path: str, count: int = 0) -> list[Rule]:
  """Weight and bias of a linear layer."""
  return [Rule(f"{torch}.weight", f"{path}/kernel", "linear", count),
          Rule(f"{torch}.bias", f"{path}/bias", "copy", count)]


def norm(torch: str, path: str, count: int = 0) -> list[Rule]:
  """Weight and bias of a norm."""
  return [Rule(f"{torch}.weight", f"{path}/scale", "copy", count),
          Rule(f"{torch}.bias", f"{path}/bias", "copy", count)]
