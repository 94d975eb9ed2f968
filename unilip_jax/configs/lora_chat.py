"""lora_chat: adapt the language model to own conversations with low-rank adapters (models/lora.py).

  unilip train --config=configs/lora_chat.py:1b --workdir=runs/lora_chat
  unilip train --config=configs/lora_chat.py:tiny --workdir=/tmp/lora_chat     # two CPU cores, minutes

Trains on answers as tiny_mllm.py does. Adapters are PEFT's default for Qwen2: rank 8 and alpha 8 on q, v.
"""

from unilip_jax.configs import tiny_mllm

# PEFT's q_proj and v_proj.
LLM_ATTENTION = ("^llm/stack/layers/attn/qkv/[qv]$", {})


def get_config(size: str = "1b"):
  c = tiny_mllm.get_config(size)
  tiny = size == "tiny"
  c.stage = "lora_chat"
  if tiny:
    c.init_from = "shapes:mllm"
  c.lora.targets = (LLM_ATTENTION,)
  c.batch_size = 32 if tiny else 16
  c.total_steps = 300 if tiny else 1000
  c.optimizer.lr = c.optimizer.end_lr = 1e-3 if tiny else 2e-4
  c.optimizer.warmup_steps = 0
  c.optimizer.weight_decay = 0.0
  c.ema_decay = 0.0
  return c
