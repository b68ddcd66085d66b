"""Full reads of everything asked for ("sweeps"), so that a killed one is gone on with.

The first sync after a killed one takes it up, full or not, and closes it at its end: what was read
completely since the sweep began is not read again, and changes since then are asked for. Lists that
can only be read whole tell no changes, so those count as read for `SWEEP_LISTS` alone.
"""

from datetime import datetime, timedelta

import psycopg

__all__ = ["SWEEP_HOURS", "SWEEP_LISTS", "begin_sweep", "finish_sweep", "open_sweep"]

SWEEP_HOURS = 24
"""Older unfinished sweeps are begun anew, as unfinished passes are."""


SWEEP_LISTS = timedelta(hours=1)
"""So long after a sweep began, the lists it read that have no increment need not be read again."""


def open_sweep(connection: psycopg.Connection, mode: str, scope_hash: str) -> tuple[int, datetime] | None:
    """Id and begin (database clock) of the unfinished sweep of this scope, if there is one young enough."""
    row = connection.execute(
        "SELECT id, started_at FROM nexhealth_sweeps WHERE finished_at IS NULL AND mode = %s AND scope_hash = %s"
        # Later than now is by a clock that was ahead then: nothing would count as read since.
        " AND started_at BETWEEN clock_timestamp() - %s AND clock_timestamp() ORDER BY started_at DESC LIMIT 1",
        (mode, scope_hash, timedelta(hours=SWEEP_HOURS)),
    ).fetchone()
    return None if row is None else (row[0], row[1])


def begin_sweep(connection: psycopg.Connection, mode: str, scope_hash: str) -> tuple[int, datetime, bool]:
    """Take up the unfinished sweep of the same scope, or begin one; the caller commits.

    Returns its id, when it began (database clock) and whether it is an earlier one.
    """
    taken_up = open_sweep(connection, mode, scope_hash)
    if taken_up is not None:
        return *taken_up, True
    # One that is said to begin later than now would be taken up once that time has come.
    connection.execute(
        "UPDATE nexhealth_sweeps SET finished_at = clock_timestamp()"
        " WHERE finished_at IS NULL AND mode = %s AND scope_hash = %s AND started_at > clock_timestamp()",
        (mode, scope_hash),
    )
    row = connection.execute(
        "INSERT INTO nexhealth_sweeps (mode, scope_hash) VALUES (%s, %s) RETURNING id, started_at", (mode, scope_hash)
    ).fetchone()
    assert row is not None
    return row[0], row[1], False


def finish_sweep(connection: psycopg.Connection, sweep_id: int) -> None:
    """Note that a sweep ended by itself (with or without failures); the caller commits."""
    connection.execute("UPDATE nexhealth_sweeps SET finished_at = clock_timestamp() WHERE id = %s", (sweep_id,))
