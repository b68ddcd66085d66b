"""Applying events inside a Dagster step, reported by partition: until nothing comes any more, or what is due is done.

The daemon's run waits a moment for more events before it ends, because the next run costs seconds before its first
line. It ends after its turn in any case, so that the queue stays fair and the run's page readable. A command's run,
which no other follows, goes on until every event that was due when it began has been tried, and waits for none.
"""

import queue
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import dagster as dg
import psycopg

from nexhealth_pipeline.orchestration.names import EVENTS_ASSET
from nexhealth_pipeline.orchestration.step import Event, Reporter
from nexhealth_pipeline.orchestration.worker import Context, Watch, Worker
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.warehouse.connect import connect
from nexhealth_pipeline.warehouse.history import Cause
from nexhealth_pipeline.warehouse.webhook_health import GIVEN_UP
from nexhealth_pipeline.webhooks.applying.apply import AppliedSlice, apply_pending
from nexhealth_pipeline.webhooks.applying.batches import Batch
from nexhealth_pipeline.webhooks.applying.pending import DUE, Backlog
from nexhealth_pipeline.webhooks.events import EVENTS_CHANNEL

__all__ = ["Stay", "Tally", "apply_and_report", "in_words"]

_EVENTS_A_CALL = 5000
"""Between two calls the clock is looked at."""
_REPORT_SECONDS = 2.0
_POLL_SECONDS = 0.5
_LONGEST_SECONDS = 24 * 3600.0
"""For a command: should another process hold some of its events, and neither go on with them nor end."""
_NAMED = 5
_REASONS = 20
_LISTS = "lists read again"
"""Where rows of what events only hint at are counted."""
_OUTCOMES = ("applied", "superseded", "failed", "waiting", "parked")


