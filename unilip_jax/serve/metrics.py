"""Counts and times for Prometheus, in its text format."""

import prometheus_client


class Metrics:
  """Holds the metrics of one server, in a registry of their own."""

  def __init__(self):
    """Makes all metrics at zero."""
    self._registry = registry = prometheus_client.CollectorRegistry()
    make = lambda kind, name, text, labels=(), **more: kind(
        f"unilip_{name}", text, labels, registry=registry, **more)
    counter, gauge, histogram = (
        prometheus_client.Counter, prometheus_client.Gauge, prometheus_client.Histogram)
    self.requests = make(counter, "requests", "answers of HTTP", ("route", "status"))
    self.seconds = make(
        histogram, "request_seconds", "from the header to the end of the answer", ("route",),
        buckets=(.01, .03, .1, .3, 1, 3, 10, 30, 100, 300))
    self.batch_rows = make(histogram, "batch_rows", "rows of a batch without padding", ("kind",),
                           buckets=(1, 2, 4, 8, 16, 32, 64))
    self.device_seconds = make(counter, "device_seconds", "time of batches on the device", ("kind",))
    self.images = make(counter, "images", "images that were made", ("kind",))
    self.tokens = make(counter, "tokens", "tokens of answers")
    self.cancelled = make(counter, "cancelled", "requests whose client left")
    self._waiting = make(gauge, "queue_rows", "rows that wait for the device")
    self._open = make(gauge, "open_requests", "requests that are being answered")

  def text(self, waiting: int, open_requests: int) -> bytes:
    """Returns all metrics as text.

    Args:
      waiting: rows in the queue now.
      open_requests: requests that are being answered now.
    """
    self._waiting.set(waiting)
    self._open.set(open_requests)
    return prometheus_client.generate_latest(self._registry)


CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
