"""Compiled programs on disk: a later start neither traces, nor lowers, nor compiles them.

JAX's own compilation cache finds a program by what tracing and lowering give, which takes as long as all
the rest of a start. Here a program has two names: the hash of all that it follows from (program_key.py),
and the hash of its lowered text. Code that changed without changing the program costs a trace, not a
compilation. The files lie in `programs` below JAX's folder.

Loading a program executes it, and unpickles its trees. A file is therefore loaded only if it carries the
signature (HMAC) of this user's secret, a file that nobody else can read: what was copied, downloaded or
changed is not signed. A file that cannot be used is named in the log and written again.

Nothing is stored or loaded by several processes, which might differ in what they find and then wait for
each other; in a bucket; while planning; for programs that call back into Python; and with
$UNILIP_PROGRAM_STORE=0, or without a compilation cache.
"""

from collections.abc import Callable
import contextlib
import hashlib
import hmac
import logging as std_logging
import os
import pathlib
import pickle
import re
import threading
import time
from typing import Any
import zlib

from absl import logging
import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from unilip_jax.common import atomic_io, paths
from unilip_jax.ops import backend, program_key

SWITCH = "UNILIP_PROGRAM_STORE"  # "0" turns the store off, and leaves JAX's cache on
SECRET = "~/.cache/unilip_jax/secret"
_FORMAT = b"unilip program 1\n"
_SIGNATURE = 32  # bytes at the start of a file
_DAYS = 30  # since its last use, after which a file is removed
_CUSTOM_CALL = re.compile(r"custom_call @([\w.$]+)")
_UNUSABLE = ("lapack", "callback")  # custom calls that another process has not registered
_BROKEN = (jax.errors.JaxRuntimeError, AttributeError, ImportError, ValueError, TypeError, EOFError,
           pickle.UnpicklingError, zlib.error)
_COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's event
_compiling = threading.Lock()
# JAX tells of every reset of its cache, at the level of what users should read.
std_logging.getLogger("jax._src.compilation_cache").addFilter(
    lambda record: not str(record.msg).startswith("Resetting cache"))


def folder() -> pathlib.Path | None:
  """Returns the folder of programs; None if none are stored in this process."""
  cache = jax.config.jax_compilation_cache_dir
  if (not cache or not jax.config.jax_enable_compilation_cache or paths.is_remote(cache)
      or os.environ.get(SWITCH) == "0" or backend.planned() or jax.process_count() > 1
      or jax.config.jax_disable_jit or jax.config.jax_debug_nans):
    return None
  return pathlib.Path(cache) / "programs"


def program(
    name: str, identity: Any, arguments: Any, lower: Callable[[], Any],
    compile_lowered: Callable[[Any], Any], *, options: Any = None) -> Any:
  """Returns a compiled program: loaded if it is stored, otherwise compiled, and stored.

  Args:
    name: for the log.
    identity: all that the traced code reads besides its arguments, see program_key.describe.
    arguments: (args, kwargs) as the program is called, arrays or ShapeDtypeStructs.
    lower: traces and lowers.
    compile_lowered: compiles what `lower` returned.
    options: of the compiler.
  """
  signature = program_key.signature(arguments)
  by_key = _file("key", name, identity, options, signature)
  if by_key is None:
    return compile_lowered(lower())
  tree = jax.tree.structure(arguments)
  if (text := _read(by_key)) and (loaded := _load(by_key.with_name(text.decode()), tree, name)):
    return loaded
  lowered = lower()
  content = lowered.as_text()
  if any(part in call for call in _CUSTOM_CALL.findall(content) for part in _UNUSABLE):
    logging.info("%s is not stored on disk: it calls functions of this process", name)
    return compile_lowered(lowered)
  text = program_key.digest(content, str(lowered.in_tree), str(lowered.out_tree), options, signature,
                            program_key.compiler())
  file = by_key.with_name(f"{text}.program")
  found = _load(file, tree, name)
  if found is None:
    found, is_new = _compile(lowered, compile_lowered)
    if not (is_new and _store(file, found, name)):
      return found
  _write(by_key, file.name.encode())
  return found


def value(name: str, identity: Any, make: Callable[[], Any]) -> Any:
  """Returns a number, or a tree of shapes, that tracing gives: the stored one, or that of `make`.

  Args:
    name: of what it is.
    identity: all that it follows from besides the code, see program_key.describe.
    make: computes it.
  """
  file = _file("value", name, identity)
  if file and (content := _read(file)):
    return pickle.loads(content)
  made = make()
  if file:
    _write(file, pickle.dumps(made))
  return made


