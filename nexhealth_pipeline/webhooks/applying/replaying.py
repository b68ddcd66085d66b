"""Events applied once more: after a mistake was mended, or to prove that the tables are right.

An event that was applied is harmless to apply again: what the table has in this version or a newer one stays
untouched. Only events whose payload is still there can be (`warehouse.housekeeping`).

Events are marked some at a time: while the mark of one is not committed, its repeated delivery has to wait, and with it
whatever the receiver stores together with that.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import psycopg

from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.sync.practice import Practices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.warehouse.connect import driver_errors
from nexhealth_pipeline.webhooks.applying.batches import Batch, Batches
from nexhealth_pipeline.webhooks.applying.feeds import event_names
from nexhealth_pipeline.webhooks.applying.pending import BATCH
from nexhealth_pipeline.webhooks.applying.vouching import Vouchers

__all__ = ["STATUSES", "Rehearsal", "Selection", "rehearse", "replay"]

STATUSES = ("applied", "superseded", "parked")
"""Of events that can be replayed: the others wait already, or have no payload."""
_MARKED = 1000
"""Events marked in one transaction."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events: those that fit everything given. Raises InvalidSetting for what fits none."""

    since: datetime | None = None
    """Received at this time (aware) or later."""
    until: datetime | None = None
    """Received before this time."""
    resources: tuple[str, ...] = ()
    """Events that feed these collections."""
    statuses: tuple[str, ...] = ()
    """Of :data:`STATUSES`; all of them unless given."""
    ids: tuple[int, ...] = ()
    """Ids of the events."""

    def __post_init__(self) -> None:
        if not (self.since or self.until or self.resources or self.statuses or self.ids):
            raise InvalidSetting("say which events: since, until, a resource, a status or ids")
        if self.since and self.until and self.since >= self.until:
            raise InvalidSetting(f"since {self.since.isoformat()} is not before until {self.until.isoformat()}")
        if unknown := sorted(set(self.statuses) - set(STATUSES)):
            raise InvalidSetting(f"status {unknown[0]!r}: use one of {', '.join(STATUSES)}")
        event_names(self.resources)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a replay would do."""

    events: int
    """Events it would apply again."""
    hints: int
    """Of these, events for which the API would be asked, so that nobody knows what would come of them."""
    applied: int
    """Events because of which a row would change."""
    failed: int
    """Events that could not be applied."""
    rows: int
    """Rows that would change."""


def replay(connection: psycopg.Connection, selection: Selection) -> int:
    """Mark events pending again, to be applied with cause `replay` by `apply_pending`; returns how many.

    For a connection in autocommit mode. Where it breaks off, doing the same again marks the rest. Raises WarehouseError.
    """
    with driver_errors("choosing webhook events"):
        ids = _chosen(connection, selection)
        return sum(
            len(_mark(connection, selection, ids[at : at + _MARKED], taken_by=None))
            for at in range(0, len(ids), _MARKED)
        )


def rehearse(session: SyncSession, selection: Selection) -> Rehearsal:
    """Apply the events in transactions that are rolled back, and say what they did. Asks the API nothing.

    Events of one record come together, for what one transaction did the next one does not see; of a record that many
    tell of, a row may be counted twice. Raises WarehouseError.
    """
    found = Counter[str]()  # not the batches themselves: each names all rows that it changed
    with driver_errors("rehearsing webhook events"), session.pool.connection() as connection:
        ids = _chosen(connection, selection)
        rehearsing = partial(_rehearsed, session, connection, session.practices(), Vouchers(connection, session.client))
        for at in range(0, len(ids), BATCH):
            if session.stop.is_set():
                break
            for batch in rehearsing(selection, ids[at : at + BATCH]):
                failed = batch.failed + batch.parked
                found.update(hints=len(batch.hints), applied=batch.applied, failed=failed, rows=batch.rows)
    return Rehearsal(len(ids), found["hints"], found["applied"], found["failed"], found["rows"])


def _rehearsed(
    session: SyncSession,
    connection: psycopg.Connection,
    practices: Practices,
    vouchers: Vouchers,
    selection: Selection,
    ids: list[int],
) -> list[Batch]:
    """What applying these events did, which is undone."""
    with connection.transaction(force_rollback=True):
        marked = _mark(connection, selection, ids, taken_by=session.run_id)
        return Batches(connection, practices, vouchers, run_id=session.run_id, most_attempts=1).apply(marked)


def _chosen(connection: psycopg.Connection, selection: Selection) -> list[int]:
    """Ids of the chosen events, those of one record beside each other."""
    rows = connection.execute(
        "SELECT id FROM nexhealth_webhook_events WHERE payload IS NOT NULL AND status = ANY(%(statuses)s)"
        " AND (%(since)s::timestamptz IS NULL OR received_at >= %(since)s)"
        " AND (%(until)s::timestamptz IS NULL OR received_at < %(until)s)"
        " AND (%(names)s::text[] IS NULL OR split_part(event_name, '.', 1) = ANY(%(names)s))"
        " AND (%(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s))"
        " ORDER BY subdomain, resource_type, resource_ids, id",
        {
            "statuses": _statuses(selection),
            "since": selection.since,
            "until": selection.until,
            "names": event_names(selection.resources) or None,
            "ids": list(selection.ids) or None,
        },
    ).fetchall()
    return [id_ for (id_,) in rows]


def _mark(connection: psycopg.Connection, selection: Selection, ids: list[int], *, taken_by: str | None) -> list[int]:
    """Those of `ids` that nobody has marked meanwhile, which are pending now."""
    rows = connection.execute(
        "UPDATE nexhealth_webhook_events SET status = 'pending', status_before = status, replays = replays + 1,"
        " attempts = 0, taken = 0, taken_by = %(taken_by)s, next_attempt_at = NULL, error = NULL"
        " WHERE payload IS NOT NULL AND status = ANY(%(statuses)s) AND id = ANY(%(ids)s) RETURNING id",
        {"statuses": _statuses(selection), "ids": ids, "taken_by": taken_by},
    ).fetchall()
    return sorted(id_ for (id_,) in rows)


def _statuses(selection: Selection) -> list[str]:
    return list(selection.statuses or STATUSES)
