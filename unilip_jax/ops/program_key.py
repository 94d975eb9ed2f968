"""Identifies a compiled program without tracing it: what a file of ops/program_store.py is named by.

A program follows from the code that is traced, the values that this code reads, the arguments' shapes, the
settings of JAX and XLA, and the device. The key is a hash of all of them: any change gives another key, and
never an old program. The code is that of this package and of every module outside of Python's own folders
(a plug-in, a script); installed packages count by their versions.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import enum
import functools
import hashlib
import importlib.util
import os
import pathlib
import platform
import sys
import sysconfig
import types
from typing import Any

import jax
import numpy as np

from unilip_jax.common import registry, start_time

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
_LIBRARY = sysconfig.get_path("stdlib")
_KNOWN = tuple(f"{folder}/" for folder in (_PACKAGE, _LIBRARY, os.path.realpath(_LIBRARY)))
_ENVIRONMENT = ("XLA_", "LIBTPU_", "NVIDIA_", "TF_", "ROCM_")  # prefixes of variables that compilers read
_IGNORED = ("cache", "log", "traceback", "profiler", "dump", "coordinat", "distributed")  # in names
# Modules of JAX that tracing imports define more, which a start that loads its programs does not see.
_SETTINGS = tuple(sorted(name for name in jax.config.values if hasattr(jax.config, name) and not any(
    part in name for part in _IGNORED)))


class UnknownValueError(ValueError):
  """A value whose influence on the program cannot be written down; such a program is not stored."""


def digest(*parts: Any) -> str:
  """Returns a hash, as hexadecimal digits, of values that `describe` takes."""
  return hashlib.sha256(describe(parts).encode()).hexdigest()


def describe(value: Any) -> str:
  """Writes a value down such that different values give different texts, in every process alike.

  Args:
    value: plain values, containers, arrays of NumPy, dtypes, meshes, classes, dataclasses (Flax modules are
      some), and functions with the values that they close over.

  Raises:
    UnknownValueError: for any other value, and for code of an interactive session, which has no file.
  """
  match value:
    case None | bool() | int() | float() | complex() | str() | bytes() | np.dtype():
      return repr(value)
    case enum.Enum():
      return f"{_name(type(value))}.{value.name}"
    case np.generic() | np.ndarray():
      array = np.ascontiguousarray(value)
      return f"array({array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()})"
    case type() if "<locals>" not in value.__qualname__:  # else its methods may close over more values
      return _name(value)
    case jax.sharding.Mesh():
      ids = [device.id for device in value.devices.flat]
      return f"mesh({value.axis_names}{value.devices.shape}{value.axis_types}{ids})"
    case tuple() | list():
      return f"{_name(type(value))}({','.join(map(describe, value))})"
    case Mapping():
      return f"map({','.join(sorted(f'{describe(k)}:{describe(v)}' for k, v in value.items()))})"
    case set() | frozenset():
      return f"set({','.join(sorted(map(describe, value)))})"
    case types.FunctionType():
      cells = [cell.cell_contents for cell in value.__closure__ or ()]
      places = list(value.__code__.co_positions())  # two lambdas of a line differ in columns alone
      rest = [cells, value.__defaults__, value.__kwdefaults__, places, value.__code__.co_code]
      return f"{_name(value)}({','.join(map(describe, rest))})"
  if dataclasses.is_dataclass(value):
    # `parent` is where a Flax module was made: a module of its own has none.
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)
              if field.name != "parent"}
    return f"{describe(type(value))}({describe(fields)})"
  raise UnknownValueError(f"{value!r:.80} of {_name(type(value))}")


def _name(value: Any) -> str:
  module = value.__module__
  if module == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
    raise UnknownValueError(f"{value.__qualname__} of an interactive session")
  return f"{module}.{value.__qualname__}"


def signature(arguments: Any) -> list[Any]:
  """Describes arguments: their tree, and shape, dtype and devices of each array."""
  leaves, tree = jax.tree.flatten(arguments)
  return [str(tree), [(tuple(x.shape), str(x.dtype), bool(getattr(x, "weak_type", False)),
                       *placement(getattr(x, "sharding", None))) for x in leaves]]


@functools.lru_cache(maxsize=256)
def placement(sharding: jax.sharding.Sharding | None) -> tuple[str, Sequence[int]]:
  """Describes where an array lies, with the ids of its devices; those of a mesh in their order."""
  if sharding is None:
    return "", ()
  if isinstance(sharding, jax.sharding.NamedSharding):
    return repr(sharding), tuple(device.id for device in sharding.mesh.devices.flat)
  return repr(sharding), tuple(sorted(device.id for device in sharding.device_set))


def surroundings() -> list[Any]:
  """Describes code, versions, settings and devices.

  Raises:
    UnknownValueError: if the package was edited since this process started, which may run either code.
  """
  if edited := _edited():
    raise UnknownValueError(f"the code of {edited}, which was written after this process started")
  return [_code(), _versions(), settings(), _devices()]


def compiler() -> list[Any]:
  """Describes what makes a program of its lowered text: JAX's version, settings and devices."""
  return [jax.__version__, jax.lib.__version__, settings(), _devices()]


