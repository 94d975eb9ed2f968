"""Labels of metrics in the report, and whether a higher value is better.

A plug-in adds its own: a mapping {metric: Metric}, registered in the group "metric" (common/registry.py).
A metric without a label is shown under its own name.
"""

from collections.abc import Mapping
import dataclasses
import functools

from unilip_jax.common import registry


@dataclasses.dataclass(frozen=True)
class Metric:
  """How a metric is shown.

  Attributes:
    label: for readers.
    higher_is_better: None if neither is.
    is_key: whether it has a tile at the top of the page.
    in_progress: whether the table of start and end shows it; key metrics are always in it.
  """

  label: str
  higher_is_better: bool | None
  is_key: bool = False
  in_progress: bool = False


_METRICS = {
    "psnr": Metric("PSNR (dB)", True, is_key=True),
    "ssim": Metric("SSIM", True, is_key=True),
    "ssim_data_range_2": Metric("SSIM, data range 2 (torchmetrics)", True),
    "ssim_official": Metric("SSIM of UniLIP's evaluation (as published)", True),
    "l1": Metric("L1", False),
    "lpips": Metric("LPIPS", False, is_key=True),
    "lpips_alex": Metric("LPIPS (AlexNet)", False),
    "lpips_squeeze": Metric("LPIPS (SqueezeNet)", False),
    "rfid": Metric("rFID", False, is_key=True),
    "inception_score": Metric("inception score", True),
    "inception_score_std": Metric("inception score, deviation over its parts", None),
    "flow_loss": Metric("flow-matching loss", False, in_progress=True),
    "wrong_prompt_loss": Metric("flow-matching loss, prompts of other examples", None),
    "count": Metric("examples", None),
}


@functools.cache
def table() -> Mapping[str, Metric]:
  """{metric: Metric} in the order of the report's tables, those of plug-ins first."""
  labels: dict[str, Metric] = {}
  for name in registry.names("metric"):
    labels |= registry.find("metric", name)
  return labels | _METRICS
