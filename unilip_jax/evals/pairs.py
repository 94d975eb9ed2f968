"""`evals pairs`: PSNR, SSIM, L1 and LPIPS between images of equal names in two folders."""

import argparse
from collections.abc import Callable, Sequence
import math
from typing import Any

from unilip_jax.common import command_options, errors
from unilip_jax.evals import image_folder

_DESCRIPTION = """Compares each image of a folder with the one of the same name in another folder.

For reconstructions of any model; the names of files count up to their suffix. Needs no weights; --lpips
adds LPIPS on each trunk that the folder holds. docs/evals.md defines the metrics.
"""


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command."""
  out = argparse.ArgumentParser(
      prog="unilip evals pairs", description=_DESCRIPTION,
      formatter_class=command_options.Help)
  out.add_argument("--images", required=True, help="folder of the images to score")
  out.add_argument("--reference", required=True, help="folder of the originals")
  out.add_argument("--lpips", default="",
                   help="imported weights of LPIPS, e.g. weights/perceptual; default: no LPIPS")
  out.add_argument("--json", action="store_true", help="print one JSON object")
  return out


def main(arguments: Sequence[str]) -> None:
  """Runs the command; prints the means as text or as one JSON object.

  Raises:
    FileNotFoundError: for an absent folder or weights.
    ValueError: for images that have no counterpart, another size or cannot be read, all named.
  """
  options = parser().parse_args(arguments)
  folders = [image_folder.ImageFolder.open(path, option) for path, option in (
      (options.images, "--images"), (options.reference, "--reference"))]
  _check_names(*folders)
  image_folder.print_result(_score(folders, options.lpips), as_json=options.json)


def _stem(name: str) -> str:
  return name.rpartition(".")[0]


def _check_names(images: image_folder.ImageFolder, reference: image_folder.ImageFolder) -> None:
  """Raises ValueError for names that one folder lacks or has twice."""
  problems = []
  for folder, other in ((images, reference), (reference, images)):
    stems = [_stem(name) for name in folder.names]
    there, first = {_stem(name) for name in other.names}, {}
    problems += [f"{folder.path}/{name}: no such image in {other.path}"
                 for name, stem in zip(folder.names, stems) if stem not in there]
    problems += [f"{folder.path}/{name}: another image has this name up to its suffix"
                 for name, stem in zip(folder.names, stems) if first.setdefault(stem, name) != name]
  if problems:
    raise ValueError(f"the folders hold no pairs:\n{errors.listed(problems)}")


def _score(folders: Sequence[image_folder.ImageFolder], weights: str) -> dict[str, Any]:
  import numpy as np

  metrics = _metrics(weights)
  sums: dict[str, list[float]] = {name: [] for name in metrics}
  wrong = []
  # Both folders sort alike only up to suffixes: the reference follows the order of the images.
  by_stem = {_stem(name): name for name in folders[1].names}
  images = folders[0]
  reference = image_folder.ImageFolder(
      folders[1].path, tuple(by_stem[_stem(name)] for name in images.names), folders[1].left_out)
  for name, (made,), (real,) in zip(images.names, images.batches(1), reference.batches(1), strict=True):
    if made.shape != real.shape:
      wrong.append(f"{name}: {made.shape[1]}×{made.shape[0]}, its original {real.shape[1]}×{real.shape[0]}")
      continue
    pair = [x[None].astype(np.float32) / np.float32(255) for x in (made, real)]
    for metric, compute in metrics.items():
      sums[metric].append(float(compute(*pair)[0]))
  if wrong:
    raise ValueError(f"{len(wrong)} images differ from their originals in size:\n{errors.listed(wrong)}")
  means: dict[str, Any] = {name: math.fsum(values) / len(values) for name, values in sums.items()}
  return means | {"n": len(images.names), "images": images.fingerprint(),
                  "reference_images": folders[1].fingerprint(),
                  "left_out": [f"{f.path}/{n}" for f in folders for n in f.left_out]}


def _metrics(weights: str) -> dict[str, Callable[..., Any]]:
  """{metric: compiled function of two float32[1, H, W, 3] in [0, 1]}."""
  import jax

  from unilip_jax.evals import image_metrics, lpips
  from unilip_jax.sharding import mesh as mesh_lib
  from unilip_jax.weights import restore

  metrics = {name: jax.jit(getattr(image_metrics, name))
             for name in ("psnr", "ssim", "ssim_official", "l1")}
  if not weights:
    return metrics
  origins = restore.find_modules([weights], list(lpips.MODULES))
  if not origins:
    raise FileNotFoundError(f"--lpips={weights} holds none of {', '.join(lpips.MODULES)} (docs/weights.md)")
  networks = {name: lpips.network(name, stored) for name, stored in origins.items()}
  shapes = lpips.shapes(networks)
  restore.check_shapes(origins, shapes, f"--lpips={weights} does not fit the network")
  params = restore.read_modules(origins, shapes, mesh_lib.make_mesh(devices=jax.devices()[:1]), 2**62)
  for name, network in networks.items():
    compiled = jax.jit(lambda params, a, b, network=network: network.apply({"params": params}, a, b))
    metrics[name] = lambda a, b, name=name, compiled=compiled: compiled(params[name], a, b)
  return metrics