class _Doorbell:
    """Tells that events have come. Listens before the first look, so that none comes in between unheard."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        connection.execute(f"LISTEN {EVENTS_CHANNEL}")

    def waits(self, seconds: float, stopped: Callable[[], bool]) -> bool:
        """Whether it rang within `seconds`."""
        deadline = time.monotonic() + seconds
        while not stopped():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if list(self._connection.notifies(timeout=min(left, _POLL_SECONDS), stop_after=1)):
                return True
        return False


@dataclass(frozen=True, slots=True)
class Stay:
    """How long a run stays that others follow."""

    linger_seconds: float
    """It waits so long for more events."""
    turn_seconds: float
    """It ends after so long in any case."""


def _until_quiet(session: SyncSession, on_batch: Callable[[Batch], None], stay: Stay) -> Iterator[AppliedSlice]:
    """Apply what is pending, and what comes meanwhile, until nothing has come for a while or the turn is over."""
    settled = 0

    def committed(batch: Batch) -> None:
        nonlocal settled
        settled += sum(getattr(batch, name) for name in _OUTCOMES)
        on_batch(batch)

    over = time.monotonic() + stay.turn_seconds
    with connect(session.url, autocommit=True, application_name="nexhealth webhook events") as connection:
        doorbell = _Doorbell(connection)
        while not session.stop.is_set():
            before = settled
            yield from apply_pending(session, limit=_EVENTS_A_CALL, on_batch=committed)
            if time.monotonic() > over:
                return
            if settled > before or doorbell.waits(stay.linger_seconds, session.stop.is_set):
                continue
            # A last look: that the time for an event's next try has come rings no bell.
            if not _is_due(connection):
                return


def _until_tried(session: SyncSession, on_batch: Callable[[Batch], None], backlog: Backlog) -> Iterator[AppliedSlice]:
    """Apply what is pending until each event of the backlog has been tried, by this process or another."""
    over = time.monotonic() + _LONGEST_SECONDS
    with connect(session.url, autocommit=True, application_name="nexhealth webhook events") as connection:
        left = backlog.left(connection)
        while left and not session.stop.is_set() and time.monotonic() < over:
            yield from apply_pending(session, limit=_EVENTS_A_CALL, on_batch=on_batch, leaving=backlog.leaving)
            before, left = left, backlog.left(connection)
            if left == before:  # all in the hands of another process
                session.stop.wait(_POLL_SECONDS)


def _is_due(connection: psycopg.Connection) -> bool:
    row = connection.execute(
        f"SELECT EXISTS (SELECT FROM nexhealth_webhook_events WHERE status = 'pending' AND {DUE})"  # noqa: S608 - a constant
    ).fetchone()
    return bool(row and row[0])


@dataclass(slots=True)
class _Place:
    """What events have done to one partition of one asset since it was last reported."""

    complete: bool
    events: int = 0
    rows: int = 0
    as_of: datetime | None = None

    def add(self, piece: AppliedSlice) -> None:
        self.complete &= piece.complete
        self.events += piece.events
        self.rows += piece.rows
        self.as_of = max((one for one in (self.as_of, piece.as_of) if one), default=None)

    def event(self, asset: str, key: str | None, causes: set[str]) -> Event:
        metadata: dict[str, Any] = {
            "events": self.events,
            "rows_changed": self.rows,
            "cause": " and ".join(sorted(causes)) or Cause.WEBHOOK.value,
        }
        if self.as_of is not None:
            metadata["as_of"] = dg.MetadataValue.timestamp(self.as_of)
        kind = dg.AssetMaterialization if self.complete else dg.AssetObservation
        return kind(asset, partition=key, metadata=metadata)


@dataclass(slots=True)
class Tally:
    """What a run has applied: all of it, and what was not reported yet."""

    counts: Counter[str] = field(default_factory=Counter)
    """Events by what became of them."""
    rows: int = 0
    """Rows changed."""
    batches: int = 0
    still_due: int = 0
    """Events that were due when the run began, and that nobody has tried yet."""
    _new: Counter[str] = field(default_factory=Counter)
    _new_rows: Counter[str] = field(default_factory=Counter)
    _troubles: dict[str, list[int]] = field(default_factory=dict)
    _causes: dict[str, set[str]] = field(default_factory=dict)
    _places: dict[tuple[str, str | None], _Place] = field(default_factory=dict)
    _lists: dict[str, Counter[str]] = field(default_factory=dict)

    def add_batch(self, batch: Batch) -> None:
        """Count the events of a transaction."""
        counts = Counter({name: getattr(batch, name) for name in _OUTCOMES})
        self.batches += bool(batch.claimed)  # reads of lists of changed rows are transactions without events
        self.rows += batch.rows
        self.counts += counts
        self._new += counts
        self._new_rows[_LISTS] += batch.rows - sum(len(loaded.done.holders) for loaded in batch.loaded)
        for event_id, reason in batch.troubles:
            self._troubles.setdefault(reason, []).append(event_id)
        for loaded in batch.loaded:
            self._new_rows[loaded.collection.name] += len(loaded.done.holders)
            self._causes.setdefault(loaded.collection.table, set()).add(loaded.cause.value)
        for done in batch.lists:
            if done.read:
                figures = {"lists_read": len(done.read), "records_read": done.records, "rows_changed": done.changed}
                self._lists.setdefault(done.collection.table, Counter()).update(figures)

    def add_slice(self, piece: AppliedSlice) -> None:
        """Remember what is to be reported of a slice."""
        place = self._places.setdefault((piece.collection.table, piece.partition_key), _Place(piece.complete))
        place.add(piece)

    def line(self) -> str:
        """What is new since the last line, empty where nothing is."""
        if not self._new:
            return ""
        changed = ", ".join(f"{name} {count:,}" for name, count in self._new_rows.most_common() if count)
        line = f"{_events(self._new.total())}: {in_words(self._new)}; rows changed: {changed or 'none'}"
        self._new.clear()
        self._new_rows.clear()
        return line

    def troubles(self) -> list[str]:
        """Why events could not be applied, since the last time; one line a reason."""
        lines = [
            f"{_events(len(ids))} failed: {reason} (id {', '.join(map(str, ids[:_NAMED]))}{', ...' * (len(ids) > _NAMED)})"
            for reason, ids in list(self._troubles.items())[:_REASONS]
        ]
        self._troubles.clear()
        return lines

    def events(self) -> list[Event]:
        """What Dagster is told of the slices since the last time."""
        events = [
            place.event(asset, key, self._causes.get(asset, set())) for (asset, key), place in self._places.items()
        ]
        if events:
            self._places.clear()
            self._causes.clear()
        return events

    def lists(self) -> list[Event]:
        """What Dagster is told, once a run, of lists under single rows: they make no partition complete."""
        return [dg.AssetObservation(asset, metadata=dict(figures)) for asset, figures in sorted(self._lists.items())]


def _events(count: int) -> str:
    return f"{count:,} event" + ("" if count == 1 else "s")


def in_words(counts: Counter[str]) -> str:
    """`480 applied, 20 superseded`."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common() if count)


