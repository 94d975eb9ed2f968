"""What the damage campaign damages: every kind of file that is read, with its public reader.

A subject builds a folder once, and reads it into {name: value}. Names without a checksum in their format
(`free`) may change with the file: nobody can notice. All else must be the same, an error, or less with a
message.
"""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from safetensors import numpy as safetensors

from tests import micro, saved
from tests.data.prepare import small_datasets
from unilip_jax import tasks
from unilip_jax.common import tree
from unilip_jax.convert import io as io_lib
from unilip_jax.data import decode, pipeline, sources, text
from unilip_jax.data.prepare import __main__ as prepare_cli
from unilip_jax.data.prepare import json_lists, manifest
from unilip_jax.optim import state as state_lib
from unilip_jax.report import runs as report_runs
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.training import checkpoint, initial_state, target_latents
from unilip_jax.weights import sources as weight_sources

Result = Mapping[str, Any]
Note = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Subject:
  """A kind of file.

  Attributes:
    build: writes the folder.
    read: (folder, note) -> {name: value}; `note` receives what a run would log, e.g. of a broken record.
    damage: which files are damaged, as a test of the relative path.
    free: whether a name's value has no checksum.
    older: (folder, note) -> another right result, if the log tells that it was taken.
  """

  build: Callable[[pathlib.Path], None]
  read: Callable[[pathlib.Path, Note], Result]
  damage: Callable[[str], bool] = lambda name: True
  free: Callable[[str], bool] = lambda name: False
  older: Callable[[pathlib.Path, Note], Result] | None = None


def _arrays(values: Any) -> Result:
  """Summarises arrays: dtype, shape and a hash of the bytes."""
  return {path: _array(np.asarray(x)) for path, x in tree.flatten(values).items()}


def _array(x: np.ndarray) -> str:
  return f"{x.dtype}{list(x.shape)} {hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()[:16]}"


# ---- checkpoints and weights


def _state(step: int) -> state_lib.TrainState:
  rng = np.random.default_rng(step)
  arrays = lambda: {name: {"kernel": jnp.asarray(rng.standard_normal((40, 30)), jnp.float32)}
                    for name in ("mlp1", "latent_head")}
  return state_lib.TrainState(
      step=jnp.int32(step), seed=jnp.uint32(0), params=arrays(), ema=arrays(),
      opt_state=(arrays(), arrays()), gan={}, frozen={"vision_tower": {"kernel": jnp.arange(77.0)}})


def _build_run(root: pathlib.Path) -> None:
  manager = checkpoint.Manager(str(root), keep=None)
  manager.save_frozen(_state(2).frozen, {"format": 2, "modules": {}})
  for step in (2, 4):
    manager.save(step, _state(step), {"step": step, "position": 8 * step})
  manager.close()


def _read_run(root: pathlib.Path, note: Note) -> Result:
  config = ml_collections.ConfigDict({
      "resume": "", "init_from": "", "seed": 0,
      "mesh": {"frozen_sharding": "fsdp", "min_shard_size": 2**16, "max_replicated": 0}})
  task = types.SimpleNamespace(state_shapes=lambda: jax.eval_shape(lambda: _state(4)))
  mesh = jax.make_mesh((1, 1), ("data", "fsdp"), devices=jax.devices()[:1])
  manager = checkpoint.Manager(str(root), keep=None)
  try:
    if manager.latest_step() is None:
      note("starts from scratch")  # logged by the loop: "starting at step 0 from ..."
      return {"step": 0}
    start = initial_state.restore_or_init(task, config, manager, mesh)
  finally:
    manager.close()
  state = jax.device_get(start.state)
  values = {"params": state.params, "ema": state.ema, "frozen": state.frozen, "step": state.step,
            "moments": dict(enumerate(state.opt_state))}
  return _arrays(jax.tree.map(np.asarray, {str(k): v for k, v in values.items()})
                 | {"moments": {str(k): v for k, v in values["moments"].items()}}
                 ) | {"position": start.position, "start": start.step}


def _of_step_2(root: pathlib.Path, read: Callable[[pathlib.Path, Note], Result]) -> Result:
  """Reads a run whose newest checkpoint is gone."""
  shutil.rmtree(root / "checkpoints/4")
  return read(root, lambda text: None)


def _read_weights(root: pathlib.Path, note: Note) -> Result:
  return _arrays(weight_sources.open_weights(str(root)).load())


def _build_import(root: pathlib.Path) -> None:
  rng = np.random.default_rng(0)
  modules = {name: {"layer": {"kernel": rng.standard_normal((40, 30)).astype(np.float32),
                              "bias": np.arange(9, dtype=np.float32)}} for name in ("mlp1", "dit")}
  saved.save(root, modules, {"mlp1": {"width": 8}, "dit": {"depth": 1}}, {"source": ["a"]})


def _read_import(root: pathlib.Path, note: Note) -> Result:
  stored = weight_sources.open_weights(str(root))
  return _arrays(stored.load()) | {f"model/{k}": json.dumps(v, sort_keys=True)
                                   for k, v in stored.model.items()}


