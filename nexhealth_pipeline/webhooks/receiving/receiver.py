"""The webhook receiver: verifies what is posted, stores it, and only then says so.

`POST /api/nexhealth-webhook` is answered here without a framework's routing, since it decides how many
events a second one process takes; what people and monitors ask (health, metrics) is a Starlette app.

The answer to whatever goes wrong on our side is 503: NexHealth repeats a delivery for 48 hours (API.md F.5).
"""

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from nexhealth_pipeline.log import places
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.webhooks.endpoints import LiveSecret
from nexhealth_pipeline.webhooks.events import Event, EventMalformed, dedup_hash, parse, why_parked
from nexhealth_pipeline.webhooks.receiving import answers
from nexhealth_pipeline.webhooks.receiving.answers import Answer
from nexhealth_pipeline.webhooks.receiving.audit import Audit
from nexhealth_pipeline.webhooks.receiving.body import BodyLimits, Receive, Room, Unread, drain, read_body
from nexhealth_pipeline.webhooks.receiving.event_rows import EventRow, array_of
from nexhealth_pipeline.webhooks.receiving.inbox import Inbox, Outcome
from nexhealth_pipeline.webhooks.receiving.metrics import Metrics
from nexhealth_pipeline.webhooks.receiving.redaction import before_sensitive, without_sensitive
from nexhealth_pipeline.webhooks.receiving.signature import VALID_URLSAFE, Verdict, Window, verify
from nexhealth_pipeline.webhooks.receiving.sources import Address, Buckets, Sources, neighbourhood
from nexhealth_pipeline.webhooks.receiving.warehouse_watch import Known, WarehouseWatch
from nexhealth_pipeline.webhooks.target import WEBHOOK_PATH

__all__ = ["Limits", "Receiver"]

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
_Given = tuple[Sequence[LiveSecret], list[tuple[bytes, bytes]], bytes, datetime, Window]
"""What :func:`verify` is asked with."""

