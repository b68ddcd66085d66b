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

_EARLIEST, _LATEST = 1_577_836_800.0, 4_102_444_800.0
"""From 2020 on, before 2100: any other date is some server's mistake, and must become no record's version."""
_LEAP = 86_400.0
"""Seconds: further than that only one wrong answer, or a machine that slept, moves the time; the next answer shows which."""
_AGREES = 60.0
"""Seconds within which two answers mean the same leap."""
_TICK = 2e-6
"""Seconds: the least that still differs once it is written in microseconds."""
_NEVER = (float("-inf"), float("-inf"))


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
    """Maps local to API time; a moment after the latest one asked for maps to a later one too. Thread-safe.

    So no two answers of one slice were asked for at the same time, even while a clock that was ahead is waited for:
    a record's rows are told from those of its older version by that time. Only moments that were mapped before the
    first `Date`, or by one that proved to be days off, are no bound.
    """

    def __init__(
        self, *, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        # Steps of the wall clock during a run must not reorder requests: it is read once.
        self._base = wall() - monotonic()
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._latest = _NEVER
        self._skew: float | None = None
        self._doubted: float | None = None
        """What the last answer said, where it alone says so."""

    @property
    def skew(self) -> float | None:
        """Seconds that the API's clock is ahead of ours (0.0 = no proof of any); None before a `Date` was believed."""
        return self._skew

    def local(self) -> float:
        """Local time, seconds since 1970."""
        return self._base + self._monotonic()

    def observe(self, sent: float, received: float, date_header: str | None) -> None:
        """Learn from one answer; `sent` and `received` are local times."""
        date = http_date(date_header)
        if date is None or not _EARLIEST <= date < _LATEST or received - sent > _LONGEST_PROOF:
            return
        lowest, highest = date - received, date + 1.0 - sent
        skew = 0.0 if lowest <= 0.0 <= highest else min(lowest, highest, key=abs)
        with self._lock:
            leaps = self._skew is not None and abs(skew - self._skew) > _LEAP
            if leaps and (self._doubted is None or abs(skew - self._doubted) > _AGREES):
                self._doubted = skew
                return
            if leaps or self._skew is None:
                self._latest = _NEVER  # else all that comes is held at a time that was never the API's
            self._skew, self._doubted = skew, None

    def at(self, local: float) -> datetime:
        """API time (UTC) at a local moment."""
        with self._lock:
            latest_local, latest_api = self._latest
            api = local + (self._skew or 0.0)
            if local >= latest_local:
                api = max(api, latest_api + _TICK if local > latest_local else latest_api)
                self._latest = (local, api)
            else:
                api = min(api, latest_api)
        return datetime.fromtimestamp(api, UTC)

    def now(self) -> datetime:
        """API time (UTC) now."""
        return self.at(self.local())
