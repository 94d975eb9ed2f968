"""Small programs on 2-D meshes as the TPU's compiler writes them; their collectives can be counted by hand.

`python -m tests.plan.programs` records them again (pip install -r requirements-plan.txt): one file for each
topology, tests/plan/collectives_*.hlo.txt, without the fields that the plan does not read.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from unilip_jax.plan import topology
from unilip_jax.sharding import mesh as mesh_lib

_FOLDER = pathlib.Path(__file__).parent
TOPOLOGIES = {"v5e:4x4": 4, "v5e:16x16": 16}  # {name: fsdp}
SHARD = (256, 512)  # float32 on each device, of the explicit collectives
LAYERS, WIDTH, ROWS = 4, 1024, 64  # of the scanned layers; rows on each device
AXES = {"data": ("data",), "fsdp": ("fsdp",), "both": ("data", "fsdp")}


def path(name: str) -> pathlib.Path:
  return _FOLDER / f"collectives_{name.replace(':', '_')}.hlo.txt"


def recorded(name: str) -> dict[str, str]:
  """Returns {program: its text}."""
  parts = re.split(r"^=== (\w+)\n", path(name).read_text(), flags=re.MULTILINE)[1:]
  return dict(zip(parts[::2], parts[1::2], strict=True))


def _explicit(mesh):
  """Yields (name, program, its input): one collective over one axis or both."""
  spec = P("data", "fsdp")
  rows, columns = (n * k for n, k in zip(SHARD, mesh.devices.shape, strict=True))
  x = jax.ShapeDtypeStruct((rows, columns), jnp.float32, sharding=NamedSharding(mesh, spec))
  for name, axes in AXES.items():
    ring = [(k, (k + 1) % mesh.shape[axes[0]]) for k in range(mesh.shape[axes[0]])]
    for kind, body in {
        "all_reduce": lambda x, axes=axes: jax.lax.psum(x, axes),
        "all_gather": lambda x, axes=axes: jax.lax.all_gather(x, axes, tiled=True),
        "reduce_scatter": lambda x, axes=axes: jax.lax.psum_scatter(x, axes, tiled=True),
        "all_to_all": lambda x, axes=axes: jax.lax.all_to_all(x, axes, 0, 0, tiled=True),
        "permute": lambda x, axes=axes, ring=ring: jax.lax.ppermute(x, axes[0], ring)}.items():
      if (kind, name) != ("permute", "both"):
        yield f"{kind}_{name}", jax.jit(jax.shard_map(
            body, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)), (x,)


def _layers(mesh):
  """Returns (program, its inputs): an update of scanned layers, weights over fsdp, rows over both axes."""
  place = lambda *spec: NamedSharding(mesh, P(*spec))
  rows = place(("data", "fsdp"), None)
  w = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32, sharding=place(None, "fsdp", None))
  x = jax.ShapeDtypeStruct((ROWS * mesh.size, WIDTH), jnp.bfloat16, sharding=rows)

  def loss(w, x):
    def layer(x, w):
      return jax.lax.with_sharding_constraint(jnp.tanh(x @ w.astype(jnp.bfloat16)), rows), None
    return jnp.mean(jax.lax.scan(layer, x, w)[0].astype(jnp.float32) ** 2)

  def step(w, x):
    value, gradient = jax.value_and_grad(loss)(w, x)
    return value, w - 0.1 * gradient

  return jax.jit(step, out_shardings=(place(), w.sharding), donate_argnums=0), (w, x)


def _shortened(text: str) -> str:
  """Drops what the plan does not need: sources, the compiler's settings."""
  text = re.sub(r", metadata=\{[^}]*\}", "", text)
  text = re.sub(r", backend_config=\{.*", "", text)  # trip counts are read from the conditions
  heads = (" ", "%", "}", "ENTRY", "HloModule")
  return "\n".join(line for line in text.splitlines() if line.startswith(heads))


def _write() -> None:
  for name, fsdp in TOPOLOGIES.items():
    mesh = mesh_lib.make_mesh(-1, fsdp, topology.devices(topology.parse(name)))
    step, inputs = _layers(mesh)
    programs = [*_explicit(mesh), ("layers", step, inputs)]
    path(name).write_text("".join(
        f"=== {key}\n{_shortened(program.lower(*inputs).compile().as_text())}\n"
        for key, program, inputs in programs))


if __name__ == "__main__":
  _write()
