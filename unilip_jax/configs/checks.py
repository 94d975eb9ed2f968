"""Checks the values of a config before anything starts: ranges, choices, the form of rows and paths.

Every wrong field is named in one message, as it is written on the command line. Whether files exist, and
the names that plug-ins register, is checked in training/preflight.py. Imports no JAX.
"""

from collections.abc import Callable, Iterator, Mapping
import math
import re
from typing import Any

from unilip_jax.common import arguments, paths
from unilip_jax.configs import base

_Check = Callable[[str, Any], Any]
_MOST = 2**31 - 1  # counts and steps are int32 on devices
_LARGEST = (2 - 2.0**-23) * 2.0**127  # of float32
_SMALLEST = 2.0**-126  # above 0, of float32 on devices
SINKS = ("wandb", "trackio")  # of log.sinks (training/sinks.py)
OWN_LAYOUTS = ("images", "list", "parquet", "arrow", "tar")  # of data.own (data/own/layouts.py)


def _integer(least: int, most: int | None = _MOST) -> _Check:
  return lambda name, value: arguments.integer(name, value, least, most)


def _number(least: float, most: float = math.inf, *, open_below: bool = False) -> _Check:
  def check(name: str, value: Any) -> None:
    arguments.number(name, value, least, most, open_below=open_below)
    if abs(value) > _LARGEST or 0 < abs(value) < _SMALLEST:
      raise ValueError(f"{name}={value!r}: float32 holds 0 and numbers from {_SMALLEST:.2g} to "
                       f"{_LARGEST:.2g}; choose one of them")
  return check


def _interval(least: float, most: float) -> _Check:
  return lambda name, value: arguments.interval(name, value, least, most)


def _numbers(count: int, least: float = -math.inf, most: float = math.inf) -> _Check:
  def check(name: str, value: Any) -> None:
    if isinstance(value, str) or not isinstance(value, (tuple, list)) or len(value) != count:
      raise ValueError(f"{name}={value!r}: give {count} numbers")
    for number in value:
      _number(least, most)(name, number)
  return check


def _choice(*choices: str) -> _Check:
  return lambda name, value: arguments.choice(name, value, choices)


def _below_one(name: str, value: Any) -> None:
  if arguments.number(name, value, 0.0, 1.0) > 1 - 2.0**-25:  # which float32 rounds to 1
    raise ValueError(f"{name}={value!r}: choose a number below 1")


def _path(name: str, value: Any) -> None:
  """A path, or "" for none."""
  if not isinstance(value, str):
    raise ValueError(f"{name}={value!r}: give a path in quotes")
  if value:
    paths.expand(value, name)


def _paths(name: str, value: Any) -> None:
  """Comma-separated paths and names such as shapes:gen3, or "" for none."""
  if not isinstance(value, str):
    raise ValueError(f"{name}={value!r}: give paths in quotes, separated by commas")
  for part in paths.split(value):
    paths.expand(part, name)


def _rows(*names: str) -> _Check:
  """Rows of these values and, optionally, {option: value}."""
  form = f"({', '.join(names)}) or ({', '.join(names)}, {{option: value}})"

  def check(name: str, rows: Any) -> None:
    if isinstance(rows, str) or not isinstance(rows, (tuple, list)):
      raise ValueError(f"{name}={rows!r}: give rows {form}: \"--config.…=(('kind','path',…),)\"")
    for row in rows:  # kinds of plug-ins have their own meaning of a path
      if isinstance(row, str) or not isinstance(row, (tuple, list)):
        raise ValueError(f"{name}: {row!r} is no row {form}; a single row needs a comma behind it: ((…),)")
      *values, options = row if len(row) == len(names) + 1 else (*row, {})
      if len(values) != len(names) or not isinstance(options, Mapping):
        raise ValueError(f"{name}: {tuple(row)!r} is not {form}")
      for what, value in zip(names, values):
        if what == "weight":
          arguments.number(f"{name}: the weight of {tuple(row)!r}", value, 0.0)
        elif not isinstance(value, str) or not value.strip():
          raise ValueError(f"{name}: {what} of {tuple(row)!r} is {value!r}; give a text")
        elif what == "name" and not re.fullmatch(r"[\w.-]+", value):
          raise ValueError(f"{name}: the name {value!r} becomes part of metrics and files; use letters, "
                           "digits, _, - and .")
      _options(f"{name}: {tuple(row)!r}", options)
      if values[names.index("kind")] in base.PATH_KINDS:
        _paths(f"{name}: {tuple(row)!r}", values[names.index("path")])
    if rows and "weight" in names and not any(row[names.index("weight")] for row in rows):
      raise ValueError(f"{name}: all weights are 0; give at least one row a weight above 0")
  return check


