"""rl_nft: reward training of the DiT by DiffusionNFT, prompts and edits together.

  unilip train --config=configs/rl_nft.py:1b --workdir=runs/rl_nft --config.init_from=runs/gen3
  unilip train --config=configs/rl_nft.py:tiny --workdir=/tmp/rl_nft     # two CPU cores, minutes

DiffusionNFT (arXiv 2509.16117) for text→image and, as Edit-R1 does (UniWorld-V2), for edits: 48 prompts
× 24 images an update, 10 steps without guidance, 9 noise levels for each image. The DiT trains all, not
by LoRA as there; queries, connector and projector may train too by param_rules. Afterwards images are made
without guidance (sample.guidance=1), in half the time.

Paper: GenEval of SD3.5-M without guidance .24 → .98 within 1000 updates.
Tiny, without guidance, two training seeds: 120 updates, 16 minutes of one core of an Intel Xeon, took
template prompts from .656 to .787 and .797, paraphrased ones from .614 to .754 and .733, unseen
combinations from .453 to .653 and .675; edits went from .658 to .656 and .685
(docs/results/reward_scores.json). The rate falls to 1e-5: at a constant 2e-4 edits fell to .62.
"""

from unilip_jax.configs import gen1, gen3


def get_config(size: str = "1b"):
  c = gen3.get_config(size)
  make_reward_training(c)
  c.stage = "rl_nft"
  c.task = "nft"
  return c


def make_reward_training(c) -> None:
  """Sets what rl_nft and rl_grpo share, as a change of gen3."""
  tiny = c.size == "tiny"
  c.init_from = "shapes:gen3" if tiny else "runs/gen3"
  # The parts that generation trained keep float32: bfloat16 would change their outputs.
  c.param_rules = (("^(vision_tower|mlp1|latent_head|decoder|llm)/", gen1.FROZEN),
                   ("^(queries|connector|projector)/", {"train": False}))
  c.data.example = "prompt"
  c.data.edit_share = 1 / 2 if tiny else 1 / 3
  c.batch_size = 32 if tiny else 48  # prompts
  c.total_steps = 120 if tiny else 1000
  # 1b: not tried. The papers' 3e-4 is of LoRA; DeepGen trains all weights by rewards at 2e-6.
  c.optimizer.lr, c.optimizer.end_lr = (2e-4, 1e-5) if tiny else (1e-5, 1e-5)
  c.optimizer.warmup_steps = 10
  c.optimizer.weight_decay = 0.0
  c.optimizer.clip_norm = 1.0
  c.ema_decay = 0.95 if tiny else 0.9
  c.sample.guidance = 1.0  # as in rollouts
  c.checkpoint_every_steps = 20 if tiny else 50
  c.sample_every_steps = 20 if tiny else 50
  c.log_every_steps = 1
  if tiny:
    c.data.train = c.data.edit = (("shapes", "train", 1.0), ("shapes", "train", 1.0, {"paraphrased": True}))
    c.reward.terms = (("shapes", 1.0),)
    c.reward.group_size = 12
    c.reward.times = 4
    # Parts that fit a processor's caches: 7.9 instead of 12.9 CPU-seconds an update, together with
    # float32_matmul_precision=bfloat16, on a core of an Intel Xeon with matrix units (AMX).
    c.grad_accum_steps = 8
    c.reward.sub_batches = 4
    unseen = ("shapes", "unseen")
    c.eval.sets += (("unseen", "t2i", *unseen), ("unseen_edits", "edits", *unseen))
    c.eval.every_steps = 50
  else:
    # Prompts with what GenEval's rules or another reward need (docs/data.md); edits with their input.
    c.data.train = (("tar", "data/rl-prompts/*.tar", 1.0),)
    c.data.edit = (("tar", "data/rl-edits/*.tar", 1.0),)
    c.reward.terms = (("judge", 1.0, {"base_url": "http://localhost:8000/v1", "model": "judge"}),)
    c.reward.sub_batches = 2
