"""`evals fid`: Fréchet distance, inception score and kernel distance of folders of images."""

import argparse
from collections.abc import Iterator, Sequence
import hashlib
from typing import Any
import zipfile
import zlib

from etils import epath

from unilip_jax.common import command_options, paths
from unilip_jax.evals.image_folder import ImageFolder, print_result

_DESCRIPTION = """Compares a folder of images with another folder, or with stored statistics.

Any model's images: the folder's own files, in order of their names; subfolders are left out. Needs imported
Inception-v3 weights of FID (docs/evals.md). Never compare numbers of two protocols.
"""
_PROTOCOLS = ("torch-fidelity", "unilip", "pytorch-fid", "clean-fid", "legacy_pytorch", "legacy_tensorflow")
_METHODS = ("symmetric", "eigenvalues", "sqrtm", "sqrtm-diagonal")
_CACHE = "~/.cache/unilip_jax/fid"


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command."""
  out = argparse.ArgumentParser(
      prog="unilip evals fid", description=_DESCRIPTION, formatter_class=command_options.Help)
  add = out.add_argument
  add("--images", required=True, help="folder of the images to score")
  add("--reference", required=True,
      help="folder of images, or .npz with mu and sigma as pytorch-fid stores them")
  add("--weights", default="weights/inception", help="imported Inception-v3 of FID")
  add("--protocol", default=_PROTOCOLS[0], choices=_PROTOCOLS,
      help="whose preprocessing (evals/inception.py)")
  add("--method", default=_METHODS[0], choices=_METHODS,
      help="of the trace of the root: symmetric is stable, the others are other programs'")
  add("--kernel_subsets", type=command_options.integer(1), metavar="N",
      help="also the kernel distance, over N subsets; default: no kernel distance")
  add("--kernel_size", type=command_options.integer(2), default=1000, help="of a subset")
  add("--kernel_seed", type=command_options.integer(0), default=2020,
      help="of the subsets; 2020 is torch-fidelity's, clean-fid has none")
  add("--batch_size", type=command_options.integer(1), default=32, help="images at a time")
  add("--cache", default=_CACHE, help="folder of references' statistics; \"\" stores none")
  add("--json", action="store_true", help="print one JSON object")
  return out


def main(arguments: Sequence[str]) -> None:
  """Runs the command; prints the scores as text or as one JSON object. Errors as of `compare`."""
  options = parser().parse_args(arguments)
  print_result(_compare(options), as_json=options.json)


def compare(arguments: Sequence[str]) -> dict[str, Any]:
  """Computes what `evals fid` prints with these arguments.

  Raises:
    FileNotFoundError: for an absent folder or weights.
    ValueError: for unreadable images, all named, or statistics of another network.
  """
  return _compare(parser().parse_args(arguments))


def _compare(options: argparse.Namespace) -> dict[str, Any]:
  images = ImageFolder.open(options.images, "--images")
  reference = (paths.existing_file(options.reference, "--reference") if options.reference.endswith(".npz")
               else ImageFolder.open(options.reference, "--reference"))
  if not isinstance(reference, ImageFolder):
    _read_moments(reference)  # before images are read
  return _score(options, images, reference)


def _score(
    options: argparse.Namespace, images: ImageFolder, reference: ImageFolder | epath.Path
) -> dict[str, Any]:
  import numpy as np

  from unilip_jax.evals import feature_statistics, inception

  network = _Network(options)
  made, logits = network.features(images, is_real=False)
  moments, real, origin = _reference(options, network, reference)
  statistics = feature_statistics.Statistics.of(made)
  if moments[0].shape != statistics.total.shape:
    raise ValueError(f"{options.reference}: statistics of {len(moments[0])} features, the network has "
                     f"{len(statistics.total)}; give those of Inception-v3's last pooling")
  distance = feature_statistics.frechet_distance(*moments, *statistics.moments(), options.method)
  splits = inception.PROTOCOLS[options.protocol].splits
  score, deviation = feature_statistics.inception_score(feature_statistics.score_sums(
      logits, feature_statistics.score_split(len(logits), splits), splits))
  result = {"fid": distance, "inception_score": score, "inception_score_std": deviation}
  if options.kernel_subsets:
    if real is None:
      raise ValueError("--kernel_subsets needs the reference's images: give a folder")
    kernel, spread = feature_statistics.kernel_distance(
        made, real, subsets=options.kernel_subsets, size=options.kernel_size, seed=options.kernel_seed,
        program=inception.PROTOCOLS[options.protocol].subsets)
    result |= {"kernel_distance": kernel, "kernel_distance_std": spread, "kernel_subsets": (
        f"{options.kernel_subsets} of {min(options.kernel_size, len(made), len(real))}, seed "
        f"{options.kernel_seed}")}
  left_out = [f"{folder.path}/{n}" for folder in (images, reference) if isinstance(folder, ImageFolder)
              for n in folder.left_out]
  warnings = [] if statistics.count >= len(statistics.total) else [
      f"{statistics.count} images with {len(statistics.total)} features: the distance is too high"]
  return result | {
      "n": len(made), "protocol": options.protocol, "method": options.method, "splits": splits,
      "weights": network.fingerprint, "images": images.fingerprint(), "reference": origin,
      "reference_images": reference.fingerprint() if isinstance(reference, ImageFolder) else hashlib.sha256(
          reference.read_bytes()).hexdigest()[:16],
      "features": int(np.size(statistics.total)), "left_out": left_out, "warnings": warnings}


def _read_moments(file: epath.Path) -> tuple[Any, Any]:
  """Reads (mean float64[n], covariance [n, n]).

  Raises:
    ValueError: for a file that holds none, or is damaged.
  """
  import numpy as np

  try:
    with file.open("rb") as stream:
      stored = np.load(stream)
      arrays = dict(stored) if isinstance(stored, np.lib.npyio.NpzFile) else {}
  except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    raise ValueError(f"{file} is no .npz file of statistics, or damaged: {error}; delete it or write it "
                     "again") from error
  if not {"mu", "sigma"} <= set(arrays):
    raise ValueError(f"{file} has no mu and sigma; it holds {', '.join(arrays) or 'one array'}")
  mean, covariance = arrays["mu"], arrays["sigma"]
  numbers = all(a.dtype.kind == "f" and np.isfinite(a).all() for a in (mean, covariance))
  if not numbers or mean.ndim != 1 or covariance.shape != 2 * mean.shape:
    raise ValueError(f"{file}: mu {mean.dtype}{list(mean.shape)} and sigma {covariance.dtype}"
                     f"{list(covariance.shape)} are no finite mean and covariance")
  return mean.astype(np.float64), covariance


def _reference(options, network, reference) -> tuple[tuple[Any, Any], Any | None, str]:
  """Returns ((mean, covariance), features if they were computed, origin)."""
  import numpy as np

  from unilip_jax.common import atomic_io
  from unilip_jax.evals import feature_statistics

  if not isinstance(reference, ImageFolder):
    return (_read_moments(reference), None,
            f"{reference.name}: its protocol and weights are not recorded")
  key = f"{reference.fingerprint()}-{network.fingerprint}-{options.protocol}"
  folder = paths.path(options.cache, "--cache") if options.cache else None
  file = folder and folder / f"{key}.npz"
  if file and file.exists() and not options.kernel_subsets:
    return _read_moments(file), None, key
  features, _ = network.features(reference, is_real=True)
  moments = feature_statistics.Statistics.of(features).moments()
  if folder:
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_io.open_file(file) as stream:
      np.savez(stream, mu=moments[0], sigma=moments[1])
  return moments, features, key


class _Network:
  """Inception-v3 on all devices of this machine."""

  def __init__(self, options: argparse.Namespace):
    import jax

    from unilip_jax.evals import inception
    from unilip_jax.sharding import mesh as mesh_lib
    from unilip_jax.weights import fingerprints, restore

    self._protocol = inception.PROTOCOLS[options.protocol]
    dims, abstract, stored = inception.open_weights(options.weights, "--weights")
    mesh = mesh_lib.make_mesh()
    origins, shapes = {inception.MODULE: stored}, {inception.MODULE: abstract}
    restore.check_shapes(origins, shapes, f"--weights={options.weights} does not fit the network")
    params = restore.read_modules(origins, shapes, mesh, 2**62)[inception.MODULE]
    extractor = inception.Extractor(dims, options.protocol, params, fingerprints.fingerprint(params), mesh)
    self.fingerprint = extractor.fingerprint
    self._batch = -(-options.batch_size // mesh.size) * mesh.size
    split = mesh_lib.batch_sharding(mesh)
    outputs = jax.jit(extractor.outputs)
    self._outputs = lambda x: jax.device_get(outputs(params, jax.device_put(x, split)))

  def features(self, folder: ImageFolder, *, is_real: bool) -> tuple[Any, Any]:
    """Returns float32[N, D] features and float32[N, classes] logits, in order of names."""
    import numpy as np

    results = []
    for x in self._batches(folder, is_real):
      padding = np.zeros((self._batch - len(x), *x.shape[1:]), np.float32)
      results.append([y[:len(x)] for y in self._outputs(np.concatenate([x, padding]))])
    features, logits = (np.concatenate(part) for part in zip(*results))
    return features, logits

  def _batches(self, folder: ImageFolder, is_real: bool) -> Iterator[Any]:
    """Yields prepared images; decodes the next batch while the devices compute one."""
    import numpy as np

    from unilip_jax.evals import inception

    table = inception.levels(self._protocol, is_real=is_real)

    def prepare(pixels: Any) -> Any:
      lowered = np.stack([table[pixels[..., c], c] for c in range(3)], -1)
      return inception.prepare(lowered[None], self._protocol)[0]

    yield from map(np.stack, folder.batches(self._batch, prepare))
