"""Evaluators: each row of `eval.sets` selects one (docs/extend.md shows how to add one).

A row (name, protocol, kind, path[, options]) states how a set is scored and where its examples are. The
protocol is a name in the registry, group "evaluator": a function (Row, Context) -> Evaluator.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, Protocol

from absl import logging
import jax
import ml_collections

from unilip_jax.common import paths, registry
from unilip_jax.data import sources
from unilip_jax.evals import inception, lpips
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.tasks import base as tasks_base
from unilip_jax.weights import fingerprints, restore

_LPIPS = "lpips"  # on VGG16, as in the loss

for _protocol in ("224", "448", "pad256", "native"):
  registry.register("evaluator", _protocol, "unilip_jax.evals.reconstruction:make_evaluator")
for _protocol in ("flow_t2i", "flow_edit"):
  registry.register("evaluator", _protocol, "unilip_jax.evals.flow:make_evaluator")
registry.register("evaluator", "benchmark", "unilip_jax.scores.evaluator:make_evaluator")


class Evaluator(Protocol):
  """Scores a model on one set; compiles at its first call."""

  def __call__(self, params: Any) -> dict[str, float]:
    """Scores weights of `Task.model_params`.

    Returns:
      {"<name>/<metric>": mean, "<name>/<metric>/<group>": mean of a group, "<name>/count": examples}.
    """


@dataclasses.dataclass(frozen=True)
class Row:
  """Holds a row of `eval.sets`.

  Attributes:
    name: of the set; metrics are prefixed with it.
    protocol: a registered evaluator.
    source: of the examples.
  """

  name: str
  protocol: str
  source: sources.SourceSpec


@dataclasses.dataclass(frozen=True)
class Context:
  """Holds what evaluators use.

  Attributes:
    config: of the run.
    task: whose model is scored.
    mesh: the devices.
    workdir: of the run; holds data indices and per-example results.
    per_example: whether the values of each example are also written to the workdir.
  """

  config: ml_collections.ConfigDict
  task: tasks_base.Task
  mesh: jax.sharding.Mesh
  workdir: str
  per_example: bool = False

  @functools.cached_property
  def lpips(self) -> dict[str, tuple[Any, Any]]:
    """{metric: (network, weights on the mesh)} of LPIPS.

    They are those in the folder `loss.perceptual_weights`; {} if that is absent.

    Raises:
      FileNotFoundError: if the folder holds LPIPS on no trunk.
    """
    source = self.config.loss.perceptual_weights
    if not source or not paths.path(source, "loss.perceptual_weights").exists():
      logging.info("evaluation without LPIPS: loss.perceptual_weights %s",
                   f"{source} does not exist" if source else "is empty")
      return {}
    origins = restore.find_modules([source], list(lpips.MODULES))
    if not origins:
      raise FileNotFoundError(f"loss.perceptual_weights={source} lacks the module {_LPIPS}")
    networks = {name: self.task.lpips if name == _LPIPS else lpips.network(name, stored)
                for name, stored in origins.items()}
    params = read_params(origins, lpips.shapes(networks), self.config, self.mesh)
    return {name: (network, params[name]) for name, network in networks.items()}

  @functools.cached_property
  def inception(self) -> inception.Extractor | None:
    """Inception-v3 of `eval.inception` on the mesh; None if that is "".

    Raises:
      FileNotFoundError: if the folder is absent or lacks the network.
      ValueError: for an unknown eval.inception_protocol.
    """
    settings = self.config.eval
    if not settings.inception:
      return None
    inception.find_protocol(settings.inception_protocol, "eval.inception_protocol")
    dims, abstract, stored = inception.open_weights(settings.inception, "eval.inception")
    params = read_params({inception.MODULE: stored}, {inception.MODULE: abstract}, self.config,
                         self.mesh)[inception.MODULE]
    return inception.Extractor(
        dims, settings.inception_protocol, params, fingerprints.fingerprint(params), self.mesh)


def make_evaluators(
    config: ml_collections.ConfigDict, task: tasks_base.Task, mesh: jax.sharding.Mesh, workdir: str, *,
    per_example: bool = False
) -> dict[str, Evaluator]:
  """Builds the evaluators of `config.eval.sets`.

  Args:
    config, task, mesh, workdir, per_example: see Context.

  Returns:
    {name: evaluator}.

  Raises:
    ValueError: for repeated names, unknown protocols, a task that a protocol does not suit, or a batch
      size that does not divide over the devices.
  """
  context = Context(config, task, mesh, workdir, per_example)
  rows = check_rows(config, mesh)
  return {row.name: registry.find("evaluator", row.protocol)(row, context) for row in rows}


def check_rows(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> list[Row]:
  """Reads and checks the rows of `eval.sets`; opens nothing. Errors as of `make_evaluators`."""
  rows = [read_row(row) for row in config.eval.sets]
  names = [row.name for row in rows]
  if repeated := sorted({n for n in names if names.count(n) > 1}):
    raise ValueError(f"eval.sets: repeated names {repeated}; each set needs its own name")
  if rows:  # a stage without sets runs on any number of devices
    mesh_lib.check_batch_size(config.eval.batch_size, mesh, "eval.batch_size")
  for row in rows:
    try:
      registry.find("evaluator", row.protocol)
    except ValueError as error:
      raise ValueError(f"eval.sets, {row.name}: {error}") from error
  return rows


def read_row(row: Sequence[Any]) -> Row:
  """Reads a row of `eval.sets`.

  Raises:
    ValueError: for a row of another form.
  """
  (name, protocol), source = sources.named_row("eval.sets", row, ("name", "protocol"))
  return Row(name, protocol, source)


def read_params(
    origins: Mapping[str, Any], abstract: Mapping[str, Any], config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh, *, vocab: int | None = None) -> dict[str, Any]:
  """Checks the shapes of modules, then reads them onto the mesh.

  Args:
    origins: from restore.find_modules.
    abstract: {module: shapes} of these modules.
    config: uses size and mesh.min_shard_size.
    mesh: the devices.
    vocab: see restore.read_modules.

  Returns:
    {module: nested dict of float32 arrays}.

  Raises:
    ValueError: if a shape differs, with each path and both shapes.
  """
  names = ", ".join(dict.fromkeys(stored.origin for stored in origins.values()))
  restore.check_shapes(origins, abstract, f"{names} does not fit size {config.size!r}")
  return restore.read_modules(origins, abstract, mesh, config.mesh.min_shard_size, vocab=vocab)
