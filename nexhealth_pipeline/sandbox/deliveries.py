"""Sending webhook events from the background: a queue, workers, retries and mischief (API.md F.4, F.5).

Queued deliveries do not survive the end of the sandbox, endpoints and subscriptions do. An endpoint that answered
nothing but errors for 48 hours becomes inactive and what was queued for it is lost, as are events made meanwhile.
"""

import heapq
import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from .endpoints import Endpoint, Registry
from .events import Announcement, body_of
from .mischief import DeliverySettings, dice
from .posting import NotDelivered, Poster, sign

__all__ = ["RETRY_AFTER", "Attempt", "Deliveries", "Delivery"]

logger = logging.getLogger(__name__)

RETRY_AFTER = (30.0, 90.0, 210.0, 600.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 86_400.0, 172_800.0)
"""Seconds after the first failure at which an event is tried again (API.md F.5)."""

_QUEUED, _DELIVERED, _DROPPED, _LOST = "queued", "delivered", "dropped", "lost"
_KEPT = 100_000


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try: when, by the sandbox's clock, and the status it got, or why it got none."""

    at: str
    status: int | None
    error: str | None
    seconds: float


@dataclass(slots=True, eq=False)
class Delivery:
    """One event on its way to one subscription. `kind` is event, duplicate or stale."""

    number: int
    announcement: Announcement
    subscription_id: int
    endpoint_id: int
    kind: str = "event"
    outcome: str = _QUEUED
    attempts: list[Attempt] = field(default_factory=list)
    first_failure: float | None = None
    stamp: str | None = None

    @property
    def errors(self) -> list[str]:
        """What went wrong so far, as the next body tells it [guess]."""
        return [f"{one.at}: {f'HTTP {one.status}' if one.status else one.error}" for one in self.attempts]

    def describe(self) -> dict[str, Any]:
        """A line of the log."""
        told = self.announcement
        return {
            "number": self.number,
            "event": told.event,
            "kind": self.kind,
            "collection": told.collection,
            "ids": list(told.ids),
            "subdomain": told.subdomain,
            "endpoint_id": self.endpoint_id,
            "subscription_id": self.subscription_id,
            "at": told.at,
            "outcome": self.outcome,
            "attempts": [asdict(one) for one in self.attempts],
        }


