"""`nexhealth_sync_logs`: the history a person reads. Never read to decide anything.

It is kept by month of its rows' begin; migration 0006 holds the table and its functions. Of months that are over
for long only sums a day remain, in `nexhealth_sync_log_days`.
"""

from dataclasses import dataclass, fields
from datetime import datetime

import psycopg

from nexhealth_pipeline.errors import PipelineError

__all__ = ["Counts", "SyncLog", "make_partitions", "prune"]


@dataclass(slots=True)
class Counts:
    """What reading a slice did and cost. Records and rows are counts, `bytes` are of bodies as received."""

    pages: int = 0
    records_read: int = 0
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    quarantined: int = 0
    tombstoned: int = 0
    requests: int = 0
    retries: int = 0
    throttled_seconds: float = 0.0
    bytes: int = 0

    @classmethod
    def of(cls, error: PipelineError) -> "Counts":
        """What the read cost that `error` ended."""
        return cls(
            requests=error.requests,
            retries=error.retries,
            throttled_seconds=error.throttled_seconds,
            bytes=error.bytes,
        )

    def add(self, other: "Counts") -> None:
        """Add `other` to this."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def as_dict(self) -> dict[str, int | float]:
        """The counts by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class SyncLog:
    """The log row of one slice in one run."""

    def __init__(self, row_id: int, started_at: datetime) -> None:
        self.row_id, self.started_at = row_id, started_at

    @classmethod
    def open(
        cls,
        connection: psycopg.Connection,
        *,
        run_id: str,
        asset: str,
        collection: str,
        institution_id: int | None,
        location_id: int | None,
        partition_key: str | None,
        mode: str,
    ) -> "SyncLog":
        """Write a row that says running; the caller commits."""
        row = connection.execute(
            "INSERT INTO nexhealth_sync_logs (run_id, asset, collection, institution_id, location_id, partition_key,"
            " mode, status) VALUES (%s, %s, %s, %s, %s, %s, %s, 'running') RETURNING id, started_at",
            (run_id, asset, collection, institution_id, location_id, partition_key, mode),
        ).fetchone()
        assert row is not None
        return cls(row[0], row[1])

    def progress(self, connection: psycopg.Connection, counts: Counts) -> None:
        """Bring the counts up to date; the caller commits them with the rows they count."""
        names = [field.name for field in fields(Counts)]
        assignments = ", ".join(f"{name} = %({name})s" for name in names)
        connection.execute(
            f"UPDATE nexhealth_sync_logs SET {assignments} WHERE id = %(id)s AND started_at = %(at)s",  # noqa: S608 - names of a dataclass
            {**counts.as_dict(), "id": self.row_id, "at": self.started_at},
        )

    def resumed(self, connection: psycopg.Connection, page: int) -> None:
        """Remember that the pass went on after `page` pages of an earlier run."""
        connection.execute(
            "UPDATE nexhealth_sync_logs SET resumed_at_page = %s WHERE id = %s AND started_at = %s AND resumed_at_page IS NULL",
            (page, self.row_id, self.started_at),
        )

    def finish(
        self,
        connection: psycopg.Connection,
        status: str,
        counts: Counts,
        *,
        error: str | None = None,
        watermark_from: datetime | None = None,
        watermark_to: datetime | None = None,
    ) -> None:
        """Close the row with `status`; the caller commits."""
        self.progress(connection, counts)
        connection.execute(
            "UPDATE nexhealth_sync_logs SET status = %s, finished_at = clock_timestamp(), error = %s,"
            " watermark_from = %s, watermark_to = %s WHERE id = %s AND started_at = %s",
            (status, error, watermark_from, watermark_to, self.row_id, self.started_at),
        )


def make_partitions(connection: psycopg.Connection) -> list[str]:
    """Make the partitions of this month and the next three (UTC) where they are missing; returns their names.

    To be called in a transaction of its own. Waits half a second at most for whoever writes to the default
    partition, which takes the rows of a month that has none.
    """
    row = connection.execute("SELECT nexhealth_sync_logs_ahead()").fetchone()
    return list(row[0]) if row else []


def prune(connection: psycopg.Connection, months: int) -> list[str]:
    """Replace the rows of months that ended more than `months` months ago by sums; returns the partitions dropped.

    To be called in a transaction of its own. Waits half a second at most for whoever uses the log: a partition
    that cannot be dropped now is emptied, and dropped by the next call.
    """
    row = connection.execute("SELECT nexhealth_sync_logs_prune(%s)", (months,)).fetchone()
    return list(row[0]) if row else []
