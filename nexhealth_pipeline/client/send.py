"""The one request function: budget, credential, one exchange, the verdict, again if that helps.

Every request of this package, `/authenticates` included, goes through :meth:`Sender.send`.
"""

import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_result

from nexhealth_pipeline import __version__
from nexhealth_pipeline.catalog.limits import rate_classes
from nexhealth_pipeline.client.auth import FixedCredential
from nexhealth_pipeline.client.budget import Budget
from nexhealth_pipeline.client.clock import ApiClock
from nexhealth_pipeline.client.cost import Cost
from nexhealth_pipeline.client.page import NO_CONTENT, BodyMalformed, Envelope, decode_envelope
from nexhealth_pipeline.client.retry import (
    AUTH_STATUS,
    CLOSED,
    FAULTS,
    NOTHING_DONE,
    Action,
    Fault,
    RetryPolicy,
    Rule,
    retry_after_seconds,
    rule_for_status,
)
from nexhealth_pipeline.client.transport import Answer, Transport
from nexhealth_pipeline.errors import ApiError, BadRequest, Cancelled, CursorExpired, NotFound, TryLater

__all__ = ["Credential", "Exchange", "Sender", "Where"]

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_LEGACY_ACCEPT = "application/vnd.Nexhealth+json;version=2"
_NO_ACCESS = "access to perform this action"  # API.md A.4: known to come with 200 as well
_REFUSALS_FORGIVEN = 4
"""401s in a row that are met by a new token, each to one that no answer had come with."""
_GONE_CURSOR = (400, 404, 410, 422)
"""What a cursor may be refused with that is no more (API.md I.10: undocumented): the list that gave it was there."""
_WITNESSES = ("/institutions", "/locations")
"""Lists that every key may ask for (API.md E.1: no subdomain, nothing required): the first, and one for itself."""
_ID = re.compile(r"\d+")
_GRANTS = 3
"""Grants used up at most while the token keeps expiring in the queue for the budget."""


class Credential(Protocol):
    """What goes into `Authorization`."""

    def current(self, cost: Cost) -> str:
        """A value that may be sent; getting it may cost requests."""
        ...

    def fresh(self, value: str) -> bool:
        """Whether `value` may still be sent."""
        ...

    def accepted(self, value: str) -> None:
        """The API answered what was asked with `value`."""
        ...

    def refused(self, value: str) -> bool:
        """The API answered 401 to `value`; whether that may be the key's fault, and not only the value's."""
        ...


@dataclass(frozen=True, slots=True)
class Where:
    """What was asked for, as errors and logs name it: ids, never values."""

    method: str
    path: str
    subdomain: str | None = None
    location_id: str | None = None
    page: int | None = None

    def __str__(self) -> str:
        parts = [
            f"{label} {value}"
            for label, value in (("subdomain", self.subdomain), ("location", self.location_id), ("page", self.page))
            if value is not None
        ]
        return f"{self.method} {self.path}" + (f" ({', '.join(parts)})" if parts else "")

    def logged(self) -> dict[str, object]:
        """Path, subdomain, location and page, as fields of a log line."""
        return {"path": self.path, "subdomain": self.subdomain, "location_id": self.location_id, "page": self.page}


@dataclass(frozen=True, slots=True)
class Exchange(Generic[T]):
    """One request, as often as it takes; `read` makes the result of a good envelope (or raises BodyMalformed)."""

    where: Where
    params: list[tuple[str, str]] = field(repr=False)
    credential: Credential = field(repr=False)
    budget: Budget = field(repr=False)
    read: Callable[[Envelope, datetime], T] = field(repr=False)
    special: Mapping[int, Rule] = field(default_factory=dict, repr=False)
    """Rules that go before the common table."""
    legacy_accept: bool = False
    has_cursor: bool = False
    """The request goes on from a cursor, so a refusal may mean that this has expired."""
    quotable: bool = True
    """Whether the vendor's words may be shown (never for `/authenticates`)."""
    body: bytes | None = field(default=None, repr=False)
    """JSON to send."""
    once: bool = False
    """It must not be done twice: sent again only after an answer which says that nothing was done."""
    may_be_empty: bool = False
    """204 without a body is a success (an answer to DELETE)."""


