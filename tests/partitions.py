"""Where each large array lives at 1b and 3b, as text: tests/partitions/<size>.txt.

  python -m tests.partitions      # writes both files again, from shapes alone; look at the difference

Every network of every stage, float32, on meshes of 1 × 16 and 4 × 64 (data × fsdp). Equal blocks of a
stage share a line.
"""

import math
import pathlib

import jax

from unilip_jax import tasks
from unilip_jax.configs import base, gen1, stage2
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.sharding import report as sharding_report

FOLDER = pathlib.Path(__file__).parent / "partitions"
SIZES = ("1b", "3b")
_MESHES = ((1, 16), (4, 64))
_MB = 2**20


def modules(size: str) -> dict:
  """Shapes of every network that some stage uses, by module name."""
  merged: dict = {}
  for stage in (gen1, stage2):
    task = tasks.make(stage.get_config(size))
    merged |= task.module_shapes
  del merged["teacher"]  # of the shapes of vision_tower and mlp1
  return merged


def text(size: str) -> str:
  """The file's content."""
  shapes, min_size = modules(size), base.get_config(size).mesh.min_shard_size
  tables = [sharding_report.rows(
      shapes, jax.sharding.AbstractMesh(mesh, mesh_lib.DATA_AXES), min_size) for mesh in _MESHES]
  cells = [("path", "shape", *(f"{d}×{f}: spec, MB per device" for d, f in _MESHES), "why")]
  small = 0
  for row in zip(*tables):
    first = row[0]
    if all(r["why_replicated"] == "small" for r in row):
      small += first["bytes_per_device"]
      continue
    rank = len(first["shape"])
    cells.append((
        sharding_report.group(first["path"]), "×".join(map(str, first["shape"])),
        *(f"{sharding_report.spec_text(r['spec'], rank)}  {r['bytes_per_device'] / _MB:.3f}"
          for r in row),
        "; ".join(dict.fromkeys(w for r in row if (w := r["why_replicated"] or r["note"])))))
  cells = list(dict.fromkeys(cells))  # equal blocks of a stage make one line
  widths = [max(len(c[i]) for c in cells) for i in range(len(cells[0]) - 1)]
  lines = ["  ".join([*(f"{c:<{w}}" for c, w in zip(row, widths)), row[-1]]).rstrip() for row in cells]
  total = sum(math.prod(s.shape) for s in jax.tree.leaves(shapes)) * 4 / _MB
  lines.append(f"small arrays, replicated on every device: {small / _MB:.1f} MB of {total:.0f}")
  for (data, fsdp), table in zip(_MESHES, tables):
    lines.append(f"all parameters on {data}×{fsdp}: "
                 f"{sum(r['bytes_per_device'] for r in table) / _MB:.1f} MB per device")
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  for name in SIZES:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.txt").write_text(text(name))
