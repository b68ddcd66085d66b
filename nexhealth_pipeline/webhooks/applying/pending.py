"""Pending events: claimed under row locks, and marked in the transaction of the rows they changed.

A claim lasts as long as its transaction. A process that is killed drops it, and its events are pending as
before, but for the note that they were taken (`taking`), by which other processes pass over them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

import psycopg
from psycopg.rows import class_row

from nexhealth_pipeline.warehouse.state import database_time

__all__ = [
    "BACKOFF",
    "BATCH",
    "DUE",
    "LONGEST_PAUSE",
    "NOT_LEFT",
    "Backlog",
    "Mark",
    "Outcome",
    "StoredEvent",
    "claim",
    "mark",
    "newest_id",
]

BATCH = 500
"""Events applied in one transaction: large enough for throughput, small enough to be repeated."""
LONGEST_PAUSE = timedelta(hours=1)
"""No event rests longer. One whose next try is later than that is due: the database's clock was ahead when it was set."""
_LATEST = LONGEST_PAUSE + timedelta(minutes=1)
"""Of a next try; a minute more, for a clock that was put back by a little."""
DUE = (
    "(next_attempt_at BETWEEN clock_timestamp()"
    f" AND clock_timestamp() + interval '{_LATEST.total_seconds():.0f} s') IS NOT TRUE"
)
"""SQL of whether an event's next try may be made now; without one it may."""
NOT_LEFT = "(subdomain = ANY(%(leaving)s)) IS NOT TRUE"
"""SQL of whether an event is of none of the institutions whose events are left as they are."""
BACKOFF = [timedelta(seconds=30), timedelta(minutes=2), timedelta(minutes=10), LONGEST_PAUSE]
"""Wait after the first, second, ... failed try; the last one after all further."""
_PATIENCE = timedelta(minutes=2)
"""Wait where the API cannot be read now."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A claimed row of `nexhealth_webhook_events`."""

    id: int
    endpoint_id: int | None
    """Endpoint whose secret signed it; None for a secret from the settings."""
    payload: str | None = field(repr=False)
    received_at: datetime
    attempts: int
    replays: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """Events that are due at a moment. It becomes less only: what was tried since is due later, if at all."""

    at: datetime
    """Of the database's clock."""
    newest_id: int
    leaving: tuple[str, ...] = ()
    """Subdomains whose events are none of it."""

    @classmethod
    def now(cls, connection: psycopg.Connection, *, leaving: Iterable[str] = ()) -> "Backlog":
        """What is due now, but for events of these subdomains."""
        return cls(database_time(connection), newest_id(connection), tuple(leaving))

    def left(self, connection: psycopg.Connection) -> int:
        """How many of them nobody has tried since; one that a process is working on counts."""
        row = connection.execute(
            # DUE of then. But the longest pause counts from now, or what was tried meanwhile would look as if it was not.
            "SELECT count(*) FROM nexhealth_webhook_events WHERE status = 'pending' AND id <= %(newest)s"  # noqa: S608 - a constant
            f" AND (next_attempt_at BETWEEN %(at)s AND clock_timestamp() + %(latest)s) IS NOT TRUE AND {NOT_LEFT}",
            {"newest": self.newest_id, "at": self.at, "latest": _LATEST, "leaving": list(self.leaving)},
        ).fetchone()
        return int(row[0]) if row else 0


class Outcome(StrEnum):
    """What became of a claimed event."""

    APPLIED = "applied"
    """Its version is in the table now because of it, or the API was asked again because of it."""
    SUPERSEDED = "superseded"
    """The table had this version or a newer one, or has nothing yet that it could change."""
    FAILED = "failed"
    """Counts as a try; after the last one it is parked."""
    WAITING = "waiting"
    """The API cannot be read now, or whose event it is is not known yet: no try of the event's."""
    PARKED = "parked"
    """Can never be applied."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What to note about one event."""

    event_id: int
    outcome: Outcome
    reason: str | None = None
    """Collection, field and rule; never a value."""
    institution_id: int | None = None
    pause: timedelta = _PATIENCE
    """How long it waits, where that is its outcome."""


def claim(connection: psycopg.Connection, ids: Sequence[int], run_id: str) -> list[StoredEvent]:
    """Lock those of these events that are pending and that the run has taken, until the caller's transaction ends; by id.

    Waits for who holds one, which is a moment: another run's taking keeps a lock of what it met, and left, until it ends.
    """
    with connection.cursor(row_factory=class_row(StoredEvent)) as cursor:
        return cursor.execute(
            "SELECT id, endpoint_id, payload, received_at, attempts, replays FROM nexhealth_webhook_events"
            " WHERE status = 'pending' AND taken_by = %s AND id = ANY(%s) ORDER BY id FOR UPDATE",
            (run_id, list(ids)),
        ).fetchall()


def newest_id(connection: psycopg.Connection) -> int:
    """Id of the newest pending event, 0 where there is none."""
    row = connection.execute("SELECT max(id) FROM nexhealth_webhook_events WHERE status = 'pending'").fetchone()
    return int(row[0]) if row and row[0] else 0


def mark(connection: psycopg.Connection, verdicts: Sequence[Mark], *, run_id: str, most_attempts: int) -> int:
    """Note what became of claimed events; returns how many of them were parked. The caller commits."""
    if not verdicts:
        return 0
    rows = connection.execute(
        """
        UPDATE nexhealth_webhook_events e SET
            status = CASE
                WHEN v.idle THEN 'applied'
                WHEN v.outcome IN ('applied', 'superseded', 'parked') THEN v.outcome
                WHEN v.outcome = 'failed' AND e.attempts + 1 >= %(most)s THEN 'parked' ELSE 'pending' END,
            taken = 0, taken_by = NULL,
            attempts = e.attempts + (v.outcome IN ('failed', 'parked'))::int,
            next_attempt_at = CASE v.outcome
                WHEN 'failed' THEN CASE WHEN e.attempts + 1 < %(most)s THEN clock_timestamp()
                    + (%(backoff)s::interval[])[least(e.attempts + 1, cardinality(%(backoff)s::interval[]))] END
                WHEN 'waiting' THEN clock_timestamp() + v.pause END,
            status_before = CASE WHEN v.outcome IN ('failed', 'waiting') THEN e.status_before END,
            applied_at = CASE WHEN v.outcome IN ('applied', 'superseded') AND NOT v.idle THEN clock_timestamp()
                ELSE e.applied_at END,
            error = v.reason, run_id = CASE WHEN v.idle THEN e.run_id ELSE %(run)s END,
            institution_id = coalesce(v.institution_id, e.institution_id)
        FROM (
            -- A replay that finds the row as this event left it changes nothing about it.
            SELECT u.*, u.outcome = 'superseded' AND b.status_before IS NOT DISTINCT FROM 'applied' AS idle
            FROM unnest(%(ids)s::bigint[], %(outcomes)s::text[], %(reasons)s::text[], %(institutions)s::bigint[],
                    %(pauses)s::interval[]) AS u(id, outcome, reason, institution_id, pause)
                JOIN nexhealth_webhook_events b ON b.id = u.id
        ) v
        WHERE e.id = v.id RETURNING e.status = 'parked'
        """,
        {
            "most": most_attempts,
            "backoff": BACKOFF,
            "run": run_id,
            "ids": [one.event_id for one in verdicts],
            "outcomes": [one.outcome.value for one in verdicts],
            "reasons": [one.reason for one in verdicts],
            "institutions": [one.institution_id for one in verdicts],
            "pauses": [one.pause for one in verdicts],
        },
    ).fetchall()
    return sum(parked for (parked,) in rows)