def _file(kind: str, name: str, *identity: Any) -> pathlib.Path | None:
  """Returns the file of what follows from `identity` and the code; None if nothing is stored."""
  where = folder()
  if where is None or _secret() is None:
    return None
  try:
    return where / f"{program_key.digest(name, identity, program_key.surroundings())}.{kind}"
  except program_key.UnknownValueError as error:
    logging.info("%s is not stored on disk: %s", name, error)
    return None


def _compile(lowered: Any, compile_lowered: Callable[[Any], Any]) -> tuple[Any, bool]:
  """Compiles without JAX's own cache: what comes from there cannot be serialized again (jaxlib 0.10).

  Returns:
    (the compiled program, whether the compiler made it now: JAX may have it in memory, from its cache).
  """
  with _compiling:
    made: list[str] = []
    listen = lambda event, *_, **__: made.append(event) if event == _COMPILED else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it reads the setting once
    try:
      return compile_lowered(lowered), bool(made)
    finally:
      jax.monitoring.unregister_event_duration_listener(listen)
      jax.config.update("jax_enable_compilation_cache", True)
      compilation_cache.reset_cache()


def _store(file: pathlib.Path, compiled: Any, name: str) -> bool:
  """Writes a program; returns whether that was possible."""
  try:
    content = pickle.dumps((*serialize_executable.serialize(compiled),
                            [d.id for d in compiled.runtime_executable().local_devices()]))
  except (ValueError, NotImplementedError, TypeError, jax.errors.JaxRuntimeError) as error:
    logging.info("%s is not stored on disk: %s", name, error)
    return False
  return _write(file, zlib.compress(content, 1))


def _load(file: pathlib.Path, tree: Any, name: str) -> Any:
  """Loads a program; None if there is none that can be used."""
  begin, content = time.monotonic(), _read(file)
  if content is None:
    return None
  try:
    executable, in_tree, out_tree, ids = pickle.loads(zlib.decompress(content))
    if in_tree != tree:
      raise ValueError("it takes other arguments")
    devices = {device.id: device for device in jax.local_devices()}
    loaded = serialize_executable.deserialize_and_load(
        executable, in_tree, out_tree, execution_devices=[devices[i] for i in ids])
  except _BROKEN as error:
    logging.warning("%s cannot be loaded and is made again: %s", file, error)
    return None
  logging.info("%s: loaded from %s in %.1f s", name, file.parent, time.monotonic() - begin)
  return loaded


# ---- files


def _read(file: pathlib.Path) -> bytes | None:
  """Returns a file's content; None if it is absent, damaged, or not signed by this user for this name."""
  try:
    stored = file.read_bytes()
  except FileNotFoundError:
    return None
  except OSError as error:
    logging.warning("%s cannot be read: %s", file, error)
    return None
  signature, content = stored[:_SIGNATURE], stored[_SIGNATURE:]
  secret = _secret()
  if secret is None or not hmac.compare_digest(signature, _sign(secret, file.name, content)):
    logging.warning("%s is damaged, or was written by somebody else: it is not used, and made again", file)
    return None
  with contextlib.suppress(OSError):  # a folder that may only be read
    os.utime(file)  # its last use
  return content


def _write(file: pathlib.Path, content: bytes) -> bool:
  """Writes a signed file atomically, and removes files that were not used for long."""
  secret = _secret()
  if secret is None:
    return False
  try:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    atomic_io.write(file, _sign(secret, file.name, content) + content)
    for old in file.parent.iterdir():
      with contextlib.suppress(FileNotFoundError):  # another process removes the same file
        if old.stat().st_mtime < time.time() - _DAYS * 86400:
          old.unlink()
  except OSError as error:
    logging.warning("%s cannot be written: the next start compiles again. %s", file, error)
    return False
  return True


def _sign(secret: bytes, name: str, content: bytes) -> bytes:
  return hmac.digest(secret, _FORMAT + name.encode() + b"\n" + content, hashlib.sha256)


def _secret() -> bytes | None:
  """Returns this user's secret, which the first call makes; None if its file belongs to somebody else."""
  try:
    file = pathlib.Path(paths.expand(SECRET))
    if not file.exists():
      file.parent.mkdir(parents=True, exist_ok=True)
      own = file.with_name(f"{file.name}.{os.getpid()}")
      with open(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        stream.write(os.urandom(32))
      with contextlib.suppress(FileExistsError):  # another process was first
        os.link(own, file)
      own.unlink()
    about, secret = file.stat(), file.read_bytes()
  except (OSError, paths.PathError) as error:
    logging.log_first_n(logging.WARNING, "no programs are stored on disk: %s", 1, error)
    return None
  if about.st_uid != os.geteuid() or about.st_mode & 0o077 or len(secret) != 32:
    logging.log_first_n(
        logging.WARNING, "no programs are stored on disk: %s must be 32 bytes of yours, which nobody else "
        "can read; remove it, and it is made again", 1, file)
    return None
  return secret
