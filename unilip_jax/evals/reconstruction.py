"""Scores the reconstruction of a set of images: PSNR, SSIM, L1, LPIPS and rFID, exact over the set.

Protocols (reference: UniLIP section 4.1 and its evaluation code):

  224, 448   shorter edge resized to that size, centre-cropped, encoded, decoded, resized to it
  native     the same at the training size
  pad256     256 × 256 pixels, reflect-padded to a multiple of one token's side (280), encoded,
             decoded, resized with aligned corners to 280, un-padded

Reconstructions are clamped and rounded to 8 bits before they are compared, as in the official code. Every
example counts exactly once: the padding of the last batch is masked. Sums stay on the devices and are read
once, at the end.
"""

from collections.abc import Mapping
import json
import math
from typing import Any

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from unilip_jax.data import pipeline
from unilip_jax.evals import base, image_metrics, rfid
from unilip_jax.ops import image as image_ops
from unilip_jax.sharding import activations
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.tasks import base as tasks_base

PER_EXAMPLE_FOLDER = "per_example"
_IN_FLIGHT = 2  # batches dispatched ahead of the devices: more would only fill memory with images


def reconstruct(model: Any, params: Any, unit: jax.Array, protocol: str) -> jax.Array:
  """Encodes and decodes images by a protocol.

  Args:
    model: models/tokenizer.py Tokenizer, or models/dcae.py Autoencoder.
    params: its weights; further modules are ignored.
    unit: float32[B, R, R, 3] in [0, 1].
    protocol: see the module's docstring.

  Returns:
    float32[B, R, R, 3] in [0, 1], of 8-bit values.
  """
  variables = {"params": params}
  if protocol == "pad256":
    padded, size = image_ops.pad_to_multiple(unit, model.side)
    image = model.apply(variables, padded, align_corners=True)["reconstruction"]
    image = image_ops.unpad(image, size)
  else:
    image = model.apply(variables, unit)["reconstruction"]
  return image_ops.round_to_8bit(image_ops.unit_from_signed(image))


