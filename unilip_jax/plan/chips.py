"""Peak FLOP/s, memory and links of one chip of each kind, from the vendors' pages.

TPUs: docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e. `link` is the bytes per second that a chip sends
over all its links together, half of the "bidirectional" figure there. The clock is the one at which the
compiler's cycles for large matrix multiplications meet the stated peak: one of 4096³ takes 97 % (v5e), 96 %
(v5p) and 87 % (v6e) of the multiply-adds that peak / clock allows.
GPUs: NVIDIA's data sheets of the SXM modules, and the Ada white paper for the RTX 4090, a card of 24 GB;
`link` is NVLink in one direction, of the card PCIe 4.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of accelerator.

  Attributes:
    kind: "tpu" | "gpu".
    device_kind: JAX's name of the device, or its beginning.
    peak: dense bf16 FLOP/s.
    float32_peak: FLOP/s of dots and convolutions in float32's accuracy.
    high_peak: the same at JAX's precision "high": three bfloat16 passes, or TF32.
    hbm: bytes of memory that a program may fill.
    hbm_bandwidth: bytes/s.
    link: bytes/s sent, over all links to chips of its slice or node.
    axes: of the torus that the links form; a group along one mesh axis has at least one of them.
    network: bytes/s sent per chip to other slices or nodes.
    clock: cycles/s, 0 where no compiler reports cycles.
  """

  kind: str
  device_kind: str
  peak: float
  float32_peak: float
  high_peak: float
  hbm: int
  hbm_bandwidth: float
  link: float
  axes: int
  network: float
  clock: float = 0.0

  def rate(self, precision: str) -> float:
    """Returns FLOP/s of multiplications of float32 at "highest" or "high", of bfloat16 at any other."""
    return {"highest": self.float32_peak, "high": self.high_peak}.get(precision, self.peak)


def _tpu(device_kind, peak, hbm_gib, reserved_gib, bandwidth, link, axes, network, clock) -> Chip:
  # A float32 dot is six bfloat16 passes on a TPU.
  return Chip("tpu", device_kind, peak, peak / 6, peak / 3, int((hbm_gib - reserved_gib) * GIB),
              bandwidth, link, axes, network, clock)


def _gpu(device_kind, peak, float32_peak, hbm_gb, bandwidth, link) -> Chip:
  # 0.9: set XLA_PYTHON_CLIENT_MEM_FRACTION=0.9, JAX takes 0.75 otherwise. One 400 Gbit/s adapter a GPU.
  # The data sheets' dense TF32 is half of bfloat16.
  return Chip("gpu", device_kind, peak, float32_peak, max(peak / 2, float32_peak), int(0.9 * hbm_gb * 1e9),
              bandwidth, link, 1, 50e9)


# The compiler keeps 0.25 GiB of a v5e for itself (its message when a program does not fit).
CHIPS = {
    "v5e": _tpu("TPU v5 lite", 197e12, 16, 0.25, 819e9, 200e9, 2, 3.125e9, 1.5e9),
    "v6e": _tpu("TPU v6 lite", 918e12, 32, 0.75, 1600e9, 400e9, 2, 12.5e9, 1.75e9),
    "v5p": _tpu("TPU v5", 459e12, 95, 0.25, 2765e9, 600e9, 3, 6.25e9, 1.75e9),
    "h100": _gpu("NVIDIA H100", 989e12, 67e12, 80, 3350e9, 450e9),
    "h200": _gpu("NVIDIA H200", 989e12, 67e12, 141, 4800e9, 450e9),
    "a100": _gpu("NVIDIA A100", 312e12, 19.5e12, 80, 2039e9, 300e9),
    "rtx4090": _gpu("NVIDIA GeForce RTX 4090", 165e12, 82.6e12, 24, 1008e9, 32e9),
}
GPUS_PER_NODE = 8
