"""The weights that ship with the package: what each tiny stage left behind in the Shapes world.

  shapes/weights/<name>.safetensors  the modules that the stage trained, bfloat16
  shapes/weights/<name>.json         their dimensions; `over`, the names whose modules complete them;
                                     `origin`: config, seed, machine, seconds and scores

"shapes:<name>" stands for them wherever a folder of weights is asked for. experiments/publish.py writes
them.
"""

from collections.abc import Mapping, Sequence
import json
from typing import Any

from etils import epath
import ml_dtypes
import numpy as np
from safetensors import numpy as safetensors

from unilip_jax.common import atomic_io, tree
from unilip_jax.weights import stored as stored_lib

PREFIX = "shapes:"
FORMAT = 1
FOLDER = epath.Path(__file__).parent / "weights"


def names() -> list[str]:
  """What ships, in alphabetical order."""
  return sorted(p.stem for p in FOLDER.glob("*.json"))


def open_weights(name: str) -> stored_lib.Stored:
  """`load` as weights/sources.py hands them out; errors as of `load`."""
  modules, model = load(name)
  return stored_lib.Stored(PREFIX + name, model, arrays=tree.flatten(modules))


def refuse_old_prefix(name: str) -> stored_lib.Stored:
  """Names the new prefix of weights that were called "blocks:<name>".

  Raises:
    ValueError: always.
  """
  raise ValueError(f"shapes:{name} is called {PREFIX}{name} now")


def load(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a stage's weights, and beneath them those of the stages that it rests on.

  Args:
    name: of `names()`, without the prefix.

  Returns:
    ({module: nested dict of float32 arrays}, {"format", "modules": dimensions, "origin", …}).

  Raises:
    FileNotFoundError: for an unknown name, with those that there are.
  """
  about = read_about(name)
  modules: dict[str, Any] = {}
  dims: dict[str, Any] = {}
  for under in about["over"]:
    found, model = load(under)
    modules |= found
    dims |= model["modules"]
  return modules | read_modules(name), about | {"modules": dims | about["modules"]}


def read_modules(name: str) -> dict[str, Any]:
  """{module: nested dict of float32 arrays} of <name>.safetensors alone, without what completes it."""
  flat = safetensors.load_file(str(FOLDER / f"{name}.safetensors"))
  return tree.unflatten({path: x.astype(np.float32) for path, x in flat.items()})


def read_about(name: str) -> dict[str, Any]:
  """<name>.json.

  Raises:
    FileNotFoundError: for an unknown name, with those that there are.
  """
  file = FOLDER / f"{name}.json"
  if not file.exists():
    raise FileNotFoundError(
        f"no weights {PREFIX}{name} ship with unilip_jax; there are: "
        f"{', '.join(PREFIX + n for n in names()) or 'none'}")
  return json.loads(file.read_text())


def save(
    name: str, modules: Mapping[str, Any], dims: Mapping[str, Any], over: Sequence[str],
    extra: Mapping[str, Any]
) -> int:
  """Writes <name>.safetensors and <name>.json.

  Args:
    name: of the stage.
    modules: {module: nested dict of arrays}; stored as bfloat16.
    dims: {module: JSON-ready dimensions}; modules without any may be absent.
    over: names of what completes it, later ones win.
    extra: more entries of the JSON file.

  Returns:
    Bytes of the weights.
  """
  FOLDER.mkdir(parents=True, exist_ok=True)
  flat = {path: np.ascontiguousarray(np.asarray(x, np.float32).astype(ml_dtypes.bfloat16))
          for path, x in sorted(tree.flatten(modules).items())}
  content = safetensors.save(flat)
  atomic_io.write(FOLDER / f"{name}.safetensors", content)
  (FOLDER / f"{name}.json").write_text(json.dumps(
      {"format": FORMAT, "modules": dict(dims), "over": list(over), **extra}, indent=1) + "\n")
  return len(content)
