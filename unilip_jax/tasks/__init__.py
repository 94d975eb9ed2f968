"""Tasks: the initialisation, train step and use of the model of each stage."""

from typing import Any

from unilip_jax.common import registry

for _name, _class in {
    "reconstruct": "Reconstruct", "generate": "Generate", "understand": "Understand", "nft": "Nft",
    "grpo": "Grpo", "distill": "Distill"}.items():
  registry.register("task", _name, f"{__name__}.{_name}:{_class}")


def make(config: Any) -> Any:
  """Makes the task `config.task`.

  Raises:
    ValueError: for an unknown name.
  """
  return registry.find("task", config.task)(config)