def _tensors() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return {f"layer.{i}.weight": rng.standard_normal((6, 7)).astype(np.float32) for i in range(4)}


def _build_safetensors(root: pathlib.Path) -> None:
  root.mkdir()
  names = sorted(_tensors())
  files = {f"model-0000{i + 1}-of-00002.safetensors": names[2 * i:2 * i + 2] for i in range(2)}
  for file, part in files.items():
    (root / file).write_bytes(safetensors.save({name: _tensors()[name] for name in part}))
  (root / "model.safetensors.index.json").write_text(json.dumps(
      {"metadata": {"total_size": 4 * 42 * 4},
       "weight_map": {name: file for file, part in files.items() for name in part}}))
  (root / "config.json").write_text(json.dumps({"model_type": "unilip", "hidden_size": 7}))


def _read_safetensors(root: pathlib.Path, note: Note) -> Result:
  tensors = io_lib.open_folder(root)
  return {name: _array(tensors[name]) for name in tensors} | {
      "config": json.dumps(io_lib.read_config(root), sort_keys=True)}


def _build_pth(root: pathlib.Path) -> None:
  import torch

  root.mkdir()
  torch.save({name: torch.from_numpy(x) for name, x in _tensors().items()}, root / "unilip.pth")


def _read_pth(root: pathlib.Path, note: Note) -> Result:
  tensors = io_lib.open_file(root / "unilip.pth")
  return {name: _array(tensors[name]) for name in tensors}


# ---- a run's small files


def _build_workdir(root: pathlib.Path) -> None:
  (root / "samples").mkdir(parents=True)
  (root / "config.json").write_text(json.dumps({"stage": "stage1", "seed": 0, "data": {"crop": "random"}}))
  (root / "metrics.jsonl").write_text("".join(json.dumps(
      {"step": i, "time": 1.0 * i, "train/loss": 1 / i, "eval/images/psnr": 20.0 + i}) + "\n"
      for i in range(1, 9)))
  (root / "results.json").write_text(json.dumps(
      {"metrics": {"images/psnr": 28.0}, "step": 8, "config": {"stage": "stage1"}}))
  (root / "samples/step_00000008.png").write_bytes(small_datasets.image(0))


def _read_workdir(root: pathlib.Path, note: Note) -> Result:
  run = report_runs.read(str(root), "run", "red")
  values = {"config": run.config, "rows": run.rows, "results": run.results, "scores": run.scores(),
            "grids": [(step, hashlib.sha256(png).hexdigest()) for step, png in run.grids]}
  return {name: json.dumps(value, sort_keys=True) for name, value in values.items()}


_PLAN = pathlib.Path(__file__).resolve().parents[1] / "launch/plan.json"
_PLAN_FLAGS = _PLAN.parents[2] / "launch/plan_flags.py"


def _build_plan(root: pathlib.Path) -> None:
  small_datasets.write(root / "plan.json", _PLAN.read_bytes())


def _read_plan(root: pathlib.Path, note: Note) -> Result:
  done = subprocess.run([sys.executable, "-S", str(_PLAN_FLAGS), str(root / "plan.json")],
                        capture_output=True, text=True, check=False)
  if "Traceback" in done.stderr:
    raise RuntimeError(done.stderr[-300:])
  if done.returncode:
    raise ValueError(done.stderr)
  return dict(line.partition("=")[::2] for line in done.stdout.splitlines())


# ---- data


def _members(first: int, count: int) -> dict[str, bytes]:
  return {name: data for i in range(first, first + count) for name, data in (
      (f"{i:04d}.png", small_datasets.image(i)), (f"{i:04d}.txt", f"caption {i}".encode()))}


def _build_tars(root: pathlib.Path) -> None:
  for t in range(2):
    small_datasets.tar(root / f"data/{t:05d}.tar", _members(5 * t, 5))
  _read_tars(root, lambda text: None)  # writes the index


def _records(kind: str, path: str, root: pathlib.Path, note: Note) -> Result:
  """Opens a source and reads every record as training does; returns {"image <hash>": caption}."""
  source = sources.open_source(sources.SourceSpec(kind, path), example="t2i",
                               folders=sources.Folders(str(root / "rendered"), str(root / "index")))
  values: dict[str, Any] = {}
  for i in range(len(source)):
    try:
      record = source[i]
      image = _array(np.asarray(decode.decode(record.parts["image"], 10**6)))
      values[f"image {image}"] = record.parts["text"].decode()
    except (OSError, decode.BadRecordError, UnicodeDecodeError) as error:
      note(f"broken record: {error}")  # the stream replaces it, counts it and logs it
  return values


def _read_tars(root: pathlib.Path, note: Note) -> Result:
  return _records("tar", f"{root}/data/00000.tar,{root}/data/00001.tar", root, note)


def _build_folder(root: pathlib.Path) -> None:
  for name, data in _members(0, 8).items():
    small_datasets.write(root / "data" / name, data)


def _read_folder(root: pathlib.Path, note: Note) -> Result:
  return _records("folder", str(root / "data"), root, note)


