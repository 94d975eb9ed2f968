"""lora: adapt gen3 to own images with low-rank adapters (models/lora.py); all other weights are frozen.

  unilip train --config=configs/lora.py:1b --workdir=runs/lora --config.init_from=runs/gen3
  unilip train --config=configs/lora.py:tiny --workdir=/tmp/lora         # two CPU cores, minutes

Adapters, optimizer and schedule are those of diffusers' DreamBooth script for SANA: rank 4 on q, k and v of
the DiT's self- and cross-attention. `--config.lora.targets` chooses other layers (docs/lora.md).
"""

from unilip_jax.configs import gen3

# The script's to_q, to_k and to_v.
DIT_ATTENTION = ("^dit/layers/(attn/qkv/|cross/(q$|kv/))", {})


def get_config(size: str = "1b"):
  c = gen3.get_config(size)
  tiny = size == "tiny"
  c.stage = "lora"
  c.init_from = "shapes:gen3" if tiny else "runs/gen3"
  c.param_rules = ()
  c.lora.targets = (DIT_ATTENTION,)
  c.lora.rank, c.lora.alpha, c.lora.init = 4, 4.0, "gaussian"
  c.data.edit = ()
  c.data.edit_share = 0.0
  c.eval.sets = tuple(row for row in c.eval.sets if row[0] in ("t2i", "pairs"))  # are old prompts kept?
  c.batch_size = 32 if tiny else 4
  c.total_steps = 300 if tiny else 500
  # A constant rate; at tiny larger, as in all stages.
  c.optimizer.lr = c.optimizer.end_lr = 1e-3 if tiny else 1e-4
  c.optimizer.warmup_steps = 0
  c.optimizer.weight_decay = 1e-4
  c.optimizer.clip_norm = 1.0
  c.ema_decay = 0.0
  return c
