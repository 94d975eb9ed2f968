"""The stage-2 step at tiny size, here and in PyTorch eager, side by side on this machine.

  python -m benchmarks.train_step [--batch_size=32] [--repeats=15]

Same networks, batch, losses and optimizer; random weights; float32. Writes
benchmarks/results/train_step_<device>.json.
"""

import argparse
import gc

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import harness, torch_tokenizer
from configs import stage2
from unilip_jax import presets, sharding, tasks


def _ours(config, pixels, gan: bool):
  config = config.copy_and_resolve_references()
  config.gan.start_step = 0 if gan else config.total_steps
  task = tasks.make(config)
  mesh = sharding.make_mesh()
  state = jax.jit(lambda key: task.make_state(task.init_modules(key), jnp.uint32(0)))(
      jax.random.key(0))
  step = jax.jit(task.train_step, donate_argnums=0)
  batch = {"image": jax.device_put(pixels, sharding.batch(mesh)),
           "_mask": np.ones(len(pixels), np.bool_)}
  box = [state]

  def run():
    box[0], metrics = step(box[0], batch)
    return float(metrics["loss"])

  return run


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--repeats", type=int, default=15)
  parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
  args = parser.parse_args()
  torch.set_num_threads(args.threads)
  config, preset = stage2.get_config("tiny"), presets.get("tiny")
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (args.batch_size, config.image_size, config.image_size, 3), np.uint8)
  tensor = torch.from_numpy(pixels)
  rows = []
  for gan in (False, True):
    name = "stage-2 step, " + ("with GAN" if gan else "without GAN")
    twin = torch_tokenizer.Stage2Step(preset, config, gan)
    ours = _ours(config, pixels, gan)
    seconds = harness.interleave(
        {"unilip_jax": ours, "PyTorch eager": lambda twin=twin: twin(tensor)}, repeats=args.repeats)
    rows += [harness.row(f"{name}, {who}", [args.batch_size / s for s in values], "images/s", True)
             for who, values in seconds.items()]
    rows.append(harness.row(
        f"{name}, ratio", np.array(seconds["PyTorch eager"]) / np.array(seconds["unilip_jax"]), "×",
        True))
    del ours, twin
    gc.collect()
  device = jax.devices()[0]
  label = "cpu" if device.platform == "cpu" else device.device_kind.replace(" ", "_").lower()
  harness.write(f"benchmarks/results/train_step_{label}.json", "train_step",
                vars(args) | {"image_size": config.image_size, "size": "tiny"}, rows)


if __name__ == "__main__":
  main()
