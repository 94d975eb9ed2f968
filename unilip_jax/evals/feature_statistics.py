"""Fréchet distance, inception score and kernel distance of features: NumPy, float64, additive over hosts.

Programs differ in the trace term of the Fréchet distance, Tr √(Σ1 Σ2) (METHODS). "symmetric" is the nuclear
norm of √Σ1 √Σ2, which equals it and needs no root of a matrix that is not symmetric: singular covariances
and fewer images than features are exact to rounding.
"""

import dataclasses

import numpy as np

METHODS = {
    "symmetric": "singular values of √Σ1 √Σ2 (default)",
    "eigenvalues": "eigenvalues of Σ1 Σ2, real parts of their roots: torch-fidelity since 0.4",
    "sqrtm": "scipy's matrix root, 1e-6 added to both diagonals if it is not finite: pytorch-fid, "
             "clean-fid, torch-fidelity 0.3",
    "sqrtm-diagonal": "scipy's matrix root, the root of the diagonals if it is not finite: UniLIP",
}
# Random subsets of the kernel distance: the order in which programs choose them.
SUBSETS = {
    "torch-fidelity": "of the first set, then of the second; refuses sets smaller than a subset",
    "clean-fid": "of the second set, then of the first; a subset is at most the smaller set"}
SEED = 2020  # of torch-fidelity's shuffle and subsets; clean-fid uses NumPy's unseeded generator
_MAX_IMAGINARY = 1e-3  # on the diagonal of a matrix root, as in pytorch-fid
_TINY = 1e-16  # UniLIP adds it inside logarithms; it changes no other value


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Holds sums over features, from which mean and covariance follow; sums of parts add up.

  Attributes:
    count: examples.
    total: float64[D], sum of features.
    outer: float64[D, D], sum of outer products.
  """

  count: int
  total: np.ndarray
  outer: np.ndarray

  @classmethod
  def of(cls, features: np.ndarray) -> "Statistics":
    """Sums float[N, D] in float64."""
    features = np.asarray(features, np.float64)
    return cls(len(features), features.sum(0), features.T @ features)

  def __add__(self, other: "Statistics") -> "Statistics":
    return Statistics(self.count + other.count, self.total + other.total, self.outer + other.outer)

  def moments(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean, float64[D], and the covariance with N − 1, float64[D, D].

    Raises:
      ValueError: for fewer than two examples.
    """
    if self.count < 2:
      raise ValueError(f"a covariance needs at least 2 images; there are {self.count}")
    mean = self.total / self.count
    covariance = (self.outer - np.outer(self.total, mean)) / (self.count - 1)
    return mean, (covariance + covariance.T) / 2


def frechet_distance(
    mean1: np.ndarray, covariance1: np.ndarray, mean2: np.ndarray, covariance2: np.ndarray,
    method: str = "symmetric") -> float:
  """Computes |μ1 − μ2|² + Tr(Σ1 + Σ2 − 2 √(Σ1 Σ2)).

  Args:
    mean1: float64[D].
    covariance1: float64[D, D].
    mean2: as mean1.
    covariance2: as covariance1.
    method: of the trace of the root, a key of METHODS.

  Raises:
    ValueError: for another method, or an imaginary matrix root.
  """
  difference = mean1 - mean2
  trace = _trace_of_root(covariance1, covariance2, method)
  return float(difference @ difference + np.trace(covariance1) + np.trace(covariance2) - 2 * trace)


def _trace_of_root(a: np.ndarray, b: np.ndarray, method: str) -> float:
  if method == "symmetric":
    return float(np.linalg.svd(_root(a) @ _root(b), compute_uv=False).sum())
  if method == "eigenvalues":
    return float(np.sqrt(np.linalg.eigvals(a @ b).astype(np.complex128)).real.sum())
  if method not in METHODS:
    raise ValueError(f"unknown method {method!r} of the Fréchet distance; choose {', '.join(METHODS)}")
  import scipy.linalg  # a fifth of a second, which no training waits for

  root = scipy.linalg.sqrtm(a @ b)
  if not np.isfinite(root).all():
    if method == "sqrtm-diagonal":
      return float(np.sqrt(np.diag(a) * np.diag(b)).sum())
    more = 1e-6 * np.eye(len(a))
    root = scipy.linalg.sqrtm((a + more) @ (b + more))
  if np.iscomplexobj(root) and (largest := np.abs(np.diagonal(root).imag).max()) > _MAX_IMAGINARY:
    raise ValueError(f"the matrix root has an imaginary diagonal ({largest:.2g}); take method symmetric")
  return float(np.trace(root).real)


