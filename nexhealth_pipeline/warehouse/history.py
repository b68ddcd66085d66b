"""`nexhealth_history`: every version of a row that was superseded, and why.

The API holds only "now", so what is overwritten tonight is lost for good. A statement-level trigger on every
collection's table keeps the versions that an UPDATE replaced, whoever made it, in its own transaction; a
change of times of synchronisation alone is none. Migration 0002 holds the table and the functions, 0014 the one that
reads the copy as it stood (`nexhealth_asof(collection, at, by, ids)`); this module puts the trigger on tables, makes
partitions ahead of time, and says the cause of a transaction's changes.
"""

from enum import StrEnum

import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection

__all__ = ["FIRST_SEEN", "TRIGGER", "Cause", "attach_history", "make_partitions", "state_cause"]

TRIGGER = "nexhealth_history"
"""Name of the trigger on each collection's table."""
FIRST_SEEN = "first_seen_at"
"""Column of each collection's table: without it, a change of `updated_at` alone would forget when a row came."""
_FIRST_SEEN_DOC = "When this row was first stored; null = before this was noted. PHI class: none."


class Cause(StrEnum):
    """What a transaction's changes come from; absence and revival are told from the rows, all else is manual."""

    PAGE = "page"
    """A read of the API."""
    WEBHOOK = "webhook"
    """An event that NexHealth sent."""
    REPLAY = "replay"
    """An event that was stored before and is applied again."""


def state_cause(connection: psycopg.Connection, cause: Cause, *, run_id: str | None = None) -> None:
    """Say what changes of the running transaction come from; it ends with the transaction. Does nothing outside of one."""
    connection.execute(
        "SELECT set_config('nexhealth.cause', %s, true), set_config('nexhealth.run_id', %s, true)",
        (cause.value, run_id or ""),
    )


def attach_history(connection: psycopg.Connection, collection: Collection) -> None:
    """Put the trigger, and the column it needs, on the collection's table; the caller commits."""
    connection.execute(
        sql.SQL(
            "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {first_seen} timestamptz;"
            # Set afterwards: a default that is given with the column would rewrite the table, and lie about old rows.
            " ALTER TABLE {table} ALTER COLUMN {first_seen} SET DEFAULT clock_timestamp();"
            " COMMENT ON COLUMN {table}.{first_seen} IS {doc};"
            " CREATE OR REPLACE TRIGGER {trigger} AFTER UPDATE ON {table}"
            " REFERENCING OLD TABLE AS history_old NEW TABLE AS history_new"
            " FOR EACH STATEMENT EXECUTE FUNCTION nexhealth_keep_history()"
        ).format(
            table=sql.Identifier(collection.table),
            first_seen=sql.Identifier(FIRST_SEEN),
            doc=sql.Literal(_FIRST_SEEN_DOC),
            trigger=sql.Identifier(TRIGGER),
        )
    )


def make_partitions(connection: psycopg.Connection) -> list[str]:
    """Make the partitions of this month and the next three where they are missing; returns their names.

    To be called in a transaction that holds no lock on a collection's table. Waits half a second at most for whoever
    reads or writes the default partition, which takes the rows of one that is missing.
    """
    row = connection.execute("SELECT nexhealth_history_ahead()").fetchone()
    return list(row[0]) if row else []
