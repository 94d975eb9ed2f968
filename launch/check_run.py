"""Checks what a launch script is about to run: topology, config, overrides. Prints what is wrong.

  python3 launch/check_run.py [--topology=v5e:4x4] [--devices=N] [--config=FILE --config.FIELD=VALUE ...]

Names of topologies need Python's own library alone, configs the package's requirements (launch/setup.sh).
"""

import difflib
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from unilip_jax.plan import device_names

# Slices of a kind that is rented but not planned (docs.cloud.google.com/tpu/docs/v4).
_V4 = tuple(f"v4:{shape}" for shape in (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x12", "8x8x16", "8x16x16"))


def check_topology(name: str) -> int:
  """Returns the number of chips.

  Raises:
    ValueError: for a topology that nobody rents out, naming the nearest that is.
  """
  slice_name, star, slices = name.partition("*")
  if star and not (slices.isdecimal() and int(slices)):
    raise ValueError(f"--topology={name}: give a number of slices of at least 1, e.g. {slice_name}*2")
  if slice_name in _V4:
    shape = slice_name.partition(":")[2].split("x")
    return int(shape[0]) * int(shape[1]) * int(shape[2]) * int(slices or 1)
  known = [*device_names.known(), *_V4]
  if slice_name not in known:
    kind = slice_name.partition(":")[0]
    same = [k for k in known if k.startswith(f"{kind}:")] or known
    near = difflib.get_close_matches(slice_name, same, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"--topology={name}: no such slice; the nearest is {near}; there are {', '.join(same)}")
  return device_names.parse(name).size


def check_config(arguments: list[str], devices: int) -> None:
  """Checks a config and its overrides, and that its batch divides over the devices (0: unknown).

  Raises:
    ValueError: naming the field and what to give.
  """
  from absl import flags

  from unilip_jax.configs import checks, flag
  from unilip_jax.multihost import flags as multihost_flags  # noqa: F401  (flags that a run takes)

  flags.DEFINE_string("workdir", None, "")
  flags.DEFINE_string("mode", "train", "")
  unexpected = flag.parse(["check_run", *arguments])[1:]
  if unexpected:
    raise ValueError(f"unexpected arguments: {' '.join(unexpected)}")
  config = flag.CONFIG.value
  checks.check(config)
  if devices and config.batch_size % (devices * config.grad_accum_steps):
    raise ValueError(
        f"batch_size={config.batch_size} does not divide over {devices} devices × grad_accum_steps="
        f"{config.grad_accum_steps}; unilip plan chooses one that does: give its plan.json as --plan")
  if devices and config.data.edit_share:
    from unilip_jax.data import batch as batch_lib

    for part, size in batch_lib.part_sizes(config).items():
      if size % (devices * config.grad_accum_steps):
        raise ValueError(
            f"{size} {part} examples of batch_size={config.batch_size} do not divide over {devices} "
            "devices; unilip plan chooses data.part_multiple and batch_size that do: give its plan.json as "
            "--plan")
  fsdp = config.mesh.fsdp
  if devices and fsdp != -1 and (fsdp < 1 or devices % fsdp):
    raise ValueError(f"--config.mesh.fsdp={fsdp} does not divide {devices} devices")


def main(argv: list[str]) -> None:
  devices, rest = 0, []
  for argument in argv:
    if argument.startswith("--topology="):
      devices = check_topology(argument.partition("=")[2])
    elif argument.startswith("--devices="):
      devices = int(argument.partition("=")[2])
    else:
      rest.append(argument)
  if rest:
    try:
      check_config(rest, devices)
    except ImportError as error:
      print(f"# the config is not checked: {error.name} is not installed for {sys.executable}; "
            "run bash launch/setup.sh first", file=sys.stderr)


if __name__ == "__main__":
  try:
    main(sys.argv[1:])
  except (ValueError, TypeError) as error:
    sys.exit(f"{' '.join(str(error).split())}")
