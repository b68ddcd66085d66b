"""What reading a page cost, counted where it happens.

Pages are fetched by several threads and a token refresh serves all of them, so the counters
travel with each call instead of living in the client.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nexhealth_pipeline.errors import PipelineError

__all__ = ["Cost"]


@dataclass(slots=True)
class Cost:
    """Counters of one page, or of one failed read."""

    requests: int = 0
    """Requests sent, `/authenticates` and repeats included."""
    retries: int = 0
    """Requests that repeated one before."""
    throttled_seconds: float = 0.0
    """Seconds spent waiting for the rate budget or after a 429."""
    bytes: int = 0
    """Bytes of answers received, after decompression."""

    @contextmanager
    def charged_to_failure(self) -> Iterator[None]:
        """Put the counters on the error that ends the block."""
        try:
            yield
        except PipelineError as error:
            error.requests += self.requests
            error.retries += self.retries
            error.throttled_seconds += self.throttled_seconds
            error.bytes += self.bytes
            raise