@dataclass(frozen=True, slots=True)
class _Failure:
    rule: Rule
    kind: str
    again: bool
    status: int | None = None
    words: str = ""
    asked_wait: float | None = None
    why: str = ""
    """What about an answer is none of NexHealth's, in words of our own."""


@dataclass(slots=True)
class _Course:
    """What happened to one exchange so far."""

    started: float
    getting_ready: float = 0.0
    """Seconds in which the request could not be sent yet: budget and token, which has a patience of its own."""
    kinds: Counter[str] = field(default_factory=Counter)
    refusals: int = 0
    """Answers of 401 in a row that may be the key's fault."""
    unauthorized: int = 0
    """Answers of 401 in a row, whosever fault."""
    witnessed: bool = False
    """Whether a witness took a token that was refused here."""


class Sender:
    """Sends exchanges; thread-safe."""

    def __init__(
        self, transport: Transport, *, clock: ApiClock, policy: RetryPolicy, stop: threading.Event | None = None
    ) -> None:
        self._transport, self._clock, self._policy, self._stop = transport, clock, policy, stop
        self._closed: set[tuple[Credential, str]] = set()
        """Of each key the paths, ids left out, that were refused last while it was accepted elsewhere: there one proof
        is enough."""

    def send(self, exchange: Exchange[T], cost: Cost) -> T:
        """The result of `exchange.read`. Raises ApiError when retries are used up or cannot help; Cancelled."""
        course = _Course(started=self._policy.monotonic())
        retrying = Retrying(
            retry=retry_if_result(lambda result: isinstance(result, _Failure) and result.again),
            wait=lambda state: self._wait(state, course),
            stop=lambda state: self._gives_up(state, course),
            sleep=lambda seconds: None,  # noqa: ARG005 - `before_sleep` waits, it knows why
            before_sleep=lambda state: self._before_repeat(state, exchange, cost),
            retry_error_callback=_last_result,
        )
        result: T | _Failure = retrying(self._attempt, exchange, cost, course)
        if isinstance(result, _Failure):
            raise _error(exchange, result, course)
        return result

    def _attempt(self, exchange: Exchange[T], cost: Cost, course: _Course) -> T | _Failure:
        began = self._policy.monotonic()
        credential = self._granted(exchange, cost)
        course.getting_ready += self._policy.monotonic() - began
        answer = self._transport.exchange(
            exchange.where.method,
            exchange.where.path,
            params=exchange.params,
            headers=_headers(legacy=exchange.legacy_accept, with_body=exchange.body is not None),
            authorization=credential,
            body=exchange.body,
        )
        cost.requests += 1
        if isinstance(answer, Answer):
            cost.bytes += len(answer.body)
            result = self._judge(exchange, answer, credential, course, cost)
        else:
            result = _fault(answer)
        renews = isinstance(result, _Failure) and result.rule.action is Action.REFRESH
        course.unauthorized = course.unauthorized + 1 if renews else 0
        if isinstance(result, _Failure):
            course.kinds[result.kind] += 1
            if exchange.once and result.status not in NOTHING_DONE:
                return replace(result, again=False)
        return result

    def _granted(self, exchange: Exchange[T], cost: Cost) -> str:
        """A credential that still lives after the wait for the budget, and a grant not older than that.

        A grant that lay while a token was renewed would arrive in somebody else's window, so it is
        given up for a new one.
        """
        for _ in range(_GRANTS):
            credential = exchange.credential.current(cost)
            cost.throttled_seconds += exchange.budget.acquire(rate_classes(exchange.where.path))
            if self._stop is not None and self._stop.is_set():
                raise Cancelled("stopped before asking NexHealth")
            if exchange.credential.fresh(credential):
                return credential
        return exchange.credential.current(cost)

    def _judge(
        self, exchange: Exchange[T], answer: Answer, credential: str, course: _Course, cost: Cost
    ) -> T | _Failure:
        if 200 <= answer.status < 300:
            exchange.credential.accepted(credential)
            if self._closed:
                self._closed.discard((exchange.credential, _template(exchange)))
            return self._judge_success(exchange, answer)
        rule = rule_for_status(answer.status, exchange.special)
        envelope = _envelope_or_none(answer.body)
        if envelope is None and _is_strangers(answer):
            if answer.status == 401:
                # No verdict on the key; but a new token costs little, should it be NexHealth's after all.
                exchange.credential.refused(credential)
            return _fault(Fault.STRANGER, answer.status)
        if envelope is not None:
            self._observe(answer)
        words = envelope.words if envelope is not None and exchange.quotable else ""
        again = rule.action is Action.RETRY
        if rule.action is Action.REFRESH:
            if self._judge_401(exchange, credential, course, cost):
                return _Failure(CLOSED, f"status {answer.status}", again=False, status=answer.status, words=words)
            again = course.refusals <= _REFUSALS_FORGIVEN
        else:
            course.refusals = 0
        asked = self._asked_wait(answer)
        if answer.status == 429:
            # No sooner than without its wish: a window that somebody else has used up lasts for many short ones.
            asked = max(asked or 0.0, self._policy.backoff(course.kinds[f"status {answer.status}"] + 1))
            exchange.budget.throttle(rate_classes(exchange.where.path), asked)
        return _Failure(rule, f"status {answer.status}", again, answer.status, words, asked)

    def _judge_401(self, exchange: Exchange[T], credential: str, course: _Course, cost: Cost) -> bool:
        """Whether it is said of the path alone; else the token is given up for a new one.

        The first is taken for a token that is over. From the second in a row on, a witness is asked with the very token
        that was refused: one that is over is never taken again, so where the witness takes it, it was good when this path
        refused it. Whatever others do to the token meanwhile, nothing else closes a path; and that twice, with a pause
        between, for not all of NexHealth's servers may know a new token at once. One that was closed before to this key
        asks the witness at once: its next thousand locations cost two requests each, and nobody's token.
        """
        path = (exchange.credential, _template(exchange))
        doubtful = course.unauthorized > 0 or path in self._closed
        if doubtful and self._is_taken_elsewhere(exchange, credential, course, cost):
            closed = course.witnessed or path in self._closed
            course.witnessed = True
            if closed:
                self._closed.add(path)
            return closed
        course.refusals += exchange.credential.refused(credential)
        return False

    def _is_taken_elsewhere(self, exchange: Exchange[T], credential: str, course: _Course, cost: Cost) -> bool:
        """Whether what every key may ask is answered with this token; asked once, as no answer proves nothing."""
        witness = Exchange(
            where=Where("GET", next(one for one in _WITNESSES if one != exchange.where.path)),
            params=[],
            credential=FixedCredential(credential),
            budget=exchange.budget,
            read=lambda envelope, _: envelope.ok,
            special=AUTH_STATUS,
            legacy_accept=True,
        )
        aside = _Course(started=course.started)
        result = self._attempt(witness, cost, aside)
        course.getting_ready += aside.getting_ready
        return not isinstance(result, _Failure)

    def _judge_success(self, exchange: Exchange[T], answer: Answer) -> T | _Failure:
        try:
            empty = exchange.may_be_empty and answer.status == 204
            envelope = NO_CONTENT if empty else decode_envelope(answer.body)
            self._observe(answer)
            if envelope.ok:
                return exchange.read(envelope, self._clock.at(answer.sent))
        except BodyMalformed as malformed:
            return replace(_fault(Fault.MALFORMED, answer.status), why=str(malformed))
        words = envelope.words if exchange.quotable else ""
        if _NO_ACCESS in envelope.words:
            rule = rule_for_status(403, exchange.special)
            return _Failure(rule, Fault.REFUSED, again=False, status=answer.status, words=words)
        return _fault(Fault.REFUSED, answer.status, words)

    def _observe(self, answer: Answer) -> None:
        """Learn the API's time from an answer of its own: a proxy's clock may be hours away."""
        self._clock.observe(answer.sent, answer.received, answer.date)

    def _asked_wait(self, answer: Answer) -> float | None:
        api_now = self._clock.at(answer.received).timestamp()
        asked = retry_after_seconds(answer.retry_after, api_now=api_now)
        return None if asked is None else self._policy.bounded(asked, throttled=answer.status == 429)

    def _wait(self, state: RetryCallState, course: _Course) -> float:
        failure = _failure_of(state)
        if course.unauthorized == 1:  # a token that was over: the next one has not been refused yet
            return 0.0
        return max(failure.asked_wait or 0.0, self._policy.backoff(state.attempt_number))

    def _gives_up(self, state: RetryCallState, course: _Course) -> bool:
        failure = _failure_of(state)
        spent = self._policy.monotonic() - course.started - course.getting_ready
        return (
            state.attempt_number >= self._policy.attempts
            or 0 < failure.rule.tries <= course.kinds[failure.kind]
            or spent + state.upcoming_sleep > self._policy.patience_seconds
        )

    def _before_repeat(self, state: RetryCallState, exchange: Exchange[T], cost: Cost) -> None:
        failure, seconds = _failure_of(state), state.upcoming_sleep
        fields = {"kind": failure.kind, "attempt": state.attempt_number, "wait_seconds": round(seconds, 3)}
        _LOG.info("request failed, asking again", extra={"nexhealth": exchange.where.logged() | fields})
        cost.retries += 1
        if failure.status == 429:
            cost.throttled_seconds += seconds
        if seconds > 0:
            self._policy.pause(seconds, self._stop)