def settings() -> list[Any]:
  """Describes JAX's settings, also those of a `with` block, and the environment of compilers."""
  values = {name: str(getattr(jax.config, name)) for name in _SETTINGS}
  return [values, {k: v for k, v in os.environ.items() if k.startswith(_ENVIRONMENT)}]


def _code() -> list[Any]:
  """Returns hashes of the package's files, of plug-ins', and of modules outside of installed packages."""
  roots = [importlib.util.find_spec(name) for name in registry.packages() if name != _PACKAGE.name]
  plugins = [pathlib.Path(path) for spec in roots
             for path in (spec and spec.submodule_search_locations) or ()]
  loaded = (getattr(module, "__file__", None) or "" for module in list(sys.modules.values()))
  others = {file for file in loaded if file.endswith(".py") and not _is_known(file)}
  others.update(str(file) for folder in plugins for file in folder.rglob("*.py"))
  return [_package(), {file: hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()
                       for file in others if os.path.isfile(file)}]


def _edited() -> str:
  """Returns a file of the package that was written since this process began to read them, or ""."""
  return next((str(file) for file in _PACKAGE.rglob("*.py")
               if file.stat().st_mtime >= start_time.SECONDS), "")


def _is_known(file: str) -> bool:
  """Tells whether a file is of this package, of Python, or of a package that its version identifies."""
  return file.startswith(_KNOWN) or _is_installed(file)


def _is_installed(file: str) -> bool:
  return "/site-packages/" in file or "/dist-packages/" in file


@functools.cache
def _package() -> str:
  """Returns a hash of the files of this package as they are at the first call."""
  found = hashlib.sha256()
  for file in sorted(_PACKAGE.rglob("*.py")):
    content = file.read_bytes()
    found.update(f"{file.relative_to(_PACKAGE)} {len(content)}\n".encode() + content)
  return found.hexdigest()


@functools.cache
def _versions() -> list[str]:
  """Returns the versions of Python and of installed packages: the names of folders that describe them."""
  return [sys.version, *sorted(
      name for folder in sys.path if _is_installed(f"{folder}/") and os.path.isdir(folder)
      for name in os.listdir(folder) if name.endswith((".dist-info", ".egg-info")))]


@functools.cache
def _devices() -> list[Any]:
  """Describes devices and driver; on a CPU also its instructions: a program may use any of them."""
  devices = jax.devices()
  about = [[(d.id, d.platform, d.device_kind) for d in devices], devices[0].client.platform_version,
           jax.process_count(), platform.machine()]
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  return [*about, cores, _instructions()]


def _instructions() -> str:
  """Returns the processor's model and instruction sets; where the system does not list them, its name."""
  file = pathlib.Path("/proc/cpuinfo")
  if not file.exists():
    return f"{platform.processor()} {platform.node()}"
  wanted = ("model name", "vendor_id", "cpu family", "model", "stepping", "flags", "Features")
  first = file.read_text().partition("\n\n")[0]
  return "\n".join(line for line in first.splitlines() if line.partition("\t")[0].strip(" :") in wanted)
