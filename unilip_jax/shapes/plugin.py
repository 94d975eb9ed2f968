"""Registers what the Shapes world adds to the package (common/registry.py)."""

from unilip_jax.common import registry


def register() -> None:
  """Registers the source kind, evaluators, benchmarks, task, tokenizer, vocabulary, weights and metrics of
  Shapes."""
  registry.register("weights", "shapes", "unilip_jax.shapes.pretrained:open_weights")
  registry.register("source", "shapes", "unilip_jax.shapes.source:open_source")
  registry.register("source_check", "shapes", "unilip_jax.shapes.source:check_source")
  registry.register("tokenizer", "shapes", "unilip_jax.shapes.language:TOKENIZER")
  registry.register("vocabulary", "shapes", "unilip_jax.shapes.vocabulary:note")
  for protocol in ("scenes", "questions", "t2i", "edits", "same"):
    registry.register("evaluator", protocol, "unilip_jax.shapes.evaluators:make_evaluator")
  registry.register("benchmark", "shapes", "unilip_jax.shapes.benchmarks:Prompts")
  registry.register("benchmark", "shapes-edits", "unilip_jax.shapes.benchmarks:Edits")
  registry.register("benchmark", "shapes-questions", "unilip_jax.shapes.benchmarks:Questions")
  registry.register("benchmark", "shapes-reconstruction", "unilip_jax.shapes.benchmarks:Reconstructions")
  registry.register("reward", "shapes", "unilip_jax.shapes.reward:make")
  registry.register("metric", "shapes", "unilip_jax.shapes.metric_labels:METRICS")
  registry.register("task", "shapes_clauses", "unilip_jax.shapes.clauses_task:PretrainDit")
  registry.register_old_name(
      "weights", "blocks", "the weights 'blocks:NAME' are called 'shapes:NAME' now")
  registry.register_old_name(
      "source", "blocks", "data of kind 'blocks' is of kind 'shapes' now, and settings in its path are "
      "options: ('shapes', 'train', 1.0, {'count': 2048, 'paraphrased': True})")
  registry.register_old_name("tokenizer", "blocks", "the tokenizer 'blocks' is called 'shapes' now")