def _root(a: np.ndarray) -> np.ndarray:
  """Root of a symmetric matrix; eigenvalues below 0 are rounding, and count 0."""
  values, vectors = np.linalg.eigh(a)
  return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def score_split(count: int, splits: int) -> np.ndarray:
  """Returns int64[count]: the part of each image in an inception score.

  Images are shuffled as torch-fidelity does before they are cut into parts.

  Raises:
    ValueError: for fewer images than parts.
  """
  if count < splits:
    raise ValueError(f"an inception score of {splits} parts needs as many images; there are {count}")
  order = np.random.RandomState(SEED).permutation(count)
  split = np.empty(count, np.int64)
  split[order] = np.searchsorted(
      [(i + 1) * count // splits for i in range(splits)], np.arange(count), side="right")
  return split


def score_sums(logits: np.ndarray, split: np.ndarray, splits: int) -> np.ndarray:
  """Sums what an inception score needs; the sums of several hosts add up.

  Args:
    logits: float[N, C], without bias.
    split: int[N], from `score_split`.
    splits: number of parts.

  Returns:
    float64[splits, C + 2]: sums of p(y|x), of Σ p log p, and the number of images.
  """
  logits = np.asarray(logits, np.float64)
  shifted = logits - logits.max(1, keepdims=True, initial=-np.inf)
  log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
  p = np.exp(log_p)
  sums = np.zeros((splits, logits.shape[1] + 2))
  np.add.at(sums, split, np.concatenate(
      [p, (p * log_p).sum(1, keepdims=True), np.ones((len(p), 1))], axis=1))
  return sums


def inception_score(sums: np.ndarray) -> tuple[float, float]:
  """Returns mean and population standard deviation of exp(E KL(p(y|x) ‖ p(y))) over parts."""
  counts = sums[:, -1]
  marginal = sums[:, :-2] / counts[:, None]
  divergence = sums[:, -2] / counts - (marginal * np.log(marginal + _TINY)).sum(1)
  scores = np.exp(divergence)
  return float(scores.mean()), float(scores.std())


def kernel_distance(
    features1: np.ndarray, features2: np.ndarray, *, subsets: int = 100, size: int = 1000,
    program: str = "torch-fidelity", seed: int = SEED) -> tuple[float, float]:
  """Computes the kernel inception distance: mean and standard deviation over random subsets.

  Each subset gives the unbiased estimate of the squared MMD (arXiv 1801.01401) for the kernel
  (x·y/D + 1)³; the mean is unbiased too.

  Args:
    features1: float[N, D].
    features2: float[M, D].
    subsets: random subsets, each without replacement.
    size: images of each.
    program: whose subsets, a key of SUBSETS.
    seed: of NumPy's RandomState.

  Raises:
    ValueError: for fewer images than `size` where the program refuses that, fewer than two images, or
      another program.
  """
  if program not in SUBSETS:
    raise ValueError(f"unknown subsets {program!r} of the kernel distance; choose {', '.join(SUBSETS)}")
  swapped = program == "clean-fid"
  least = min(len(features1), len(features2))
  size = max(min(size, least) if swapped else size, 2)
  if least < size:
    raise ValueError(f"a kernel distance on subsets of {size} needs as many images; there are {least}")
  generator = np.random.RandomState(seed)
  kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
  values = []
  for _ in range(subsets):
    x, y = (f[generator.choice(len(f), size, replace=False)].astype(np.float64)
            for f in ((features2, features1) if swapped else (features1, features2)))
    within = sum(k.sum() - np.trace(k) for k in (kernel(x, x), kernel(y, y)))
    values.append(within / (size * (size - 1)) - 2 * kernel(x, y).mean())
  return float(np.mean(values)), float(np.std(values))
