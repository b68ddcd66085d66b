"""What time it is for the API, told from the `Date` header of its answers.

Watermarks and the order of versions are made of request times, and a workstation's clock can be
minutes off. `Date` has whole seconds, so one answer only bounds the offset between both clocks:
the API's time while the answer was made lies in [date, date + 1 s), ours between sent and
received. While that allows 0 the local clock is believed as it is.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["ApiClock", "http_date"]

_LONGEST_PROOF = 5.0
"""Seconds: an answer that took longer bounds the offset too loosely to be used."""

_FURTHEST = 86_400.0
"""Seconds: a date further off is the mistake of some server on the way, which must not become everything's version."""


def http_date(text: str | None) -> float | None:
    """A `Date`-like header as seconds since 1970, None where it is absent or no date."""
    if not text:
        return None
    try:
        moment = parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, IndexError, TypeError, OverflowError):
        return None


class ApiClock:
    """Maps local to API time; later local moments never map to earlier API moments. Thread-safe."""

    def __init__(
        self, *, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        # Steps of the wall clock during a run must not reorder requests: it is read once.
        self._base = wall() - monotonic()
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._offset = 0.0
        self._latest = (float("-inf"), float("-inf"))
        self._skew: float | None = None

    @property
    def skew(self) -> float | None:
        """Seconds that the API's clock says it is ahead of ours (0.0 = no proof of any); None before a `Date` was seen."""
        return self._skew

    def local(self) -> float:
        """Local time, seconds since 1970."""
        return self._base + self._monotonic()

    def observe(self, sent: float, received: float, date_header: str | None) -> None:
        """Learn from one answer; `sent` and `received` are local times."""
        date = http_date(date_header)
        if date is None or received - sent > _LONGEST_PROOF:
            return
        lowest, highest = date - received, date + 1.0 - sent
        with self._lock:
            self._skew = 0.0 if lowest <= 0.0 <= highest else min(lowest, highest, key=abs)
            if abs(self._skew) <= _FURTHEST:
                self._offset = self._skew

    def at(self, local: float) -> datetime:
        """API time (UTC) at a local moment."""
        with self._lock:
            latest_local, latest_api = self._latest
            api = local + self._offset
            if local >= latest_local:
                api = max(api, latest_api)
                self._latest = (local, api)
            else:
                api = min(api, latest_api)
        return datetime.fromtimestamp(api, UTC)

    def now(self) -> datetime:
        """API time (UTC) now."""
        return self.at(self.local())
