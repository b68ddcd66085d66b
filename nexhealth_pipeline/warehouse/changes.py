"""`nexhealth_changes`: ids of what every transaction changed, for whoever follows the copy as it moves.

Statement-level triggers on every collection's table write a row per changed record, whoever changed it, in
its own transaction, and notify channel `nexhealth_changes` (payload: the collection) when that commits. A
row says which record, when, how and why, and never what is in it. Migration 0004 holds table and functions;
this module puts the triggers on tables, makes partitions ahead of time, prunes old ones, and reads.

To follow the copy: `now_cursor`, then read what is of interest from the tables, then `changes_since` until it gives
none, whenever `listen` says so (once each time, its thousand would never catch up with a first load). A notification
is a hint: changes are handed out once every older transaction of the server has ended, which may be a moment later,
and a listener that was away got none. An entry says that a record changed, its row says how it stands: of two changes
of one record the older may come last. A cursor belongs to one server: after a dump was restored on another, begin anew.

Nothing here can stop a load: a day without a partition goes to the default one, the triggers act with their
owner's rights, and the table has no constraint that a change could fail.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import errors, sql
from psycopg.rows import class_row

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.errors import ChangesGone
from nexhealth_pipeline.warehouse.connect import driver_errors

__all__ = [
    "CHANNEL",
    "TRIGGERS",
    "ChangeRow",
    "attach_changes",
    "changes_since",
    "listen",
    "make_partitions",
    "now_cursor",
    "prune",
]

CHANNEL = "nexhealth_changes"
"""What to LISTEN to."""
_EVENTS = {
    "insert": "NEW TABLE AS changes_new",
    "update": "OLD TABLE AS changes_old NEW TABLE AS changes_new",
    "delete": "OLD TABLE AS changes_old",
}
TRIGGERS = tuple(f"nexhealth_changes_{event}" for event in _EVENTS)
"""Names of the triggers on each collection's table."""
_IDLE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """One change of one record, without anything of its content."""

    cursor: str
    """Where it stands in the feed: `changes_since` goes on after it."""
    collection: str
    institution_id: int
    id: int | None
    """The record's id; None where its table has none."""
    key: dict[str, Any] | None
    """Its primary key less the institution; None where that is the id alone."""
    version: datetime | None
    """Its `updated_at`, else when it was read, after the change."""
    at: datetime
    """When the change was written, in the time of the database."""
    kind: str
    """inserted, updated, deleted or revived."""
    cause: str
    """page, webhook, replay, absence, revival or manual."""
    run_id: str | None


def attach_changes(connection: psycopg.Connection, collection: Collection) -> None:
    """Put the triggers on the collection's table; the caller commits."""
    connection.execute(
        sql.SQL(";").join(
            sql.SQL(
                "CREATE OR REPLACE TRIGGER {} AFTER {} ON {} REFERENCING {}"
                " FOR EACH STATEMENT EXECUTE FUNCTION nexhealth_feed_changes()"
            ).format(sql.Identifier(name), sql.SQL(event), sql.Identifier(collection.table), sql.SQL(tables))
            for name, (event, tables) in zip(TRIGGERS, _EVENTS.items(), strict=True)
        )
    )


def make_partitions(connection: psycopg.Connection) -> list[str]:
    """Make the partitions of today and the next three days (UTC) where they are missing; returns their names.

    To be called in a transaction that holds no lock on a collection's table. Waits half a second at most for
    whoever reads the feed; until a partition is made, the default one takes its rows.
    """
    row = connection.execute("SELECT nexhealth_changes_ahead()").fetchone()
    return list(row[0]) if row else []


def prune(connection: psycopg.Connection, days: int) -> list[str]:
    """Remove changes of days that ended more than `days` days ago; returns the partitions dropped.

    To be called in a transaction of its own. Waits half a second at most for whoever uses the feed: a partition
    that cannot be dropped now is emptied, and dropped by the next call.
    """
    row = connection.execute("SELECT nexhealth_changes_prune(%s)", (days,)).fetchone()
    return list(row[0]) if row else []


def now_cursor(connection: psycopg.Connection) -> str:
    """The cursor of this moment: take it first, then read the tables, then follow the changes after it.

    Changes that were committed just before may be told again; none after it is left out.
    """
    with driver_errors("reading the change feed"):
        row = connection.execute("SELECT nexhealth_changes_now()").fetchone()
    assert row is not None
    return str(row[0])


def changes_since(connection: psycopg.Connection, cursor: str | None = None, most: int = 1000) -> list[ChangeRow]:
    """Up to `most` changes after `cursor` (None: from the oldest that is kept), oldest transaction first.

    The last one's `cursor` is the next to ask with, at once: there may be more. When there is none, keep the one you
    have. No change is left out that commits later than others, and changes of one transaction stay together and in
    order. Ask READ COMMITTED: in an older snapshot, what is removed since would be passed over unsaid. Raises
    ChangesGone where changes after the cursor are kept no more, ValueError for a cursor that is none.
    """
    with driver_errors("reading the change feed"), connection.cursor(row_factory=class_row(ChangeRow)) as reader:
        try:
            return reader.execute("SELECT * FROM nexhealth_changes_since(%s, %s)", (cursor, most)).fetchall()
        except errors.ObjectNotInPrerequisiteState:
            raise ChangesGone(
                "the change feed does not go back to this cursor: take one anew, then read the tables once"
            ) from None
        except errors.InvalidParameterValue:
            raise ValueError("not a cursor of the change feed") from None


def listen(connection: psycopg.Connection, *, idle_seconds: float = _IDLE_SECONDS) -> Iterator[frozenset[str]]:
    """Listen on `connection` (autocommit, used for nothing else) from now on; yields what may be worth reading.

    Each time the names of collections of which changes were committed, or nothing after `idle_seconds` of
    silence: read `changes_since` then as well, for changes that an older transaction held back.
    """
    with driver_errors("listening to the change feed"):
        connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
    return _notified(connection, idle_seconds)


def _notified(connection: psycopg.Connection, idle_seconds: float) -> Iterator[frozenset[str]]:
    while True:
        with driver_errors("listening to the change feed"):
            # All that came at once are given together.
            names = frozenset(one.payload for one in connection.notifies(timeout=idle_seconds, stop_after=1))
        yield names