def make_evaluator(row: base.Row, context: base.Context) -> base.Evaluator:
  """Makes the evaluator of one set.

  Args:
    row: its protocol is one of this file.
    context: its config's eval.batch_size (over all devices) and eval.ssim_data_range_2 are used. With
      `per_example` the values of each example are written to
      <workdir>/per_example/<name>-<process>-of-<processes>.jsonl, one JSON object with the id per line.

  Returns:
    An evaluator of psnr, ssim and l1, of lpips, lpips_alex and lpips_squeeze where their weights are
    available, and of rfid and inception_score if eval.inception names weights.

  Raises:
    ValueError: for a task that does not reconstruct images; from the evaluator: if the set is empty.
  """
  config, task, mesh, name = context.config, context.task, context.mesh, row.name
  if not isinstance(task, tasks_base.ReconstructsImages):
    raise ValueError(f"eval.sets {name}: stage {config.stage} reconstructs no images")
  lpips, per_example = context.lpips, context.per_example
  lpips_params = {metric: weights for metric, (_, weights) in lpips.items()}
  extractor = context.inception
  cache = extractor and rfid.Cache(context.workdir, name, {
      "weights": extractor.fingerprint, "protocol": extractor.protocol, "size": row.protocol,
      "image_size": config.image_size, "source": row.source, "max_examples": config.eval.max_examples})
  split, replicated = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)

  def score(params, lpips_params, pixels, mask):
    """Scores a batch: ({metric: masked sum}, {metric: float32[B]}, uint8[B, R, R, 3])."""
    unit = image_ops.unit_from_pixels(pixels)
    image = reconstruct(task.model, params, unit, row.protocol)
    values = {
        "psnr": image_metrics.psnr(image, unit),
        "ssim": image_metrics.ssim(image, unit),
        "l1": image_metrics.l1(image, unit)}
    if config.eval.ssim_data_range_2:
      values["ssim_data_range_2"] = image_metrics.ssim_torchmetrics(image, unit)
      values["ssim_official"] = image_metrics.ssim_official(image, unit)
    for metric, (network, _) in lpips.items():
      values[metric] = network.apply({"params": lpips_params[metric]}, image, unit)
    sums = {metric: jnp.sum(jnp.where(mask, v, 0.0)) for metric, v in values.items()}
    made = None if extractor is None else image_ops.pixels_from_unit(image)
    return sums | {"count": jnp.sum(mask.astype(jnp.int32))}, values, made

  score = jax.jit(activations.under(mesh, score), out_shardings=(replicated, split, split))

  def evaluate(params: Any) -> dict[str, float]:
    reference = cache and cache.load()
    scores = run(params, reference)
    if scores is None:
      logging.warning("eval.sets %s: the images differ from those of the stored reference statistics, "
                      "which are computed again", name)
      cache.discard()
      scores = run(params, None)
    return scores

  def run(params: Any, reference: rfid.Reference | None) -> dict[str, float] | None:
    """Scores the set once; None if `reference` is of other images."""
    batches = pipeline.eval_batches(
        config, name, row.protocol, row.source, process_index=jax.process_index(),
        process_count=jax.process_count(), workdir=context.workdir)
    sums, rows, pending = [], [], []
    measure = extractor and rfid.Measure(extractor)
    for batch in batches:
      pixels, mask = (
          jax.make_array_from_process_local_data(split, batch[k]) for k in ("image", "_mask"))
      batch_sums, values, made = score(params, lpips_params, pixels, mask)
      sums.append(batch_sums)
      if per_example:
        rows += _local_rows(batch["_id"], batch["_mask"], values)
      if measure:
        outputs = dict(zip(("features", "logits"), extractor(made, is_real=False)))
        if reference is None:
          outputs["reference"] = extractor(pixels, is_real=True)[0]
        pending.append((batch, outputs))
        if len(pending) > _IN_FLIGHT:
          _add(measure, *pending.pop(0))
      if len(sums) > _IN_FLIGHT:
        jax.block_until_ready(sums[-1 - _IN_FLIGHT])
    # The float32 sums of batches are added in float64: a large set loses no precision.
    sums = jax.device_get(sums)
    count = sum(int(s["count"]) for s in sums)
    if not count:
      raise ValueError(f"eval.sets {name}: {row.source} holds no example")
    for batch, outputs in pending:
      _add(measure, batch, outputs)
    distances = {}
    if measure:
      result = measure.finish(f"eval.sets {name}", reference)
      if result is None:
        return None
      distances, original = result
      if reference is None:
        cache.save(original)
    if per_example:
      _write_rows(context.workdir, name, rows)
    means = {metric: math.fsum(float(s[metric]) for s in sums) / count
             for metric in sums[0] if metric != "count"}
    return {f"{name}/{metric}": value for metric, value in (means | distances).items()} | {
        f"{name}/count": float(count)}

  return evaluate


def _local_rows(
    ids: np.ndarray, mask: np.ndarray, values: Mapping[str, jax.Array]
) -> list[dict[str, float]]:
  """Returns this process's examples of a batch without padding: [{"id", metric: value}]."""
  local = _local(values)
  return [
      {"id": int(i)} | {metric: float(v[row]) for metric, v in local.items()}
      for row, (i, real) in enumerate(zip(ids, mask)) if real]


def _local(values: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
  """Returns this process's part of arrays that are sharded over examples."""
  return {metric: mesh_lib.local_rows(array) for metric, array in values.items()}


def _add(measure: rfid.Measure, batch: Mapping[str, np.ndarray], outputs: Mapping[str, jax.Array]) -> None:
  measure.add(batch, _local(outputs))


def _write_rows(workdir: str, name: str, rows: list[dict[str, float]]) -> None:
  folder = epath.Path(workdir) / PER_EXAMPLE_FOLDER
  folder.mkdir(parents=True, exist_ok=True)
  file = folder / f"{name}-{jax.process_index()}-of-{jax.process_count()}.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
