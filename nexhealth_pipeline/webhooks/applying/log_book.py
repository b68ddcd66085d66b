"""Log rows of a run of events: one a collection, institution and cause, brought up to date with each batch."""

import psycopg

from nexhealth_pipeline.warehouse.sync_log import Counts, SyncLog
from nexhealth_pipeline.webhooks.applying.batches import Batch, Loaded

__all__ = ["LogBook"]

_Key = tuple[str, int, str]


class LogBook:
    """Writes `nexhealth_sync_logs` in the transactions of the rows it speaks of."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._rows: dict[_Key, SyncLog] = {}
        self._counts: dict[_Key, Counts] = {}
        self._opened: dict[_Key, SyncLog] = {}

    def write(self, connection: psycopg.Connection, batch: Batch) -> None:
        """Count what a batch did; the caller commits, then calls `committed`."""
        self._opened = {}
        for loaded in batch.loaded:
            key = _key(loaded)
            row = self._rows.get(key)
            if row is None:
                row = self._opened[key] = self._again(connection, loaded) or self._open(connection, loaded)
            row.progress(connection, self._sum(key, loaded))

    def committed(self, batch: Batch) -> None:
        """What was written last is durable."""
        self._rows |= self._opened
        for loaded in batch.loaded:
            self._counts[_key(loaded)] = self._sum(_key(loaded), loaded)

    def close(self, connection: psycopg.Connection) -> None:
        """Say that every collection's events have been applied."""
        for key, row in self._rows.items():
            row.finish(connection, "succeeded", self._counts[key])

    def _sum(self, key: _Key, loaded: Loaded) -> Counts:
        counts = Counts()
        counts.add(self._counts.get(key, Counts()))
        counts.add(loaded.done.counts)
        return counts

    def _again(self, connection: psycopg.Connection, loaded: Loaded) -> SyncLog | None:
        """The row that an earlier part of the same run has written; it goes on counting."""
        names = list(Counts().as_dict())
        row = connection.execute(
            f"UPDATE nexhealth_sync_logs SET status = 'running', finished_at = NULL"  # noqa: S608 - names of a dataclass
            " WHERE run_id = %s AND collection = %s AND institution_id = %s AND mode = %s AND finished_at IS NOT NULL"
            f" RETURNING id, started_at, {', '.join(names)}",
            (self._run_id, loaded.collection.name, loaded.institution.id, loaded.cause.value),
        ).fetchone()
        if row is None:
            return None
        self._counts[_key(loaded)] = Counts(**dict(zip(names, row[2:], strict=True)))
        return SyncLog(row[0], row[1])

    def _open(self, connection: psycopg.Connection, loaded: Loaded) -> SyncLog:
        return SyncLog.open(
            connection,
            run_id=self._run_id,
            asset=loaded.collection.table,
            collection=loaded.collection.name,
            institution_id=loaded.institution.id,
            location_id=None,
            partition_key=loaded.institution.subdomain if loaded.collection.scope == "institution" else None,
            mode=loaded.cause.value,
        )


def _key(loaded: Loaded) -> _Key:
    return loaded.collection.name, loaded.institution.id, loaded.cause.value