def apply_and_report(
    context: Context,
    session: SyncSession,
    *,
    stay: Stay | None,
) -> Tally:
    """Apply events and report what changed. Sets `session.stop` when the run is stopped.

    Without a `stay` it ends when all that was due when it began has been tried. Raises WarehouseError.
    """
    tally, told = Tally(), 0.0
    batches: queue.SimpleQueue[Batch] = queue.SimpleQueue()
    # The daemon's run has the last word on events of institutions that its settings leave out. A command may have
    # narrower ones than the host that serves: it leaves them as they are.
    leaving = session.practices().left_out if stay is None else ()
    with session.pool.connection() as connection:
        backlog = Backlog.now(connection, leaving=leaving)

    def work() -> Iterator[AppliedSlice]:
        if stay is None:
            return _until_tried(session, batches.put, backlog)
        return _until_quiet(session, batches.put, stay)

    with Reporter(context) as reporter:
        with Worker(work, session.stop) as worker:
            try:
                for pieces in worker.batches(Watch(context), idle=True):
                    _count(tally, batches, pieces)
                    if time.monotonic() - told >= _REPORT_SECONDS and _report(context, reporter, tally):
                        told = time.monotonic()
            finally:  # what was committed is told, whatever ended the work
                _count(tally, batches, ())
                _report(context, reporter, tally)
                reporter.add(tally.lists())
        with session.pool.connection() as connection:
            tally.still_due = backlog.left(connection)
            reporter.add([_observation(connection, tally)])
    return tally


def _count(tally: Tally, batches: "queue.SimpleQueue[Batch]", pieces: Iterable[AppliedSlice]) -> None:
    with suppress(queue.Empty):
        while True:
            tally.add_batch(batches.get_nowait())
    for piece in pieces:
        tally.add_slice(piece)


def _report(context: Context, reporter: Reporter, tally: Tally) -> bool:
    """Report what is new; whether anything was."""
    line, events = tally.line(), tally.events()
    if line:
        context.log.info(line)
    for trouble in tally.troubles():
        context.log.warning(trouble)
    reporter.add(events)
    return bool(line or events)


def _observation(connection: psycopg.Connection, tally: Tally) -> dg.AssetObservation:
    """What became of the run's events, and what waits now."""
    row = connection.execute(
        f"SELECT count(*) FILTER (WHERE status = 'pending'), count(*) FILTER (WHERE {GIVEN_UP})"  # noqa: S608 - constants
        " FROM nexhealth_webhook_events WHERE status IN ('pending', 'parked')"
    ).fetchone()
    pending, parked = row or (0, 0)
    return dg.AssetObservation(
        EVENTS_ASSET,
        metadata={
            **dict(tally.counts),
            "rows_changed": tally.rows,
            "batches": tally.batches,
            "pending_now": pending,
            "parked_now": parked,
        },
    )
