"""Names of mlp1: as a Sequential (`mlp1.{0,1,3}`) and transformers' multi_modal_projector."""

from unilip_jax.convert import rules as engine
from unilip_jax.convert import tables_internvit as names


def rules(torch: str, path: str) -> list[engine.Rule]:
  """The Sequential layout.

  Args:
    torch: prefix, e.g. "mlp1." or "model.multi_modal_projector.".
    path: prefix of ours, e.g. "mlp1/".
  """
  return [*names.norm(f"{torch}0", f"{path}norm"), *names.linear(f"{torch}1", f"{path}fc1"),
          *names.linear(f"{torch}3", f"{path}fc2")]


def rules_transformers(torch: str, path: str) -> list[engine.Rule]:
  """transformers' layout; torch e.g. "multi_modal_projector."."""
  return [*names.norm(f"{torch}layer_norm", f"{path}norm"),
          *names.linear(f"{torch}linear_1", f"{path}fc1"),
          *names.linear(f"{torch}linear_2", f"{path}fc2")]