def _headers(*, legacy: bool, with_body: bool) -> dict[str, str]:
    """All headers but `Authorization`. API.md D.3: the version always, the v2 Accept for shared operations."""
    headers = {"Content-Type": "application/json"} if with_body else {}
    return headers | {
        "Accept": _LEGACY_ACCEPT if legacy else "application/json",
        "Accept-Encoding": "gzip, deflate",
        "Connection": "keep-alive",
        "Nex-Api-Version": "v3.0.0",
        "User-Agent": f"nexhealth-pipeline/{__version__}",
    }


def _fault(fault: Fault, status: int | None = None, words: str = "") -> _Failure:
    return _Failure(FAULTS[fault], fault, again=FAULTS[fault].action is Action.RETRY, status=status, words=words)


def _envelope_or_none(body: bytes) -> Envelope | None:
    try:
        return decode_envelope(body)
    except BodyMalformed:
        return None


def _template(exchange: Exchange[T]) -> str:
    """The path with its ids left out: what one row's list is refused for, a thousand others' are."""
    return _ID.sub("#", exchange.where.path)


def _is_strangers(answer: Answer) -> bool:
    """Whether something between us and NexHealth refused, and not NexHealth, whose envelope this answer lacks.

    A proxy's 404 must not look like a record that is gone, its 400 like a cursor that has expired, its 401 like a key to be
    corrected, nor its 405 like a list that the practice does not have.
    """
    # Of these an odd body of NexHealth's own, or none, still says what is wrong; by the others a practice would lack a list.
    if answer.status in (400, 401, 410, 422):
        return answer.body.lstrip()[:1] not in (b"", b"{", b"[")
    return answer.status in (403, 404, 405, 415, 501)


def _failure_of(state: RetryCallState) -> _Failure:
    result = _last_result(state)
    assert isinstance(result, _Failure)
    return result


def _last_result(state: RetryCallState) -> object:
    assert state.outcome is not None
    return state.outcome.result()


def _error(exchange: Exchange[T], failure: _Failure, course: _Course) -> ApiError:
    """The exception for a failure that stays."""
    kind = failure.rule.error
    says = failure.rule.says + (f": {failure.why}" if failure.why else "")
    if exchange.has_cursor and kind in (BadRequest, NotFound) and failure.status in _GONE_CURSOR:
        kind, says = CursorExpired, "the API refuses to go on from this cursor: the pass begins again"
    attempts = course.kinds.total()
    facts = [f"status {failure.status}"] if failure.status is not None else []
    facts.append(f"{attempts} attempt{'' if attempts == 1 else 's'}")
    quote = f' (the API: "{failure.words}")' if failure.words else ""
    unsure = exchange.once and issubclass(kind, TryLater) and failure.status not in NOTHING_DONE
    doubt = "; it may have been done all the same" if unsure else ""
    return kind(f"{exchange.where}: {says}{quote}; {', '.join(facts)}{doubt}", status=failure.status)