def _buckets(name: str, rows: Any) -> None:
  """Rows (height, width)."""
  if isinstance(rows, str) or not isinstance(rows, (tuple, list)):
    raise ValueError(f'{name}={rows!r}: give rows (height, width): "--config.…=((448,448),(336,588))"')
  for row in rows:
    if not isinstance(row, (tuple, list)) or len(row) != 2:
      raise ValueError(f"{name}: {row!r} is no row (height, width); a single row needs a comma behind it")
    for value in row:
      arguments.integer(f"{name}: a side of {tuple(row)!r}", value, 1, 2**14)
  if len({tuple(row) for row in rows}) < len(rows):
    raise ValueError(f"{name}={rows!r}: a size is there twice")


def _text(name: str, value: Any) -> None:
  if not isinstance(value, str):
    raise ValueError(f"{name}={value!r}: give a text in quotes")
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise ValueError(f"{name}={value!r}: give text that UTF-8 can hold ({error.reason})") from error


def _word(name: str, value: Any) -> None:
  _text(name, value)
  if not value.strip():
    raise ValueError(f"{name}={value!r}: give a name")


def _texts(name: str, value: Any) -> None:
  if isinstance(value, str) or not isinstance(value, (tuple, list)):
    raise ValueError(f"{name}={value!r}: give texts: \"--config.…=('bias','norm')\"")
  for text in value:
    _word(name, text)


def _compiler_options(name: str, value: Any) -> None:
  _text(name, value)
  if wrong := [pair for pair in value.split(",") if pair.strip() and not pair.partition("=")[1]]:
    raise ValueError(f"{name}={value!r}: {wrong[0]!r} is not name=value; separate them by commas")


def _sinks(name: str, value: Any) -> None:
  if isinstance(value, str) or not isinstance(value, (tuple, list)):
    raise ValueError(f"{name}={value!r}: give names: \"--config.log.sinks=('wandb',)\"")
  for sink in value:
    _choice(*SINKS)(name, sink)


def _own_layout(name: str, value: Any) -> None:
  if value != "":
    _choice(*OWN_LAYOUTS)(name, value)


def _sample_set(name: str, value: Any) -> None:
  if value:
    _rows("example", "kind", "path")(name, (value,))


def _reward_terms(name: str, rows: Any) -> None:
  """Rows (name, weight) or (name, weight, {option: value})."""
  if not isinstance(rows, (tuple, list)):
    raise ValueError(f"{name}={rows!r}: give rows (name, weight) or (name, weight, {{option: value}})")
  for row in rows:
    if not (isinstance(row, (tuple, list)) and 2 <= len(row) <= 3 and isinstance(row[0], str) and row[0]
            and (len(row) == 2 or isinstance(row[2], Mapping))):
      raise ValueError(f"{name}: {row!r} is not (name, weight) or (name, weight, {{option: value}})")
    arguments.number(f"{name}: the weight of {tuple(row)!r}", row[1], -math.inf)
    _options(f"{name}: {tuple(row)!r}", row[2] if len(row) == 3 else {})
  if rows and not any(row[1] for row in rows):
    raise ValueError(f"{name}: all weights are 0; give at least one reward another weight")


def _options(where: str, options: Mapping[Any, Any]) -> None:
  if odd := [name for name in options if not isinstance(name, str)]:
    raise ValueError(f"{where}: the option {odd[0]!r} is no name; write {{'option': value}}")


def _profile_steps(name: str, value: Any) -> None:
  if not isinstance(value, (tuple, list)) or (value and not (
      len(value) == 2 and all(type(v) is int for v in value) and 1 <= value[0] <= value[1] <= _MOST)):
    raise ValueError(f'{name}={value!r}: give the first and the last step, e.g. "(5, 7)"')


_COLUMNS: Mapping[str, _Check] = {  # of param_rules (optim/param_table.py)
    "train": arguments.flag, "decay": arguments.flag, "lr": _number(0),
    "dtype": _choice("float32", "bfloat16")}


def _param_rules(name: str, value: Any) -> None:
  _patterns(name, value)
  for pattern, columns in value:
    for column, check_value in _COLUMNS.items():
      if column in columns:
        check_value(f"{name}: {column} of {pattern!r}", columns[column])


def _patterns(name: str, value: Any) -> None:
  """Rows (pattern, {column: value})."""
  if isinstance(value, str) or not isinstance(value, (tuple, list)):
    raise ValueError(f"{name}={value!r}: give rows (pattern, {{column: value}})")
  for row in value:
    if not (isinstance(row, (tuple, list)) and len(row) == 2 and isinstance(row[1], Mapping)):
      raise ValueError(f"{name}: {row!r} is not (pattern, {{column: value}})")
    try:
      re.compile(row[0]).search("")  # a pattern of bytes compiles
    except (re.error, TypeError, OverflowError, RecursionError) as error:
      raise ValueError(f"{name}: the pattern {row[0]!r} is no regular expression: {error}") from error


