"""Makes post.npz and post.json, the recorded runs of official post-training code, from the full set.

  python -m tests.golden.trim_post --source=DIR

Every kept array is complete. Of the toy networks' gradients that of the first layer is kept: it depends on
all others.
"""

import argparse
import json
import pathlib

import numpy as np

_FOLDER = pathlib.Path(__file__).parent
_FILES = ("advantages", "emf", "flow_grpo", "meanflow", "nft_loss", "nft_masked", "nft_solver", "scm",
          "sde_kinds")
_JSON = ("nft_cases", "flow_grpo_cases", "meanflow_cases", "old_policy")
_LEFT_OUT = ("grad_b1", "grad_b2", "grad_W2", "v_loss_per_example", "xt", "v_new", "v_old", "v_ref")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--source", required=True, type=pathlib.Path, help="folder of the full set")
  source = parser.parse_args().source
  arrays = {}
  for name in _FILES:
    with np.load(source / f"{name}.npz") as file:
      arrays |= {f"{name}/{key}": file[key] for key in file.files
                 if key.rpartition("/")[2] not in _LEFT_OUT}
  np.savez_compressed(_FOLDER / "post.npz", **arrays)
  cases = {name: json.loads((source / f"{name}.json").read_text()) for name in _JSON}
  (_FOLDER / "post.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
  main()
