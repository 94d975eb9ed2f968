"""Measures the images of `evals make` against a plain loop over UniLIP.generate, one prompt at a time.

  python -m benchmarks.make_images [--checkpoint=shapes:gen3] [--prompts=16] [--batch_size=8]

Both sides sample 20 steps with guidance and write PNG files. The loop is what the official script does: one
prompt a call. Writes benchmarks/results/make_images_<device>.json.
"""

import argparse
import pathlib
import tempfile

from benchmarks import harness
from unilip_jax import UniLIP
from unilip_jax.sampling import sampler
from unilip_jax.scores import geneval, make, makers


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--checkpoint", default="shapes:gen3")
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--prompts", type=int, default=16)
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--repeats", type=int, default=3)
  args = parser.parse_args()
  benchmark = geneval.GenEval()
  items = [geneval.base.Item(f"{i:05d}", f"a red circle and {i} squares", "counting", record={"n": i})
           for i in range(args.prompts)]
  maker = makers.CheckpointMaker(args.checkpoint, args.dtype, args.batch_size)
  model = UniLIP.load(args.checkpoint, args.dtype, batch_size=1)
  settings = make.Settings(sampler.Options(steps=args.steps), size=maker.image_size, images_per_item=1)

  def make_loop():
    def run():
      with tempfile.TemporaryDirectory() as folder:
        for item in items:
          path = pathlib.Path(folder, benchmark.output_path(item, 0))
          path.parent.mkdir(parents=True)
          model.generate(item.prompt, steps=args.steps).save(path)
    return run

  def make_steps():
    def run():
      with tempfile.TemporaryDirectory() as folder:
        written = make.make_images(benchmark, items, make.epath.Path(folder), maker, settings)
        assert written == len(items)
    return run

  seconds, errors = harness.measure(
      {"evals make": make_steps, "loop over UniLIP.generate": make_loop}, repeats=args.repeats)
  rows = harness.compared("images of prompts", seconds, errors, work=len(items), unit="images/s",
                          first="evals make")
  harness.write(f"benchmarks/results/make_images_{harness.label()}.json", "make_images", vars(args), rows)


if __name__ == "__main__":
  main()
