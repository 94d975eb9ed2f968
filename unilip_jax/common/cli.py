"""The command `unilip`: one name for every command of the package.

  unilip train | eval | plan  --config=configs/STAGE.py[:SIZE] --workdir=DIR [--config.FIELD=VALUE ...]
  unilip check                --config=configs/STAGE.py[:SIZE]: whether all inputs are there
  unilip infer                reconstruct | generate | edit | chat ...
  unilip serve                --checkpoint=DIR [--port=8000]: OpenAI's HTTP API, and a page
  unilip convert              import | export | inspect | check ...
  unilip data                 look FOLDER | blip3o | gpt_image_edit | sharegpt4o | imagenet | json_lines ...
  unilip evals                list | aggregate ...
  unilip report               --workdir=DIR [--compare=DIR,...]

`unilip COMMAND --help` lists the options of a command. Each is the same as `python -m` of its module.
"""

import difflib
import runpy
import sys

# {command: (module that `python -m` runs, arguments that come first)}
COMMANDS = {
    "train": ("unilip_jax.main", ["--mode=train"]),
    "eval": ("unilip_jax.main", ["--mode=eval"]),
    "plan": ("unilip_jax.main", ["--mode=plan"]),
    "check": ("unilip_jax.plan.inputs", []),
    "infer": ("unilip_jax.infer", []),
    "serve": ("unilip_jax.serve", []),
    "convert": ("unilip_jax.convert", []),
    "data": ("unilip_jax.data", []),
    "evals": ("unilip_jax.evals", []),
    "report": ("unilip_jax.report", []),
}


def main() -> None:
  """Runs the command that `sys.argv` names; exits with status 2 for an unknown one."""
  name, *arguments = sys.argv[1:] or ["--help"]
  if name in ("--help", "-h"):
    print(__doc__.strip())
    return
  if name not in COMMANDS:
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]
    print(f"error: unknown command {name!r}; the nearest is {near}. Choose {', '.join(COMMANDS)}",
          file=sys.stderr)
    sys.exit(2)
  module, first = COMMANDS[name]
  sys.argv[1:] = [*first, *arguments]
  runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
