"""Rate limits per API key, in exact sliding windows counted when a request arrives (API.md C.3, strictest reading).

A refused request does not count: a client that waits gets in. Retries and `/authenticates` do.
"""

import threading
from collections import deque
from collections.abc import Iterable

__all__ = ["LIMITS", "Limits", "limit_names", "peak"]

LIMITS: dict[str, tuple[int, float]] = {
    "general": (100, 1.0),
    "patients": (1000, 60.0),
    "other": (2000, 60.0),
    "appointment_list": (10, 1.0),
}
"""Requests and window in seconds of each limit."""


def limit_names(path: str) -> tuple[str, ...]:
    """The limits a request for `path` counts in."""
    first = path.strip("/").partition("/")[0]
    minute = "patients" if first in ("patients", "appointments") else "other"
    if path.strip("/") == "appointments":
        return ("general", minute, "appointment_list")
    return ("general", minute)


class Limits:
    """The windows of all keys. Switch off with `enabled = False`; `retry_after` is what a 429 says (see Faults)."""

    def __init__(self, *, enabled: bool = True, scale: float = 1.0) -> None:
        self.enabled = enabled
        self.retry_after = "seconds"
        self._limits = {name: (max(1, int(count * scale)), window) for name, (count, window) in LIMITS.items()}
        self._arrivals: dict[tuple[str, str], deque[float]] = {}
        self._lock = threading.Lock()

    def admit(self, api_key: str, path: str, arrived: float) -> float:
        """Count a request; 0 lets it in, else the seconds until it would fit (and it is not counted)."""
        if not self.enabled or not api_key:
            return 0.0
        with self._lock:
            windows = [(self._limits[name], self._window(api_key, name, arrived)) for name in limit_names(path)]
            full = [times[-count] + window - arrived for (count, window), times in windows if len(times) >= count]
            if full:
                return max(*full, 0.001)
            for _, times in windows:
                times.append(arrived)
            return 0.0

    def _window(self, api_key: str, name: str, arrived: float) -> deque[float]:
        times = self._arrivals.setdefault((api_key, name), deque())
        oldest = arrived - self._limits[name][1]
        while times and times[0] <= oldest:
            times.popleft()
        return times


def peak(arrivals: Iterable[float], window: float) -> int:
    """The most arrivals in any sliding `window` seconds."""
    times: deque[float] = deque()
    most = 0
    for moment in sorted(arrivals):
        times.append(moment)
        while times[0] <= moment - window:
            times.popleft()
        most = max(most, len(times))
    return most