_LOG = logging.getLogger(__name__)
_JSON = re.compile(rb"application/json\s*(;.*)?", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_MOST_HEADER_NAMES = 64
_LARGE = 64 << 10
"""Bytes that take a millisecond to check (1 MB: 20 ms) with one secret."""
_USUAL = 8 << 10
"""Bytes that hardly an event has more of."""
_AT_ONCE, _EACH = 1 << 20, 2000
"""Bytes that are hashed, for all secrets, in about two milliseconds; what one more hash costs besides, in bytes."""
_UNREAD = {
    Unread.TOO_LARGE: answers.TOO_LARGE,
    Unread.TOO_SLOW: answers.BUSY,
    Unread.NO_ROOM: answers.BUSY,
    Unread.GONE: answers.BUSY,
}
_OUTCOMES = {
    Outcome.STORED: answers.STORED,
    Outcome.DUPLICATE: answers.DUPLICATE,
    Outcome.AWAY: answers.UNAVAILABLE,
    Outcome.FULL: answers.BUSY,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one receiver takes; tests make it small."""

    body: BodyLimits = field(default_factory=BodyLimits)
    requests: int = 2000
    """Requests at once."""
    refusals: float = 20.0
    """Bad requests a second of one sender that are told why, three times as many at once. Beyond: 429."""
    large_refusals: float = 1.0
    """Large bodies a second of one sender that are checked in vain, three times as many at once. Beyond, its large bodies
    do not queue to be checked: one that comes while another is gets 429. Large is, with very many secrets, what is larger
    than events are."""
    check_seconds: float = 5.0
    """So long a body that is checked beside the event loop waits for that. Beyond: 429."""


@dataclass(slots=True)
class _Request:
    """One request, as far as it is known."""

    method: str
    headers: list[tuple[bytes, bytes]]
    address: Address | None
    body: bytes | None = None
    unread: bool = True
    """Whether something of its body may still come."""


class Receiver:
    """The ASGI application; `pages` answers everything but the webhook path."""

    def __init__(
        self,
        settings: Settings,
        live: WarehouseWatch,
        inbox: Inbox,
        audit: Audit,
        metrics: Metrics,
        pages: App,
        *,
        limits: Limits | None = None,
    ) -> None:
        self._live, self._inbox, self._audit, self._metrics, self._pages = live, inbox, audit, metrics, pages
        self._limits = limits or Limits()
        self._window, self._sources = Window.of(settings), Sources.of(settings)
        self._good = Buckets(settings.webhook_rate, 2 * settings.webhook_rate)
        self._bad = Buckets(self._limits.refusals, 3 * self._limits.refusals)
        self._bad_large = Buckets(self._limits.large_refusals, 3 * self._limits.large_refusals)
        self._room = Room(self._limits.body.all_sizes)
        self._check, self._large_check = asyncio.Semaphore(1), asyncio.Semaphore(1)
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] != WEBHOOK_PATH:
            await self._pages(scope, receive, send)
            return
        began = time.perf_counter()
        request = self._request(scope)
        self._active += 1
        try:
            answer, outcome = await self._guarded(request, receive)
            await self._reply(request, answer, receive, send)
        finally:
            self._active -= 1
            if request.body is not None:
                self._room.give_back(len(request.body))
        self._metrics.in_flight.set(self._room.taken)
        self._metrics.answered(answer.status, outcome, time.perf_counter() - began)

    def _request(self, scope: Scope) -> _Request:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        client = scope.get("client")
        forwarded = [value for name, value in headers if name == b"x-forwarded-for"]
        return _Request(scope["method"], headers, self._sources.address_of(client[0] if client else None, forwarded))

    async def _guarded(self, request: _Request, receive: Receive) -> tuple[Answer, str]:
        """The answer and the word it is counted under. A mistake of ours is no reason to lose an event."""
        try:
            return await self._answer(request, receive)
        except Exception as error:
            seen = {"error": type(error).__name__, "places": places(error)[-3:]}
            _LOG.error("a webhook could not be answered", extra={"nexhealth": seen})
            with suppress(Exception):  # the mistake may lie here as well, and the answer is what matters
                self._note(request, "failed")
            return answers.UNAVAILABLE, "failed"

    async def _answer(self, request: _Request, receive: Receive) -> tuple[Answer, str]:
        known = self._live.known
        refusal = self._refused_unread(request, known)
        if refusal is not None:
            return refusal
        body = await read_body(receive, self._limits.body, self._room)
        if isinstance(body, Unread):
            return self._refuse(request, _UNREAD[body], body.value)
        request.body, request.unread = body, False
        self._metrics.bytes.inc(len(body))
        verdict = await self._verdict(known, request, body)
        if verdict is None:
            return self._refuse(request, answers.TOO_MANY, "checks")
        if not verdict.valid:
            if verdict.word == "bad-signature":
                self._live.doubt()
            return self._refuse(request, answers.REFUSED, verdict.word)
        if not self._good.take(neighbourhood(request.address)):
            return self._refuse(request, answers.TOO_MANY, "rate")
        return await self._store(request, body, verdict, known)

    async def _verdict(self, known: Known, request: _Request, body: bytes) -> Verdict | None:
        """What the checks say, None where the turn of a body that takes long did not come.

        Anybody can send one, and each costs hashes for every secret. Such bodies are checked beside the event loop, which
        others wait for, and one at a time; those of an event's usual size, which with very many secrets take long as well,
        wait for no larger one. Nobody is shut out for good, for behind a proxy a flood and NexHealth share an address: what
        is refused here it posts again, and below `_LARGE` none is refused for what its sender sent before.
        """
        given = (known.secrets, request.headers, body, datetime.now(UTC), self._window)
        long = len(known.secrets) * (len(body) + _EACH) > _AT_ONCE
        if len(body) < _LARGE and not long:
            return verify(*given)
        if len(body) < _USUAL:
            return await self._in_turn(self._check, given)
        sender = neighbourhood(request.address)
        if len(body) >= _LARGE and self._large_check.locked() and self._bad_large.is_spent(sender):
            return None
        verdict = await self._in_turn(self._large_check, given)
        if len(body) >= _LARGE and verdict is not None and not verdict.valid:
            self._bad_large.take(sender)
        return verdict

    async def _in_turn(self, turn: asyncio.Semaphore, given: _Given) -> Verdict | None:
        """Check beside the event loop, when those before have been; None where that took too long."""
        try:
            async with asyncio.timeout(self._limits.check_seconds):
                await turn.acquire()
        except TimeoutError:
            return None
        try:
            return await asyncio.to_thread(verify, *given)
        finally:
            turn.release()

    def _refused_unread(self, request: _Request, known: Known) -> tuple[Answer, str] | None:
        """What can be refused without reading the body."""
        if self._active > self._limits.requests:
            return self._refuse(request, answers.BUSY, "requests")
        if not self._sources.allows(request.address):
            return self._refuse(request, answers.FORBIDDEN, "network")
        if not known.secrets:
            self._live.doubt()
            return self._refuse(request, answers.UNAVAILABLE, "no-secret")
        if request.method != "POST":
            return self._refuse(request, answers.METHOD, "method")
        given = dict(request.headers)
        if not _JSON.fullmatch(given.get(b"content-type", b"")):
            return self._refuse(request, answers.TYPE, "content-type")
        length = given.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._limits.body.size:
            return self._refuse(request, answers.TOO_LARGE, Unread.TOO_LARGE.value)
        return None

    def _refuse(self, request: _Request, answer: Answer, reason: str) -> tuple[Answer, str]:
        """Note the refusal; who is refused too often learns no more than that, and costs no more hashes."""
        told = answer.status >= 500 or self._bad.take(neighbourhood(request.address))
        body = request.body if told else None
        # What is withheld is not hashed either: the same event may be stored, before or after. It is looked for in what
        # anybody may send, here in the event loop, so not in a large body.
        hashed = before_sensitive(body) if body is not None and len(body) < _LARGE else None
        self._note(request, reason, b"" if hashed is None else hashlib.sha256(hashed).digest())
        return answer if told else answers.TOO_MANY, reason

    def _note(self, request: _Request, reason: str, body_hash: bytes = b"") -> None:
        row = EventRow(
            verdict=reason,
            status="rejected",
            source=str(request.address or ""),
            body_hash=body_hash,
            header_names=_names(request.headers),
        )
        self._audit.note(neighbourhood(request.address), row)

    async def _store(self, request: _Request, body: bytes, verdict: Verdict, known: Known) -> tuple[Answer, str]:
        (self._metrics.urlsafe if verdict.word == VALID_URLSAFE else self._metrics.standard).inc()
        row = _row(body, known)
        row.verdict = verdict.word
        row.source = str(request.address or "")
        row.endpoint_id = str(verdict.endpoint_id or "")
        row.header_names = _names(request.headers)
        outcome = await self._inbox.store(row, len(body))
        if outcome is Outcome.STORED and row.status == "parked":
            return answers.PARKED, "parked"
        if outcome in {Outcome.AWAY, Outcome.FULL}:
            return self._refuse(request, _OUTCOMES[outcome], outcome.value)
        return _OUTCOMES[outcome], outcome.value

    async def _reply(self, request: _Request, answer: Answer, receive: Receive, send: Send) -> None:
        """Send the answer; where the body was not read, the connection ends, once the sender could read the answer."""
        close = request.unread
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.lines(close=close)})
        if close:
            await send({"type": "http.response.body", "body": answer.body, "more_body": True})
            await drain(receive, self._limits.body)
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "http.response.body", "body": answer.body})


def _row(body: bytes, known: Known) -> EventRow:
    """The row of a signed body: an event that waits, or one that is parked with its reason.

    Its hashes are of what is kept as well: beside the rest, one over nine digits more would give them back.
    """
    kept = without_sensitive(body)
    try:
        event: Event | None = parse(kept)
    except EventMalformed as error:
        return _parked(kept, str(error))
    assert event is not None
    if event.other_type:
        _tell_type(event.base_name, event.other_type)
    reason = why_parked(event)
    return EventRow(
        verdict="",
        status="parked" if reason else "pending",
        event_name=event.event_name,
        resource_type=event.resource_type,
        subdomain=event.subdomain,
        institution_id=str(known.institutions.get(event.subdomain, "")),
        resource_ids="{" + ",".join(map(str, event.resource_ids)) + "}",
        event_time=event.event_time.isoformat() if event.event_time else "",
        payload=kept.decode(),
        body_hash=hashlib.sha256(kept).digest(),
        dedup_hash=dedup_hash(event, kept),
        error=reason or "",
    )


@lru_cache(maxsize=100)
def _tell_type(event_name: str, resource_type: str) -> None:
    """Tell of a resource type that the catalog has otherwise, once: nothing depends on it, but somebody guessed wrongly."""
    told = {"event": event_name, "resource_type": resource_type}
    _LOG.warning(
        "an event comes under another resource type than declared and is taken by its name", extra={"nexhealth": told}
    )


def _parked(kept: bytes, reason: str) -> EventRow:
    """A signed body that is no event; kept where a text column can hold it."""
    try:
        payload = kept.decode()
    except UnicodeDecodeError:
        payload = ""
    return EventRow(
        verdict="",
        status="parked",
        payload="" if "\0" in payload else payload,
        body_hash=hashlib.sha256(kept).digest(),
        dedup_hash=dedup_hash(None, kept),
        error=reason,
    )


def _names(headers: list[tuple[bytes, bytes]]) -> str:
    names = (name.decode("latin-1") for name, _ in headers[:_MOST_HEADER_NAMES])
    return array_of([name if _HEADER_NAME.fullmatch(name) else "?" for name in names])