def _lora_targets(name: str, rows: Any) -> None:
  _patterns(name, rows)
  for pattern, columns in rows:
    if unknown := sorted(map(str, set(columns) - {"rank", "alpha"})):
      raise ValueError(f"{name}: row {pattern!r} has {unknown}; known are rank and alpha")
    if "rank" in columns:
      _RANK(f"{name}: rank of {pattern!r}", columns["rank"])
    if "alpha" in columns:
      arguments.number(f"{name}: alpha of {pattern!r}", columns["alpha"], 0.0, open_below=True)


_REMAT = _choice("none", "dots", "full")
_DTYPE = _choice("bfloat16", "float32")
_PRECISION = _choice(
    "float32", "default", "bfloat16", "tensorfloat32", "bfloat16_3x", "high", "highest")
_RANK = _integer(1, 2**14)  # layers are not wider
_BATCH = _integer(1, 2**20)
_TOKENS = _integer(1, 2**17)
_CHECKS: Mapping[str, _Check] = {
    "stage": _word, "task": _word, "autoencoder": _choice("unilip", "dcae"), "size": _choice(*base.SIZES),
    "seed": arguments.seed, "stop_on_nonfinite": arguments.flag, "compiler_options": _compiler_options,
    "total_steps": _integer(0), "batch_size": _BATCH, "grad_accum_steps": _BATCH,
    "image_size": _integer(1, 2**14), "dtype": _DTYPE,
    "float32_matmul_precision": _PRECISION, "loss.float32_matmul_precision": _PRECISION,
    "remat.vit": _REMAT, "remat.decoder": _REMAT, "remat.llm": _REMAT, "remat.dit": _REMAT,
    "root": _path, "init_from": _paths, "resume": _path, "param_rules": _param_rules,
    "lora.targets": _lora_targets, "lora.rank": _RANK, "lora.alpha": _number(0, open_below=True),
    "lora.rslora": arguments.flag, "lora.dropout": _below_one, "lora.init": _choice("kaiming", "gaussian"),
    "lora.base_dtype": _choice("bfloat16", "int8", "float32"),
    "optimizer.lr": _number(0), "optimizer.end_lr": _number(0), "optimizer.warmup_steps": _integer(0),
    "optimizer.b1": _below_one, "optimizer.b2": _below_one, "optimizer.eps": _number(0, open_below=True),
    "optimizer.no_decay": _texts, "optimizer.weight_decay": _number(0),
    "optimizer.clip_norm": _number(0), "ema_decay": _below_one,
    "loss.l2": _number(0), "loss.perceptual": _number(0), "loss.lpips": _number(0),
    "loss.convnext": _number(0), "loss.distill": _number(0), "loss.perceptual_weights": _path,
    "loss.perceptual_dtype": _DTYPE, "loss.teacher_dtype": _DTYPE,
    "loss.reduction": _choice("token", "sample", "square"),
    "gan.weight": _number(0), "gan.start_step": _integer(0), "gan.lecam": _number(0),
    "gan.lecam_decay": _below_one, "gan.lr": _number(0), "gan.end_lr": _number(0),
    "gan.warmup_steps": _integer(0), "gan.horizon": _integer(0), "gan.weight_decay": _number(0),
    "generate.condition": _choice("both", "queries", "hidden"),
    "generate.target": _choice("unilip", "dcae"), "generate.latent_scale": _number(0),
    "generate.timestep_shift": _number(0, open_below=True),
    "generate.noise_samples_per_image": _integer(1, 1024),
    "reward.terms": _reward_terms, "reward.workers": _integer(1, 1024),
    "reward.timeout": _number(0, 1e6, open_below=True), "reward.on_failure": _choice("stop", "drop_group"),
    "reward.group_size": _integer(2, 4096), "reward.updates": _integer(1, 4096),
    "reward.steps": _integer(2, 1000),
    "reward.solver": _choice("dpm", "euler"), "reward.sub_batches": _BATCH,
    "reward.global_std": arguments.flag,
    "reward.adv_clip": _number(0, open_below=True), "reward.adv_mode": _choice(
        "all", "positive_only", "negative_only", "one_only", "binary"),
    "reward.old_decay": _integer(0, 2), "reward.kl": _number(0), "reward.beta": _number(0, open_below=True),
    "reward.times": _integer(1, 1000), "reward.window": _integer(1, 1000),
    "reward.clip_range": _number(0, open_below=True),
    "reward.noise_level": _number(0, open_below=True), "reward.step_kind": _choice("flow", "cps", "dance"),
    "text.tokenizer": _path, "text.t2i_length": _TOKENS, "text.edit_length": _TOKENS,
    "text.chat_length": _TOKENS, "text.system": _text, "text.prompt_dropout": _number(0, 1),
    "data.own": _path, "data.own_prompt": _text, "data.own_caption": _text, "data.own_layout": _own_layout,
    "data.train": _rows("kind", "path", "weight"), "data.edit": _rows("kind", "path", "weight"),
    "data.edit_share": _number(0, 1), "data.part_multiple": _BATCH,
    "data.example": _choice("reconstruct", "t2i", "prompt", "understand"), "data.flip": arguments.flag,
    "data.buckets": _buckets, "data.crop": _choice("random", "center", "stretch"),
    "data.decode": _choice("exact", "scaled"),
    "data.max_bad_fraction": _number(0, 1),
    "data.max_pixels": _integer(1, None), "data.workers": _integer(0, 1024),
    "data.prefetch": _integer(0, 1024),
    "data.render_dir": _path, "data.latents_dir": _path, "data.index_dir": _path,
    "eval.every_steps": _integer(0), "eval.batch_size": _BATCH, "eval.at_start": arguments.flag,
    "eval.max_examples": _integer(0),
    "eval.sets": _rows("name", "protocol", "kind", "path"), "eval.seed": arguments.seed, "eval.llm": _paths,
    "eval.inception": _path, "eval.ssim_data_range_2": arguments.flag,
    "eval.inception_protocol": _choice("torch-fidelity", "unilip", "pytorch-fid", "clean-fid",
                                       "legacy_pytorch", "legacy_tensorflow"),
    "mesh.data": _integer(-1), "mesh.fsdp": _integer(-1), "mesh.slices": _integer(0),
    "mesh.frozen_sharding": _choice("fsdp", "replicated"), "mesh.min_shard_size": _integer(0, None),
    "mesh.gather": _choice("layer", "step"),
    "mesh.max_replicated": _integer(0, None), "log_every_steps": _integer(1),
    "log.sinks": _sinks, "log.project": _text, "log.name": _text, "log.offline": arguments.flag,
    "checkpoint_every_steps": _integer(0), "keep_checkpoints": _integer(1), "keep_every_steps": _integer(0),
    "sample_every_steps": _integer(0), "sample_count": _integer(1, 4096), "sample_set": _sample_set,
    "sample.steps": _integer(1, 1000), "sample.guidance": _number(0),
    "sample.solver": _choice("dpm", "euler"), "sample.guidance_interval": _interval(0, 1),
    "sample.guidance_rescale": _number(0, 1),
    "distill.method": _choice("mean_flow", "consistency"), "distill.guidance": _number(0),
    "distill.time_means": _numbers(2), "distill.time_stds": _numbers(2, 0),
    "distill.zero_shares": _numbers(2, 0, 1), "distill.time_smoothing": _number(0),
    "distill.power": _number(0), "distill.floor": _number(0, open_below=True),
    "distill.tangent_warmup": _integer(0), "profile_steps": _profile_steps, "compilation_cache": _path}


