"""UniLIP's connector: from the states of the language model to the context of the transformer."""

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2Model


class UniLIPConnector(ModelMixin, ConfigMixin):
  """Learned queries, layers of Qwen2 without the causal mask, and one projection."""

  @register_to_config
  def __init__(self, queries: int, layers: dict, caption_width: int, condition: str = "both"):
    """Makes the layers.

    Args:
      queries: number of learned queries, which the language model reads after a prompt.
      layers: fields of transformers' Qwen2Config.
      caption_width: of the result.
      condition: the context: the states of prompt and queries, "both", or of one: "queries", "hidden".
    """
    super().__init__()
    config = Qwen2Config(**layers)
    self.latent_queries = nn.Parameter(torch.zeros(1, queries, config.hidden_size))
    self.llm_connector = Qwen2Model(config)
    self.llm_connector.embed_tokens = None  # it reads states
    self.projector = nn.Linear(config.hidden_size, caption_width)

  def forward(self, states: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps states to the context.

    Args:
      states: float[B, L + queries, D] of prompts and queries.
      mask: bool[B, L + queries]; False for pads.

    Returns:
      (float[B, S, caption width], bool[B, S]).
    """
    prompt = mask.shape[1] - self.config.queries
    part = {"both": slice(None), "queries": slice(prompt, None), "hidden": slice(prompt)}[
        self.config.condition]
    states, mask = states[:, part].to(self.dtype), mask[:, part]
    states = self.llm_connector(
        inputs_embeds=states, attention_mask={"full_attention": mask[:, None, None]},
        position_ids=(mask.long().cumsum(1) - 1).clamp(min=0), use_cache=False).last_hidden_state
    return self.projector(states), mask
