"""Full reads of everything asked for ("sweeps"), so that a killed one is gone on with.

What was read completely since the sweep began is not read again when it is taken up.
"""

from datetime import datetime, timedelta

import psycopg

__all__ = ["SWEEP_HOURS", "begin_sweep", "finish_sweep"]

SWEEP_HOURS = 24
"""Older unfinished sweeps are begun anew, as unfinished passes are."""


def begin_sweep(connection: psycopg.Connection, mode: str, scope_hash: str) -> tuple[int, datetime, bool]:
    """Take up the unfinished sweep of the same scope, or begin one; the caller commits.

    Returns its id, when it began (database clock) and whether it is an earlier one.
    """
    row = connection.execute(
        "SELECT id, started_at FROM nexhealth_sweeps WHERE finished_at IS NULL AND mode = %s AND scope_hash = %s"
        " AND started_at > clock_timestamp() - %s ORDER BY started_at DESC LIMIT 1",
        (mode, scope_hash, timedelta(hours=SWEEP_HOURS)),
    ).fetchone()
    if row is not None:
        return row[0], row[1], True
    row = connection.execute(
        "INSERT INTO nexhealth_sweeps (mode, scope_hash) VALUES (%s, %s) RETURNING id, started_at", (mode, scope_hash)
    ).fetchone()
    assert row is not None
    return row[0], row[1], False


def finish_sweep(connection: psycopg.Connection, sweep_id: int) -> None:
    """Note that a sweep ended by itself (with or without failures); the caller commits."""
    connection.execute("UPDATE nexhealth_sweeps SET finished_at = clock_timestamp() WHERE id = %s", (sweep_id,))
