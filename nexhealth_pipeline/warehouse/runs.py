"""Which runs live: each holds a session advisory lock for as long as its process does.

A run that was killed leaves its rows open and its lock free; whoever starts next finds them so and
closes them as interrupted. Dagster's DefaultRunLauncher does not notice a dead worker by itself.
"""

import hashlib
import os
import socket
import threading

import psycopg

from nexhealth_pipeline.warehouse.connect import connect

__all__ = ["RunLock", "close_dead_runs", "close_if_dead", "is_dead", "is_elsewhere", "lock_key"]

_NO_LIMITS = "SELECT set_config('statement_timeout', '0', false), set_config('lock_timeout', '0', false)"
"""A role's own limits would end the wait for a lock that the server gives back within a minute, once it has noticed that the
connection before is gone."""


def lock_key(*parts: object) -> int:
    """A 64-bit advisory lock key for a name made of `parts`."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


class RunLock:
    """Holds the run's lock, and its row in `nexhealth_runs`, while in context."""

    def __init__(self, url: str, run_id: str) -> None:
        self.run_id = run_id
        self._url = url
        self._connection: psycopg.Connection | None = None
        self._guard = threading.Lock()

    def __enter__(self) -> "RunLock":
        self._take()
        return self

    def __exit__(self, *error: object) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def keep(self) -> None:
        """Take the lock again if the server dropped the connection (a restart of PostgreSQL)."""
        with self._guard:
            try:
                if self._connection is not None:
                    self._connection.execute("SELECT 1")
                    return
            except psycopg.OperationalError:
                pass
            self._take()

    def finish(self, status: str) -> None:
        """Close the run's row with `status` (succeeded, failed, cancelled), and log rows left open as failed."""
        self.keep()
        assert self._connection is not None
        # Both or neither: nobody looks again at the log rows of a run that is closed.
        with self._connection.transaction():
            self._connection.execute(
                "UPDATE nexhealth_runs SET status = %s, finished_at = clock_timestamp() WHERE run_id = %s",
                (status, self.run_id),
            )
            self._connection.execute(
                "UPDATE nexhealth_sync_logs SET status = 'failed', finished_at = clock_timestamp(),"
                " error = 'the run ended before this slice did' WHERE run_id = %s AND status = 'running'",
                (self.run_id,),
            )

    def _take(self) -> None:
        """Take the lock on a new connection, which counts as holding it only once it does."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        connection = connect(self._url, autocommit=True, application_name="nexhealth run lock")
        try:
            connection.execute(_NO_LIMITS)
            connection.execute("SELECT pg_advisory_lock(%s)", (lock_key("run", self.run_id),))
            connection.execute(
                "INSERT INTO nexhealth_runs (run_id, host, pid) VALUES (%s, %s, %s)"
                " ON CONFLICT (run_id) DO UPDATE SET host = excluded.host, pid = excluded.pid,"
                " status = 'running', finished_at = NULL",
                (self.run_id, socket.gethostname(), os.getpid()),
            )
        except BaseException:
            connection.close()
            raise
        self._connection = connection


def close_dead_runs(connection: psycopg.Connection) -> list[str]:
    """Mark runs whose lock is free, and their open log rows, as interrupted; returns their ids.

    `connection` must be in autocommit mode.
    """
    open_runs = [row[0] for row in connection.execute("SELECT run_id FROM nexhealth_runs WHERE finished_at IS NULL")]
    return [run_id for run_id in open_runs if close_if_dead(connection, run_id)]


def close_if_dead(connection: psycopg.Connection, run_id: str) -> bool:
    """Mark one run and its open log rows as interrupted if its lock is free; whether it was open and is closed now.

    `connection` must be in autocommit mode.
    """
    key = lock_key("run", run_id)
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone()
    if row is None or not row[0]:
        return False
    try:
        with connection.transaction():
            done = connection.execute(
                "UPDATE nexhealth_runs SET status = 'interrupted', finished_at = clock_timestamp()"
                " WHERE run_id = %s AND finished_at IS NULL",
                (run_id,),
            )
            connection.execute(
                "UPDATE nexhealth_sync_logs SET status = 'interrupted', finished_at = clock_timestamp(),"
                " error = 'the process ended without closing this row' WHERE run_id = %s AND status = 'running'",
                (run_id,),
            )
        return done.rowcount > 0
    finally:
        connection.execute("SELECT pg_advisory_unlock(%s)", (key,))


def is_elsewhere(connection: psycopg.Connection, run_id: str) -> bool:
    """Whether a run holds its lock in another database of the server, where another warehouse is."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
        " AND (classid::bigint << 32) | objid::bigint = %s"
        " AND database <> (SELECT oid FROM pg_database WHERE datname = current_database()))",
        (lock_key("run", run_id),),
    ).fetchone()
    return bool(row and row[0])


def is_dead(connection: psycopg.Connection, run_id: str) -> bool:
    """Whether no process holds the run's lock. `connection` must be in autocommit mode."""
    # Shared, so that two that ask at once do not take each other for the run; given back with the statement.
    row = connection.execute("SELECT pg_try_advisory_xact_lock_shared(%s)", (lock_key("run", run_id),)).fetchone()
    return bool(row and row[0])
