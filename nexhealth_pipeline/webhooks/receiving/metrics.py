"""What the receiver counts, for Prometheus. A registry of its own: nothing of this process beside it is shown."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of :meth:`Metrics.text`."""

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_BATCH = (1, 2, 5, 10, 20, 50, 100, 200)


class Metrics:
    """Counters and gauges of one receiver."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "nexhealth_webhook_requests", "Requests to the webhook path.", ["status", "outcome"], registry=registry
        )
        self._known: dict[tuple[int, str], Counter] = {}
        self.seconds = Histogram(
            "nexhealth_webhook_seconds",
            "Seconds from the headers of a request to its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.bytes = Counter("nexhealth_webhook_bytes", "Bytes of bodies read.", registry=registry)
        self.duplicates = Counter("nexhealth_webhook_duplicates", "Repeated events.", registry=registry)
        base64 = Counter(
            "nexhealth_webhook_base64", "Valid signatures by base64 alphabet.", ["alphabet"], registry=registry
        )
        self.standard, self.urlsafe = base64.labels("standard"), base64.labels("urlsafe")
        self.queue = Gauge("nexhealth_webhook_queue", "Events that wait to be stored.", registry=registry)
        self.in_flight = Gauge("nexhealth_webhook_bytes_in_flight", "Bytes of unanswered requests.", registry=registry)
        self.batch = Histogram(
            "nexhealth_webhook_batch", "Events stored in one transaction.", buckets=_BATCH, registry=registry
        )
        self.database = Gauge(
            "nexhealth_webhook_database_up", "1 = the warehouse can be written to.", registry=registry
        )
        self.secrets = Gauge("nexhealth_webhook_secrets", "Secrets that events may be signed with.", registry=registry)

    def answered(self, status: int, outcome: str, seconds: float) -> None:
        """Count one answer; `outcome` is one of the receiver's own words."""
        counter = self._known.get((status, outcome))
        if counter is None:
            counter = self._known[status, outcome] = self._requests.labels(str(status), outcome)
        counter.inc()
        self.seconds.observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text form."""
        return generate_latest(self._registry)
