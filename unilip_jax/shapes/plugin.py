"""What the Shapes world adds to the package, by name (common/registry.py)."""

from unilip_jax.common import registry


def register() -> None:
  """Registers the source kind, evaluators, task, tokenizer and pretrained weights of Shapes."""
  registry.register("weights", "shapes", "unilip_jax.shapes.pretrained:open_weights")
  registry.register("weights", "blocks", "unilip_jax.shapes.pretrained:refuse_old_prefix")
  registry.register("source", "shapes", "unilip_jax.shapes.source:open_source")
  registry.register("source", "blocks", "unilip_jax.shapes.source:refuse_old_kind")
  registry.register("tokenizer", "shapes", "unilip_jax.shapes.language:TOKENIZER")
  for protocol in ("scenes", "questions", "t2i", "edits"):
    registry.register("evaluator", protocol, "unilip_jax.shapes.evaluators:make_evaluator")
  registry.register("task", "shapes_clauses", "unilip_jax.shapes.clauses_task:PretrainDit")