def _build_lines(root: pathlib.Path) -> None:
  for i in range(6):
    small_datasets.write(root / f"images/{i}.png", small_datasets.image(i))
  small_datasets.write(root / "mine.jsonl", "".join(json.dumps(
      {"key": f"{i:04d}", "image": f"images/{i}.png", "text": f"caption {i}"}) + "\n" for i in range(6)))


def _read_lines(root: pathlib.Path, note: Note) -> Result:
  _prepare(root, root / "out")
  _note_skipped(root / "out", note)
  return _records("tar", str(root / "out/*.tar"), root, note)


def _prepare(root: pathlib.Path, out: pathlib.Path) -> None:
  prepare_cli.main(["json_lines", f"--source={root / 'mine.jsonl'}", "--kind=t2i", f"--out={out}",
                    "--workers=1", "--quiet", "--records_per_shard=4"])


def _note_skipped(out: pathlib.Path, note: Note) -> None:
  if skipped := manifest.load(out)["skipped"]:
    note(f"skipped: {skipped}")  # the command prints the reasons


def _build_prepared(root: pathlib.Path) -> None:
  _build_lines(root)
  _prepare(root, root / "out")


def _read_prepared(root: pathlib.Path, note: Note) -> Result:
  for line in manifest.check(root / "out"):
    note(line)
  return _records("tar", str(root / "out/*.tar"), root, note)


def _build_list(root: pathlib.Path) -> None:
  small_datasets.write(root / "list.json", json.dumps([{"id": i, "prompt": f"p {i}"} for i in range(20)]))


def _read_list(root: pathlib.Path, note: Note) -> Result:
  return {str(i): json.dumps(value) for i, value in enumerate(json_lists.array(root / "list.json", []))}


# ---- latents and tokenizer


def _latents_config(root: pathlib.Path) -> ml_collections.ConfigDict:
  return micro.text_config(
      "gen2", batch_size=8, data__edit=(), data__edit_share=0.0, eval__batch_size=4,
      data__train=(("tar", str(root / "data/*.tar"), 1.0),), data__latents_dir=str(root / "latents"),
      data__index_dir=str(root / "index"), data__max_bad_fraction=1.0, text__prompt_dropout=0.0)


def _build_latents(root: pathlib.Path) -> None:
  _build_tars(root)
  config = _latents_config(root)
  mesh = mesh_lib.config_mesh(config)
  task = tasks.make(config)
  params = jax.jit(task.init_modules)(jax.random.key(0))
  target_latents.ensure(config, task, params, mesh, str(root))


def _read_latents(root: pathlib.Path, note: Note) -> Result:
  stream = pipeline.train_stream(_latents_config(root), start_position=0, process_index=0, process_count=1,
                                 workdir=str(root))
  try:
    batches = [tree.flatten(next(stream)) for _ in range(2)]
  finally:
    stream.close()
  if stream.bad.count:
    note(f"{stream.bad.count} broken records")
  return {f"tokens {_array(tokens)}": _array(latents) for batch in batches
          for tokens, latents in zip(batch["t2i/tokens"], batch["t2i/latents"])}


def _build_tokenizer(root: pathlib.Path) -> None:
  root.mkdir()
  (root / "tokenizer.json").write_bytes(text.tokenizer_file("shapes").read_bytes())


def _read_tokenizer(root: pathlib.Path, note: Note) -> Result:
  made = text.Text(str(root / "tokenizer.json"))
  words = ("yellow", "cross", "and", "a", "red", "square", "how", "many", "objects", "there", "?")
  return {word: str(made.encode(" " + word)) for word in words} | {"size": made.size}


_any = lambda name: True
_captions = lambda name: name.startswith("image ")
SUBJECTS: Mapping[str, Subject] = {
    "checkpoint": Subject(_build_run, _read_run, damage=lambda name: name != "model.json",
                          older=lambda root, note: _of_step_2(root, _read_run)),
    "run's weights": Subject(_build_run, _read_weights,
                             older=lambda root, note: _of_step_2(root, _read_weights)),
    "imported folder": Subject(_build_import, _read_import, free=lambda name: name.startswith("model/")),
    "safetensors": Subject(_build_safetensors, _read_safetensors, free=_any),
    "pth": Subject(_build_pth, _read_pth),
    "workdir": Subject(_build_workdir, _read_workdir, free=_any),
    "plan": Subject(_build_plan, _read_plan, free=_any),
    "tars": Subject(_build_tars, _read_tars, free=_captions),
    "tar index": Subject(_build_tars, _read_tars, damage=lambda name: name.startswith("index/")),
    "folder": Subject(_build_folder, _read_folder, free=_captions),
    "json lines": Subject(_build_lines, _read_lines, free=_captions),
    "prepared": Subject(_build_prepared, _read_prepared, damage=lambda name: name.startswith("out/")),
    "json list": Subject(_build_list, _read_list, free=_any),
    "latents": Subject(_build_latents, _read_latents, damage=lambda name: name.startswith("latents/")),
    "tokenizer": Subject(_build_tokenizer, _read_tokenizer, free=_any)}
