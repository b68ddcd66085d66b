"""What was asked, when it arrived, and what it got: the server's own witness for tests and `/sandbox/requests`."""

import re
import threading
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import parse_qsl

from .limits import LIMITS, limit_names, peak

__all__ = ["Asked", "RequestLog"]

_KEPT = 500_000


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: `arrived` by the server's clock, `records` on its page, `fault` that befell it."""

    number: int
    arrived: float
    method: str
    path: str
    query: str
    api_key: str
    status: int
    records: int
    bytes: int
    fault: str | None

    @property
    def params(self) -> list[tuple[str, str]]:
        """The decoded query parameters."""
        return parse_qsl(self.query, keep_blank_values=True)

    def param(self, name: str) -> str | None:
        """One parameter's last value."""
        return dict(self.params).get(name)


class RequestLog:
    """The last half million requests, oldest first. Administrative requests are not in it."""

    def __init__(self) -> None:
        self._entries: deque[Asked] = deque(maxlen=_KEPT)
        self._numbers = 0
        self._lock = threading.Lock()

    def add(self, **entry: Any) -> None:
        """Append one request."""
        with self._lock:
            self._numbers += 1
            self._entries.append(Asked(number=self._numbers, **entry))

    def __iter__(self) -> Iterator[Asked]:
        with self._lock:
            return iter(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def matching(self, path: str = ".*", *, status: int | None = None, since: int = 0) -> list[Asked]:
        """Requests whose whole path matches the expression, with that status, numbered above `since`."""
        found = re.compile(path)
        return [
            one
            for one in self
            if one.number > since and found.fullmatch(one.path) and (status is None or one.status == status)
        ]

    def clear(self) -> None:
        """Forget all requests; numbering goes on."""
        with self._lock:
            self._entries.clear()

    def peaks(self) -> dict[str, dict[str, int]]:
        """Per API key and limit, the most requests in any sliding window, those answered 429 as well."""
        kept: dict[tuple[str, str], list[float]] = {}
        for one in self:
            for name in limit_names(one.path):
                kept.setdefault((one.api_key, name), []).append(one.arrived)
        found: dict[str, dict[str, int]] = {}
        for (key, name), times in kept.items():
            found.setdefault(key, {})[name] = peak(times, LIMITS[name][1])
        return found

    def summary(self) -> dict[str, Any]:
        """Totals for `/sandbox/stats`."""
        entries = list(self)
        return {
            "requests": len(entries),
            "records": sum(one.records for one in entries),
            "bytes": sum(one.bytes for one in entries),
            "by_status": dict(Counter(str(one.status) for one in entries)),
            "by_fault": dict(Counter(one.fault for one in entries if one.fault)),
        }

    def dump(self, entries: list[Asked]) -> list[dict[str, Any]]:
        """Entries as plain objects, the API key left out."""
        return [{name: value for name, value in asdict(one).items() if name != "api_key"} for one in entries]
