"""The flags of --mode=plan. Imports no JAX, so that --help answers at once."""

from absl import flags
import ml_collections

_TOPOLOGY = flags.DEFINE_string(
    "topology", "", "plan: the devices, e.g. v5e:16x16, v5p:4x4x4, v5e:16x16*2 (slices), h100:8.")
_SWEEP = flags.DEFINE_bool("sweep", False, "plan: try batch sizes, meshes and remat, recommend one.")
_SWEEP_TRIES = flags.DEFINE_integer("sweep_tries", 12, "plan: settings to try.", lower_bound=1)
_CODEGEN = flags.DEFINE_bool(
    "codegen", False, "plan: compile to machine code, for the compiler's own estimate of cycles; takes "
    "ten times as long.")
_TIMEOUT = flags.DEFINE_float("plan_timeout", 3600.0, "plan: seconds for one compilation.")


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Plans with the options of the command line."""
  from unilip_jax.plan import command

  command.run(config, workdir, _TOPOLOGY.value, sweep=_SWEEP.value, tries=_SWEEP_TRIES.value,
              codegen=_CODEGEN.value, timeout=_TIMEOUT.value)