class Deliveries:
    """The queue and its workers. Threads exist only between start and stop, and only once something was queued.

    `now(offset)` is the API's stamp of this moment. All methods are safe from any thread.
    """

    def __init__(self, registry: Registry, settings: DeliverySettings, now: Callable[[float], str], seed: int) -> None:
        self.settings = settings
        self.counters: Counter[str] = Counter()
        self._registry = registry
        self._now = now
        self._seed = seed
        self._changed = threading.Condition()
        self._queue: list[tuple[float, int, Delivery]] = []
        self._order = itertools.count()
        self._numbers = itertools.count(1)
        self._sending = 0
        self._running = False
        self._threads: list[tuple[threading.Thread, Poster]] = []
        self._log: deque[Delivery] = deque(maxlen=_KEPT)
        self._last_success: dict[int, float] = {}

    def add(self, announcement: Announcement, stale: Announcement | None = None) -> list[int]:
        """Queue an event for everyone who hears of it; the numbers of its deliveries, those of copies included.

        `stale` is the same event about the version before, for the mischief of that name.
        """
        made: list[int] = []
        with self._changed:
            for heard in self._registry.hearing(announcement.institution_id, announcement.base):
                endpoint = self._registry.endpoint(heard.webhook_endpoint_id)
                if endpoint is None or not endpoint.active:
                    self.counters["unheard"] += 1  # an inactive endpoint misses it for good
                    continue
                made += self._add_one(announcement, stale, heard.id, endpoint.id)
            self._run()
            self._changed.notify_all()
        return made

    def _add_one(
        self, announcement: Announcement, stale: Announcement | None, subscription: int, endpoint: int
    ) -> list[int]:
        chosen = self.settings
        first = Delivery(next(self._numbers), announcement, subscription, endpoint)
        if self._dice("drop", first.number) < chosen.drop:
            first.outcome = _DROPPED
            self.counters[_DROPPED] += 1
            self._log.append(first)
            return [first.number]
        made = [first]
        self._push(first, self._hold(first))
        if self._dice("duplicates", first.number) < chosen.duplicates:
            copy = Delivery(next(self._numbers), announcement, subscription, endpoint, "duplicate")
            self._push(copy, self._hold(copy))
            made.append(copy)
        if stale is not None and self._dice("stale", first.number) < chosen.stale:
            older = Delivery(next(self._numbers), stale, subscription, endpoint, "stale")
            self._push(older, chosen.stale_seconds + self._hold(older))
            made.append(older)
        for one in made:
            self.counters[f"queued_{one.kind}"] += 1
        self._log.extend(made)
        return [one.number for one in made]

    def _dice(self, what: str, *numbers: int) -> float:
        return dice(self._seed, what, *numbers)

    def _hold(self, delivery: Delivery) -> float:
        """Seconds before the first attempt."""
        chosen = self.settings
        late = self._dice("reorder", delivery.number) < chosen.reorder
        return chosen.delay + (self._dice("late", delivery.number) * chosen.reorder_seconds if late else 0.0)

    def _push(self, delivery: Delivery, seconds: float) -> None:
        heapq.heappush(self._queue, (time.monotonic() + seconds, next(self._order), delivery))

    def discard(self, endpoint_id: int | None = None, subscription_id: int | None = None) -> None:
        """Lose what is queued for an endpoint or a subscription."""
        with self._changed:
            kept = []
            for due, order, one in self._queue:
                if endpoint_id in (None, one.endpoint_id) and subscription_id in (None, one.subscription_id):
                    self._lose(one)
                else:
                    kept.append((due, order, one))
            heapq.heapify(kept)
            self._queue = kept
            self._changed.notify_all()

    def _lose(self, delivery: Delivery) -> None:
        delivery.outcome = _LOST
        self.counters[_LOST] += 1

    def log(self, since: int = 0) -> list[Delivery]:
        """Deliveries numbered above `since`, oldest first (the last 100,000)."""
        with self._changed:
            return sorted((one for one in self._log if one.number > since), key=lambda one: one.number)

    def clear(self) -> None:
        """Forget the log of finished deliveries and the counters; numbering goes on."""
        with self._changed:
            self._log = deque((one for one in self._log if one.outcome == _QUEUED), maxlen=_KEPT)
            self.counters.clear()

    def waiting(self) -> list[tuple[float, Delivery]]:
        """What is queued, with the seconds until its next attempt; what is being sent right now is not in it."""
        with self._changed:
            now = time.monotonic()
            return [(round(due - now, 3), one) for due, _, one in sorted(self._queue, key=lambda item: item[:2])]

    @property
    def idle(self) -> bool:
        """Nothing queued, nothing on its way."""
        with self._changed:
            return not self._queue and not self._sending

    def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing is queued, retries included; false when that took longer than `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self.idle, timeout)

    def start(self) -> None:
        """Let deliveries go out."""
        with self._changed:
            self._running = True
            self._run()

    def stop(self) -> None:
        """End all workers, and what they are sending; the queue stays until the sandbox ends."""
        with self._changed:
            self._running = False
            threads, self._threads = self._threads, []
            self._changed.notify_all()
        for _, poster in threads:
            poster.abort()
        for thread, _ in threads:
            thread.join(timeout=5)

    def _run(self) -> None:
        """Start workers if there is something to do and they are missing."""
        while self._running and self._queue and len(self._threads) < self.settings.workers:
            poster = Poster()
            thread = threading.Thread(target=self._work, args=(poster,), name="sandbox-webhooks", daemon=True)
            self._threads.append((thread, poster))
            thread.start()

    def _work(self, poster: Poster) -> None:
        try:
            while (delivery := self._take(poster)) is not None:
                self._deliver(delivery, poster)
        finally:
            poster.close()

    def _deliver(self, delivery: Delivery, poster: Poster) -> None:
        """One attempt and what follows from it. Never raises: nobody would replace a worker that ended."""
        try:
            self._settle(delivery, self._send(delivery, poster))
        except Exception:
            logger.exception("a delivery failed", extra={"nexhealth": {"event": delivery.announcement.event}})
            with self._changed:
                if delivery.outcome == _QUEUED:
                    self._lose(delivery)
        finally:
            with self._changed:
                self._sending -= 1
                self._changed.notify_all()

    def _take(self, poster: Poster) -> Delivery | None:
        """The next delivery that is due; None ends the worker."""
        with self._changed:
            while self._running and self._wanted(poster):
                left = self._queue[0][0] - time.monotonic() if self._queue else None
                if left is not None and left <= 0:
                    self._sending += 1
                    return heapq.heappop(self._queue)[2]
                self._changed.wait(None if left is None else min(left, threading.TIMEOUT_MAX))
        return None

    def _wanted(self, poster: Poster) -> bool:
        """Whether this worker is among those the settings allow; it leaves the list if not."""
        places = [index for index, (_, other) in enumerate(self._threads) if other is poster]
        if places and places[0] < self.settings.workers:
            return True
        for index in places:
            del self._threads[index]
        return False

    def _send(self, delivery: Delivery, poster: Poster) -> Attempt | None:
        """One attempt; None where nobody is there to send it to."""
        endpoint = self._target(delivery)
        if endpoint is None:
            return None
        chosen, at, began = self.settings, self._now(0.0), time.monotonic()
        body = body_of(delivery.announcement, delivery.errors)
        headers = {"content-type": "application/json"} | self._signed(delivery, endpoint, body)
        try:
            status, error = poster.post(endpoint.target_url, body, headers, chosen.timeout), None
        except NotDelivered as failure:
            status, error = None, str(failure)
        return Attempt(at, status, error, round(time.monotonic() - began, 4))

    def _target(self, delivery: Delivery) -> Endpoint | None:
        """The endpoint of the delivery's subscription, as things are now."""
        heard = self._registry.subscription(delivery.subscription_id)
        endpoint = self._registry.endpoint(heard.webhook_endpoint_id) if heard and heard.active else None
        if endpoint is None or not endpoint.active:
            return None
        delivery.endpoint_id = endpoint.id
        return endpoint

    def _signed(self, delivery: Delivery, endpoint: Endpoint, body: bytes) -> dict[str, str]:
        chosen, tries = self.settings, len(delivery.attempts)
        if delivery.stamp is None or chosen.restamp:
            delivery.stamp = self._now(chosen.stamp_offset)
        wrong = self._dice("wrong", delivery.number, tries) < chosen.wrong_signature
        urlsafe = self._dice("urlsafe", delivery.number, tries) < chosen.urlsafe
        secret = endpoint.secret_key + "?" * wrong
        return {"timestamp": delivery.stamp, "signature": sign(secret, delivery.stamp, body, urlsafe=urlsafe)}

    def _settle(self, delivery: Delivery, attempt: Attempt | None) -> None:
        """Note how an attempt went; queue the next one, or end the endpoint after the last."""
        gone = None
        with self._changed:
            if attempt is None:
                self._lose(delivery)
            elif attempt.status is not None and 200 <= attempt.status < 300:
                self._succeed(delivery, attempt)
            elif self._fail(delivery, attempt):
                gone = delivery.endpoint_id
        if gone is not None:
            self._deactivate(gone)

    def _succeed(self, delivery: Delivery, attempt: Attempt) -> None:
        delivery.attempts.append(attempt)
        delivery.outcome = _DELIVERED
        self._last_success[delivery.endpoint_id] = time.monotonic()
        self.counters["attempts"] += 1
        self.counters[_DELIVERED] += 1

    def _fail(self, delivery: Delivery, attempt: Attempt) -> bool:
        """Whether the endpoint has given nothing but errors for all of the schedule."""
        if not self._running:  # ended by us: as if it had not been tried
            self._push(delivery, 0.0)
            return False
        delivery.attempts.append(attempt)
        self.counters["attempts"] += 1
        self.counters["failed_attempts"] += 1
        if delivery.first_failure is None:
            delivery.first_failure = time.monotonic()
        tries = len(delivery.attempts)
        if tries <= len(RETRY_AFTER):
            due = delivery.first_failure + RETRY_AFTER[tries - 1] * self.settings.time_scale
            heapq.heappush(self._queue, (due, next(self._order), delivery))
            return False
        self._lose(delivery)
        return self._last_success.get(delivery.endpoint_id, 0.0) < delivery.first_failure

    def _deactivate(self, endpoint_id: int) -> None:
        """What the vendor does after 48 hours of continuous errors."""
        with suppress(KeyError):  # it may have been deleted meanwhile
            self._registry.change_endpoint(endpoint_id, active=False)
            self.counters["deactivated_endpoints"] += 1
        self.discard(endpoint_id)
