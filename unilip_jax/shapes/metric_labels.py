"""Labels of the metrics of evaluators.py, for the report."""

from unilip_jax.report.metric_labels import Metric
from unilip_jax.shapes import captions

METRICS = {
    "exact": Metric("reconstructions that show the same scene", True, is_key=True),
    "accuracy": Metric("questions answered correctly", True, is_key=True),
    "score": Metric("images that fit their prompt", True, is_key=True),
    "success": Metric("edits that succeed", True),
    "preserved": Metric("edits that leave other objects unchanged", True),
    "success_and_preserved": Metric(
        "edits that succeed and leave other objects unchanged", True, is_key=True),
    "kept": Metric("objects that a rebuilt image keeps", True),
    **{f"missed_{demand}": Metric(f"images whose first fault is the {demand}", False)
       for demand in captions.DEMANDS},
}
