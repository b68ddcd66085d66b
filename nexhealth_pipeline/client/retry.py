"""What to do about each kind of failed answer, as data, and how long to wait before asking again.

Repeated is what passes by itself: 408, 429, 5xx but 501, a lost or late connection, a cut or garbled
body, a page of HTML, `code: false` with 200. Everything else is final. Sources: API.md C and H.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from nexhealth_pipeline.client.clock import http_date
from nexhealth_pipeline.errors import (
    ApiError,
    BadRequest,
    Cancelled,
    KeyRefused,
    NoAccess,
    NotFound,
    RateLimited,
    ServerFailed,
    Unreachable,
)

__all__ = [
    "AUTH_STATUS",
    "CLOSED",
    "FAULTS",
    "NOTHING_DONE",
    "STATUS",
    "Action",
    "Fault",
    "RetryPolicy",
    "Rule",
    "retry_after_seconds",
    "rule_for_status",
]


class Action(StrEnum):
    """What a failed answer calls for."""

    RETRY = "retry"
    REFRESH = "refresh"
    """One new token, then the same request again."""
    FAIL = "fail"


class Fault(StrEnum):
    """A failure that no HTTP status names."""

    NO_CONNECTION = "no_connection"
    NO_TLS = "no_tls"
    TIMEOUT = "timeout"
    TOO_SLOW = "too_slow"
    CUT = "cut"
    MALFORMED = "malformed"
    REFUSED = "refused"
    TOO_LARGE = "too_large"
    STRANGER = "stranger"


@dataclass(frozen=True, slots=True)
class Rule:
    """How one kind of failure is treated. `tries` bounds how often this kind may happen (0 = the policy's)."""

    action: Action
    error: type[ApiError]
    says: str
    tries: int = 0


STATUS: Mapping[int, Rule] = {
    400: Rule(Action.FAIL, BadRequest, "the API refuses the request"),
    401: Rule(Action.REFRESH, KeyRefused, "a new token was refused as well: correct the API key"),
    403: Rule(
        Action.FAIL,
        NoAccess,
        "no access: correct the subdomain (capitals count), use the key of this environment, or ask the vendor to enable it",
    ),
    404: Rule(Action.FAIL, NotFound, "not found: it is gone, deactivated, or not reachable with this key"),
    408: Rule(Action.RETRY, Unreachable, "no answer in time"),
    415: Rule(Action.FAIL, BadRequest, "the API refuses the representation asked for"),
    422: Rule(Action.FAIL, BadRequest, "the API refuses the request's values"),
    425: Rule(Action.RETRY, ServerFailed, "the API asks to try again later"),
    429: Rule(Action.RETRY, RateLimited, "rate limited for longer than the client waits: lower NEXHEALTH_RATE_SHARE"),
    501: Rule(Action.FAIL, BadRequest, "the API does not offer this"),
}
"""Rule by status; :func:`rule_for_status` covers the rest by hundreds."""

NOTHING_DONE = frozenset({401, 425, 429})
"""Answers after which even a request that must not be done twice is sent again: the API has not begun with it."""

CLOSED = Rule(
    Action.FAIL,
    NoAccess,
    "refused here with 401, while the key is accepted elsewhere: ask the vendor to enable it, or correct the subdomain",
)
"""A 401 that is no verdict on token or key. Some paths are declared to answer so, and never 403 (the OpenAPI file)."""

AUTH_STATUS: Mapping[int, Rule] = {
    400: Rule(Action.FAIL, ServerFailed, "no token is given: check NEXHEALTH_API_URL"),
    401: Rule(
        Action.FAIL, KeyRefused, "the API key is refused: correct NEXHEALTH_API_KEY or its line in the keys file"
    ),
    403: Rule(
        Action.FAIL, KeyRefused, "the API key is refused: correct NEXHEALTH_API_KEY or its line in the keys file"
    ),
    404: Rule(Action.FAIL, ServerFailed, "no such path there: check NEXHEALTH_API_URL"),
    405: Rule(Action.FAIL, ServerFailed, "no token is given: check NEXHEALTH_API_URL"),
    415: Rule(Action.FAIL, ServerFailed, "no token is given: check NEXHEALTH_API_URL"),
    422: Rule(Action.FAIL, ServerFailed, "no token is given: check NEXHEALTH_API_URL"),
    501: Rule(Action.FAIL, ServerFailed, "no token is given: check NEXHEALTH_API_URL"),
}
"""What differs for `/authenticates`: a missing token must never look like a missing record."""

FAULTS: Mapping[Fault, Rule] = {
    Fault.NO_CONNECTION: Rule(
        Action.RETRY, Unreachable, "no connection: check NEXHEALTH_API_URL, the network and proxies", 7
    ),
    Fault.NO_TLS: Rule(
        Action.RETRY,
        Unreachable,
        "no secure connection (TLS): check NEXHEALTH_API_URL and proxies, or name the certificates of your company's proxy "
        "in REQUESTS_CA_BUNDLE",
        3,
    ),
    Fault.TIMEOUT: Rule(Action.RETRY, Unreachable, "no answer in time"),
    Fault.TOO_SLOW: Rule(Action.RETRY, Unreachable, "the answer took too long to arrive as a whole", 3),
    Fault.CUT: Rule(Action.RETRY, ServerFailed, "the answer ended before its end"),
    Fault.MALFORMED: Rule(Action.RETRY, ServerFailed, "the answer is no NexHealth answer", 6),
    Fault.REFUSED: Rule(Action.RETRY, ServerFailed, "the API reports an error (code false) with a good status", 6),
    Fault.TOO_LARGE: Rule(Action.RETRY, ServerFailed, "the answer is larger than the client accepts", 2),
    Fault.STRANGER: Rule(
        Action.RETRY, ServerFailed, "something other than NexHealth answered: check NEXHEALTH_API_URL and proxies", 4
    ),
}
"""Rule by fault. The smaller bounds are for what rarely passes by itself."""

_REDIRECT = Rule(Action.RETRY, ServerFailed, "a redirect, which is never followed: check NEXHEALTH_API_URL", 2)
_CLIENT_ERROR = Rule(Action.FAIL, BadRequest, "the API refuses the request")
_SERVER_ERROR = Rule(Action.RETRY, ServerFailed, "the API keeps failing")


def rule_for_status(status: int, special: Mapping[int, Rule] | None = None) -> Rule:
    """The rule for any status but 2xx; `special` goes before the common table."""
    rule = (special or {}).get(status) or STATUS.get(status)
    if rule is not None:
        return rule
    if 300 <= status < 400:
        return _REDIRECT
    if 400 <= status < 500:
        return _CLIENT_ERROR
    return _SERVER_ERROR


def retry_after_seconds(header: str | None, *, api_now: float) -> float | None:
    """Seconds that a `Retry-After` asks for (seconds or HTTP date), None where it asks for nothing usable."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.replace(".", "", 1).isdigit():
        seconds = float(text)
    else:
        date = http_date(text)
        seconds = 0.0 if date is None else date - api_now
    return seconds if seconds > 0 else None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long and how often to try. Times are seconds; the last three are injectable for tests."""

    attempts: int = 10
    """Requests in all, the first one included."""
    patience_seconds: float = 600.0
    """Longest time for one page, waits for the rate budget and for a token not counted."""
    first_wait: float = 0.5
    """Before the second attempt; doubles with each one after."""
    longest_wait: float = 30.0
    """Bound of the doubling."""
    longest_retry_after: float = 120.0
    """Bound of what a `Retry-After` may ask for; of a 429's see `longest_block`."""
    longest_block: float = 300.0
    """Bound of what a 429's may: all who share the key keep to it, and a page whose `patience_seconds` are fewer ends. NexHealth's windows are of a minute, and whoever applies events waits with rows locked."""
    random: Callable[[], float] = field(default=random.random, repr=False)
    """Jitter in [0, 1)."""
    monotonic: Callable[[], float] = field(default=time.monotonic, repr=False)
    """Clock for patience and token lifetimes."""
    sleep: Callable[[float], None] | None = field(default=None, repr=False)
    """Replaces the interruptible wait."""

    def backoff(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number `attempt` (1-based): exponential, jittered by half."""
        ceiling = min(self.longest_wait, self.first_wait * 2.0 ** min(attempt - 1, 30))
        return ceiling * (0.5 + 0.5 * self.random())

    def bounded(self, asked: float, *, throttled: bool = False) -> float:
        """What of a server's wish is granted (`throttled`: with a 429), with a little jitter so that not all come at once."""
        bound = self.longest_block if throttled else self.longest_retry_after
        return min(asked, bound) + self.random() * min(1.0, self.first_wait)

    def pause(self, seconds: float, stop: threading.Event | None) -> None:
        """Wait; raises Cancelled as soon as `stop` is set."""
        if self.sleep is not None:
            self.sleep(seconds)
        elif stop is None:
            time.sleep(seconds)
        else:
            stop.wait(seconds)
        if stop is not None and stop.is_set():
            raise Cancelled("stopped while waiting to ask NexHealth again")
