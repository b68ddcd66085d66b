"""Stores what the receiver let in, many requests with one commit, and says what became of each.

One writer takes whatever waits: under load that is many requests, so a commit (the slowest part) is shared;
without load it is one, at once. Nobody is told `stored` before the commit. Where the outcome is unknown,
the answer is that it was not stored: the sender repeats it, and it turns out to be a duplicate.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from nexhealth_pipeline.errors import WarehouseError, WarehouseUnreachable
from nexhealth_pipeline.log import described, places
from nexhealth_pipeline.webhooks.receiving.audit import Audit
from nexhealth_pipeline.webhooks.receiving.event_rows import INSERT, EventRow, columns_of
from nexhealth_pipeline.webhooks.receiving.link import Link
from nexhealth_pipeline.webhooks.receiving.metrics import Metrics

__all__ = ["Inbox", "Outcome"]

_LOG = logging.getLogger(__name__)


class Outcome(Enum):
    """What became of a row."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    """It was there already; a row says that it came again."""
    AWAY = "away"
    """Not known to be stored: the warehouse is away, or did not answer in time."""
    FULL = "full"
    """Not stored: too many wait already."""


@dataclass(slots=True, eq=False)
class _Waiting:
    row: EventRow
    size: int
    outcome: asyncio.Future[Outcome]


class Inbox:
    """The one writer into nexhealth_webhook_events; use it as an async context manager."""

    def __init__(
        self,
        link: Link,
        audit: Audit,
        metrics: Metrics,
        *,
        seconds: float,
        audit_seconds: float,
        most_waiting: int = 4000,
        rows: int = 200,
        size: int = 4 << 20,
    ) -> None:
        """A request waits `seconds` at most; a batch has up to `rows` rows or `size` bytes of payload.

        Refusals are written down every `audit_seconds`.
        """
        self._audit_seconds = audit_seconds
        self._link, self._audit, self._metrics = link, audit, metrics
        self._seconds, self._most_waiting, self._rows, self._size = seconds, most_waiting, rows, size
        self._waiting: deque[_Waiting] = deque()
        self._something = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._auditor: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Inbox":
        await self._link.open()
        self._writer = asyncio.create_task(self._write_on(), name="webhook writer")
        self._auditor = asyncio.create_task(self._audit_on(), name="webhook auditor")
        return self

    async def __aexit__(self, *error: object) -> None:
        """Everything that waited has been answered by now; the last refusals are written down."""
        tasks = {one for one in (self._writer, self._auditor) if one is not None}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._fail(self._waiting)
        self._waiting.clear()
        await self._write_audit()
        await self._link.close()

    @property
    def is_up(self) -> bool:
        """Whether the warehouse can be written to, as far as is known."""
        return self._link.is_up

    async def store(self, row: EventRow, size: int) -> Outcome:
        """Store `row`, whose payload has `size` bytes; returns after the commit, or after `seconds`."""
        if not self._link.is_up:
            return Outcome.AWAY
        if len(self._waiting) >= self._most_waiting:
            return Outcome.FULL
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Outcome] = loop.create_future()
        self._waiting.append(_Waiting(row, size, outcome))
        self._something.set()
        deadline = loop.call_later(self._seconds, _settle, outcome, Outcome.AWAY)
        try:
            return await outcome
        finally:
            deadline.cancel()

    async def _write_on(self) -> None:
        while True:
            await self._something.wait()
            batch = self._take()
            if not batch:
                self._something.clear()
                continue
            await self._write(batch)
            self._metrics.queue.set(len(self._waiting))

    def _take(self) -> list[_Waiting]:
        """The next batch, in the order they came; who gave up waiting is left out."""
        batch: list[_Waiting] = []
        size = 0
        while self._waiting and len(batch) < self._rows and (not batch or size + self._waiting[0].size <= self._size):
            one = self._waiting.popleft()
            if not one.outcome.done():
                batch.append(one)
                size += one.size
        return batch

    async def _write(self, batch: list[_Waiting]) -> None:
        self._metrics.batch.observe(len(batch))
        try:
            await self._insert(batch)
        except WarehouseUnreachable:
            self._fail(batch)
            if not self._link.is_up:  # else they met a lock, which the next ones may not
                self._fail(self._waiting)
                self._waiting.clear()
        except WarehouseError as error:
            if len(batch) > 1:
                await self._one_by_one(batch)
                return
            _LOG.error("an event could not be stored", extra={"nexhealth": {"error": str(error)}})
            self._fail(batch)
        except Exception as error:  # the writer has to live on
            seen = {"error": described(error), "places": places(error)[-3:]}
            _LOG.error("events could not be stored", extra={"nexhealth": seen})
            self._fail(batch)

    async def _one_by_one(self, batch: list[_Waiting]) -> None:
        """One row that the server refuses must not cost the others."""
        for one in batch:
            if one.outcome.done():
                continue
            if self._link.is_up:
                await self._write([one])
            else:
                self._fail([one])

    async def _insert(self, batch: list[_Waiting]) -> None:
        """One transaction for what is new, and one for the record of what is not."""
        first = {one.row.dedup_hash: one for one in reversed(batch)}
        new = list(reversed(first.values()))
        stored = await self._link.execute(INSERT, columns_of([one.row for one in new]))
        kept = {bytes(row[1]) for row in stored}
        repeated: list[_Waiting] = []
        for one in batch:
            if first[one.row.dedup_hash] is one and one.row.dedup_hash in kept:
                _settle(one.outcome, Outcome.STORED)
            else:
                repeated.append(one)
        if repeated:
            await self._insert_duplicates(repeated)

    async def _insert_duplicates(self, repeated: Sequence[_Waiting]) -> None:
        rows = [replace(one.row, status="duplicate", payload="", error="") for one in repeated]
        await self._link.execute(INSERT, columns_of(rows))
        self._metrics.duplicates.inc(len(rows))
        for one in repeated:
            _settle(one.outcome, Outcome.DUPLICATE)

    def _fail(self, those: Sequence[_Waiting] | deque[_Waiting]) -> None:
        for one in those:
            _settle(one.outcome, Outcome.AWAY)

    async def _audit_on(self) -> None:
        while True:
            await asyncio.sleep(self._audit_seconds)
            await self._write_audit()

    async def _write_audit(self) -> None:
        if self._link.is_up:
            try:
                await self._audit.write(self._link)
            except Exception as error:  # they are kept for the next time
                _LOG.warning("refusals could not be written down", extra={"nexhealth": {"error": described(error)}})


def _settle(outcome: asyncio.Future[Outcome], value: Outcome) -> None:
    if not outcome.done():
        outcome.set_result(value)
