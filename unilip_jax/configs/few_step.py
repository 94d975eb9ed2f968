"""few_step: distill a generation checkpoint so that 1 to 4 steps make an image, without guidance.

  unilip train --config=configs/few_step.py:1b --workdir=runs/few_step --config.init_from=runs/gen3
  unilip train --config=configs/few_step.py:tiny --workdir=/tmp/few_step   # two CPU cores, hours

MeanFlow (arXiv 2505.13447) with EMF's schedule for text to image, and the guided velocity of the frozen
start as the target; `--config.distill.method=consistency` trains sCM instead, as
SANA-Sprint (arXiv 2503.09641) does without its adversarial loss. The DiT trains; LLM, queries, connector,
projector and tokenizer are frozen. `UniLIP.generate` and the command line take 4 steps of such a checkpoint
without further options.

Paper: no UniLIP score. EMF, SANA-1.5 1.6B: GenEval .90 with 4 steps, close to its 30-step teacher.
Hardware: not planned on TPUs yet; `unilip plan` does it.
Tiny: no weights included; 300 updates of 32 images do not suffice (docs/training.md).
"""

from unilip_jax.configs import gen1, gen3


def get_config(size: str = "1b"):
  c = gen3.get_config(size)
  tiny = size == "tiny"
  c.stage = "few_step"
  c.task = "distill"
  c.init_from = "shapes:gen3" if tiny else "runs/gen3"
  c.param_rules = (
      ("^(vision_tower|mlp1|latent_head|decoder|llm|queries|connector|projector|teacher)/", gen1.FROZEN),)
  c.total_steps = 2000 if tiny else 30_000
  c.text.prompt_dropout = 0.0  # samples need no guidance, and so no network without prompts
  c.generate.timestep_shift = 1.0  # not used
  c.distill.guidance = 2.0 if tiny else 4.5
  # The floor belongs to sums over the latents of an image, 512 numbers at tiny and 8192 at 1b and 3b.
  c.distill.floor = 1e-3
  c.distill.time_smoothing = 10.0
  c.sample.steps = 4
  c.sample.guidance = 1.0
  c.optimizer.lr = 1e-4 if tiny else 5e-5
  c.optimizer.end_lr = c.optimizer.lr / 10
  c.optimizer.b2 = 0.95  # MeanFlow's
  c.ema_decay = 0.999
  gen1.set_warmup(c)
  return c
