"""Pretrained weights that are included in the package: those of each tiny stage, trained on Shapes.

  shapes/weights/<name>.safetensors  the modules that the stage trained, bfloat16
  shapes/weights/<name>.json         their dimensions; `over`, the names whose modules complete them;
                                     `origin`: config, seed, machine, seconds and scores;
                                     `file`: [bytes, CRC32C] of the other file

Wherever a path of weights is expected, "shapes:<name>" opens them. experiments/publish.py writes them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
import ml_dtypes
import numpy as np
from safetensors import numpy as safetensors

from unilip_jax.common import atomic_io, json_file, tree
from unilip_jax.weights import checksums
from unilip_jax.weights import stored as stored_lib

PREFIX = "shapes:"
FORMAT = 1
_REMEDY = "install the package again"
FOLDER = epath.Path(__file__).parent / "weights"


def names() -> list[str]:
  """Names of the included weights, in alphabetical order."""
  return sorted(p.stem for p in FOLDER.glob("*.json"))


def open_weights(name: str) -> stored_lib.Stored:
  """Opens "shapes:<name>" for weights/sources.py.

  Raises:
    FileNotFoundError: for an unknown name, listing those that there are.
  """
  modules, model = load(name)
  return stored_lib.Stored(PREFIX + name, model, arrays=tree.flatten(modules))


def load(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads the weights of a stage, completed by those of the stages in its entry `over`.

  Args:
    name: of `names()`, without the prefix.

  Returns:
    ({module: nested dict of float32 arrays}, {"format", "modules": dimensions, "origin", …}).

  Raises:
    FileNotFoundError: for an unknown name, listing those that there are.
  """
  about = read_about(name)
  modules: dict[str, Any] = {}
  dims: dict[str, Any] = {}
  for under in about["over"]:
    below, model = load(under)
    modules |= below
    dims |= model["modules"]
  return modules | read_modules(name), about | {"modules": dims | about["modules"]}


def read_modules(name: str) -> dict[str, Any]:
  """Reads <name>.safetensors alone: {module: nested dict of float32 arrays}.

  Raises:
    checksums.DamagedError: if the file is damaged.
  """
  file = FOLDER / f"{name}.safetensors"
  found = checksums.measure(file) if file.exists() else "absent"
  expected = read_about(name).get("file", found)
  if found != expected or found == "absent":
    raise checksums.damaged([f"  {file}: [bytes, CRC32C] {found}, not {expected}"], _REMEDY)
  flat = safetensors.load_file(str(file))
  return tree.unflatten({path: x.astype(np.float32) for path, x in flat.items()})


def read_about(name: str) -> dict[str, Any]:
  """Reads <name>.json.

  Raises:
    FileNotFoundError: for an unknown name, listing those that there are.
  """
  file = FOLDER / f"{name}.json"
  if not file.exists():
    raise FileNotFoundError(
        f"no weights {PREFIX}{name} are included in unilip_jax; there are: "
        f"{', '.join(PREFIX + n for n in names()) or 'none'}")
  return json_file.read(file, remedy=_REMEDY, kinds={"modules": dict, "over": list})


def save(
    name: str, modules: Mapping[str, Any], dims: Mapping[str, Any], over: Sequence[str],
    extra: Mapping[str, Any]
) -> int:
  """Writes <name>.safetensors and <name>.json.

  Args:
    name: of the stage.
    modules: {module: nested dict of arrays}; stored as bfloat16.
    dims: {module: JSON-ready dimensions}; modules without dimensions may be absent.
    over: names of the weights that complete it; a module in several is that of the last.
    extra: more entries of the JSON file.

  Returns:
    Bytes of the weights.
  """
  FOLDER.mkdir(parents=True, exist_ok=True)
  flat = {path: np.ascontiguousarray(np.asarray(x, np.float32).astype(ml_dtypes.bfloat16))
          for path, x in sorted(tree.flatten(modules).items())}
  content = safetensors.save(flat)
  atomic_io.write(FOLDER / f"{name}.safetensors", content)
  json_file.write(FOLDER / f"{name}.json", {
      "format": FORMAT, "modules": dict(dims), "over": list(over), **extra,
      "file": checksums.measure(FOLDER / f"{name}.safetensors")}, indent=1)
  return len(content)