def check(config: Any) -> None:
  """Checks a config.

  Raises:
    ValueError: naming each wrong field with its value and the choices, and each field that is missing.
  """
  wrong = list(_wrong(config))
  if wrong:
    raise ValueError("\n".join(wrong))


def _wrong(config: Any) -> Iterator[str]:
  for field, check_value in _CHECKS.items():
    try:
      value = base.field(config, field)
    except (KeyError, TypeError):
      yield f"the config has no field {field}; start your own file from configs/base.py"
      continue
    if field == "sample_set" and not config.sample_every_steps:
      continue  # not read
    try:
      check_value(f"--config.{field}", value)
    except ValueError as error:
      yield str(error)
  own = config.get("data", {})
  for option in ("own_prompt", "own_caption", "own_layout"):
    if own.get(option) and not own.get("own"):
      yield f"--config.data.{option}={own[option]!r} is of data.own: set --config.data.own=FOLDER too"
  if own.get("buckets") and own.get("example") not in ("t2i", "reconstruct"):
    yield (f"--config.data.buckets={own.buckets!r} is of reconstruction, generation and editing; this "
           f"stage reads {own.get('example')!r}: leave it empty")
  if own.get("buckets") and own.get("latents_dir"):
    yield "--config.data.latents_dir holds latents of one size: leave it empty with --config.data.buckets"
  for axis in ("data", "fsdp"):
    if config.get("mesh", {}).get(axis) == 0:
      yield f"--config.mesh.{axis}=0: choose a number of devices, or -1"
