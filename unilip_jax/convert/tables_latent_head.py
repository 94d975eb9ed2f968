"""Names of the latent head: `down_blocks.N.mlp.{0,1,3}` and `down_mlp.{0,1,3}`."""

from unilip_jax.convert import rules as engine
from unilip_jax.convert import tables_internvit as names


def rules(depth: int, torch: str, path: str) -> list[engine.Rule]:
  """Rows of the latent head.

  Args:
    depth: residual blocks.
    torch: prefix, e.g. "" or "model.vae_decoder.".
    path: prefix of ours, e.g. "latent_head/".
  """
  block, ours = f"{torch}down_blocks.{{i}}.mlp.", f"{path}down_blocks/layers/"
  down, narrow = f"{torch}down_mlp.", f"{path}down_mlp/"
  return [*names.norm(f"{block}0", f"{ours}norm", depth),
          *names.linear(f"{block}1", f"{ours}fc1", depth),
          *names.linear(f"{block}3", f"{ours}fc2", depth),
          *names.norm(f"{down}0", f"{narrow}norm"), *names.linear(f"{down}1", f"{narrow}fc1"),
          *names.linear(f"{down}3", f"{narrow}fc2")]
