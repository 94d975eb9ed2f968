"""The parts of PyTorch's training steps: variants, optimizer with clipping and EMA, checkpointing.

Used by benchmarks only (torch_steps.py).
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import torch
from torch import nn
import torch.utils.checkpoint
import transformers


@dataclasses.dataclass(frozen=True)
class Variant:
  """How PyTorch runs a step.

  Attributes:
    compile: torch.compile over every network; else eager.
    checkpointing: layers of trained stacks recompute their activations in the backward pass.
    channels_last: memory format of convolutional networks.
    whole: the LLM's pass over prompt and queries is differentiated in one piece, as in the official code;
      otherwise the prompt goes first, without a backward pass, as here.
  """

  compile: bool = False
  checkpointing: bool = False
  channels_last: bool = False
  whole: bool = False

  @classmethod
  def parse(cls, text: str) -> "Variant":
    """Of "eager" or "compile", and fields joined by "+", e.g. "compile+checkpointing".

    Raises:
      ValueError: for another word.
    """
    kind, *more = text.split("+")
    known = [f.name for f in dataclasses.fields(cls) if f.name != "compile"]
    if kind not in ("eager", "compile") or not set(more) <= set(known):
      raise ValueError(f"{text!r}: write eager or compile, then + and any of {', '.join(known)}")
    return cls(compile=kind == "compile", **dict.fromkeys(more, True))


class Trainer:
  """Clipping, AdamW and the EMA of named parameters."""

  def __init__(self, named: Mapping[str, nn.Parameter], config: Any, *, scales: Mapping[str, float],
               lr: float, weight_decay: float, ema: bool):
    o = config.optimizer
    self.params = list(named.values())
    self.clip_norm, self.decay = o.clip_norm, config.ema_decay
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in named.items():
      scale = next((s for prefix, s in scales.items() if name.startswith(prefix)), 1.0)
      plain = p.ndim < 2 or any(word in name for word in o.no_decay)
      groups.setdefault((lr * scale, 0.0 if plain else weight_decay), []).append(p)
    self.optimizer = torch.optim.AdamW(
        [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()],
        betas=(o.b1, o.b2), eps=o.eps, fused=self.params[0].is_cuda)
    self.ema = [p.detach().clone() for p in self.params] if ema and self.decay else []

  def clip(self) -> torch.Tensor:
    """Clips the gradients; their norm before."""
    return nn.utils.clip_grad_norm_(self.params, self.clip_norm)

  def update(self) -> None:
    self.optimizer.step()
    self.optimizer.zero_grad(set_to_none=True)
    if self.ema:
      with torch.no_grad():
        torch._foreach_lerp_(self.ema, self.params, 1 - self.decay)


def autocast(device: torch.device, dtype: str) -> torch.autocast:
  """Returns autocast to bfloat16, disabled for another dtype."""
  return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def checkpoint_blocks(module: nn.Module) -> None:
  """Recomputes a module's activations in its backward pass; for networks without such an option."""
  forward = module.forward

  def recomputed(*args):
    if not torch.is_grad_enabled():
      return forward(*args)
    return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False)

  module.forward = recomputed


def checkpoint_layers(model: transformers.PreTrainedModel) -> None:
  """Recomputes the activations of each layer in the backward pass."""
  model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
  model.train()  # transformers checkpoints in training mode alone; these networks have no dropout
