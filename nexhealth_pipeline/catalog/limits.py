"""The rate limits NexHealth documents, as data: which requests count where.

Source: API.md C.3 (strictest reading). Every path under /patients and /appointments shares one
1,000 requests/minute; everything else 2,000/minute; the list GET /appointments also 10/second;
every request, /authenticates and retries included, 100/second per key.
"""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["LIMITS", "Limit", "RateClass", "rate_classes"]


class RateClass(StrEnum):
    """A set of requests that the API limits together."""

    GENERAL = "general"
    PATIENTS = "patients"
    OTHER = "other"
    APPOINTMENT_LIST = "appointment_list"


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `requests` in any `window_seconds`."""

    requests: int
    window_seconds: float


LIMITS: dict[RateClass, Limit] = {
    RateClass.GENERAL: Limit(100, 1.0),
    RateClass.PATIENTS: Limit(1000, 60.0),
    RateClass.OTHER: Limit(2000, 60.0),
    RateClass.APPOINTMENT_LIST: Limit(10, 1.0),
}
"""Documented limit per rate class and API key."""


def rate_classes(path: str) -> tuple[RateClass, ...]:
    """The classes that one GET of `path` (no query, leading slash) counts in."""
    first = path.strip("/").split("/", 1)[0]
    if first in ("patients", "appointments"):
        classes: tuple[RateClass, ...] = (RateClass.GENERAL, RateClass.PATIENTS)
    else:
        classes = (RateClass.GENERAL, RateClass.OTHER)
    if path.strip("/") == "appointments":
        classes += (RateClass.APPOINTMENT_LIST,)
    return classes
