"""Permission to send one request, so that all senders together stay inside the documented limits.

The client only knows this interface. The budget that all processes share is
`warehouse.budget.PostgresBudget`; `LocalBudget` here serves one process: `nexhealth doctor`,
which must work without a database, and tests.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from nexhealth_pipeline.catalog.limits import LIMITS, Limit, RateClass
from nexhealth_pipeline.errors import Cancelled

__all__ = ["Budget", "LocalBudget"]

_MARGIN = 0.05
"""Part of a window added to it: a grant and the request's arrival lie a little apart (DESIGN 3b)."""


class Budget(Protocol):
    """Hands out the right to send requests of one API key."""

    def acquire(self, classes: tuple[RateClass, ...]) -> float:
        """Block until ONE request that counts in all of `classes` may be sent now; seconds waited."""
        ...

    def throttle(self, classes: tuple[RateClass, ...], seconds: float) -> None:
        """Let nobody send in `classes` for `seconds` from now (the API answered 429)."""
        ...


class LocalBudget:
    """An exact sliding window per class, for the threads of this process only.

    `share` is the part of each documented limit to use. `clock`, `sleep` and `limits` are
    injectable; `stop` ends a wait with Cancelled.
    """

    def __init__(
        self,
        share: float = 0.8,
        *,
        limits: Mapping[RateClass, Limit] = LIMITS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._limits = limits
        self._grants = {
            name: deque[float](maxlen=max(1, int(limit.requests * share))) for name, limit in limits.items()
        }
        self._blocked_until = dict.fromkeys(limits, 0.0)
        self._clock, self._stop = clock, stop
        self._sleep = sleep or (time.sleep if stop is None else stop.wait)
        self._lock = threading.Lock()

    def acquire(self, classes: tuple[RateClass, ...]) -> float:
        """Block until one request may be sent; seconds waited. Raises Cancelled."""
        waited = 0.0
        while wait := self._ask(classes):
            if self._stop is not None and self._stop.is_set():
                raise Cancelled("stopped while waiting for the rate budget")
            self._sleep(wait)
            waited += wait
        return waited

    def throttle(self, classes: tuple[RateClass, ...], seconds: float) -> None:
        """Block `classes` for `seconds`."""
        with self._lock:
            until = self._clock() + seconds
            for name in classes:
                self._blocked_until[name] = max(self._blocked_until[name], until)

    def _ask(self, classes: tuple[RateClass, ...]) -> float:
        """0 and a grant in every class, or the seconds to wait and no grant in any."""
        with self._lock:
            now = self._clock()
            wait = max(self._free_at(name) for name in classes) - now
            if wait > 0:
                return wait
            for name in classes:
                self._grants[name].append(now)
            return 0.0

    def _free_at(self, name: RateClass) -> float:
        grants = self._grants[name]
        oldest = grants[0] if len(grants) == grants.maxlen else float("-inf")
        return max(oldest + self._limits[name].window_seconds * (1 + _MARGIN), self._blocked_until[name])
