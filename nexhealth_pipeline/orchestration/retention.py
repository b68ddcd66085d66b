"""Retention of Dagster's own records: runs, their events and their logs go after some days, states stay.

Dagster removes old ticks by itself (`retention` in dagster.yaml) and nothing else, and deleting a run in Dagit makes
its partitions look never read. What a state is told by stays here, however old: the last event of each kind of every
asset and partition (a planned one only while nothing was materialized after it), the last result of every check, and
the runs that those belong to. Dynamic partitions, cursors and heartbeats are never touched.

It goes in small transactions that lock nothing but the rows they delete, so that runs write on undisturbed.
"""

import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import dagster as dg
import psycopg

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.orchestration.storage import dagster_folder
from nexhealth_pipeline.warehouse.connect import connect_to_dagster, driver_errors
from nexhealth_pipeline.warehouse.housekeeping import require_clock
from nexhealth_pipeline.warehouse.runs import lock_key

__all__ = ["Removed", "remove_old_records", "remove_void_checks"]

_BATCH = 2000
_VACUUM_ROWS = 10_000
"""So many deleted rows are made reusable at once, instead of when a fifth of the table is gone."""
_FOLDERS = ("compute_logs", "storage")
"""Where runs leave a folder each on this machine's disk. What others keep beside those, as assets of another code location
do in the second one, is theirs."""

# Its own statement, so that the events of the results that stay are known when events are removed.
_CHECKS = """
WITH gone AS (
    DELETE FROM asset_check_executions WHERE id IN (
        SELECT id FROM asset_check_executions c
        WHERE coalesce(evaluation_event_timestamp, create_timestamp) < %(before)s AND EXISTS (
            SELECT FROM asset_check_executions n
            WHERE n.asset_key = c.asset_key AND n.check_name = c.check_name AND n.id > c.id
                AND n.partition IS NOT DISTINCT FROM c.partition AND n.execution_status <> 'PLANNED')
        LIMIT %(batch)s)
    RETURNING id)
SELECT count(*) FROM gone
"""

_EVENTS = """
WITH chunk AS MATERIALIZED (
    SELECT id, run_id, asset_key, dagster_event_type AS kind, partition, timestamp < %(before)s AS old,
        timestamp > clock_timestamp() AT TIME ZONE 'UTC' AS ahead
    FROM event_logs WHERE id > %(after)s AND id < %(last)s ORDER BY id LIMIT %(batch)s
), gone AS (
    DELETE FROM event_logs e USING chunk c
    WHERE e.id = c.id AND c.old AND e.id <> ALL(%(kept)s) AND NOT EXISTS (
            SELECT FROM runs r WHERE r.run_id = c.run_id AND r.status NOT IN ('SUCCESS', 'FAILURE', 'CANCELED'))
        AND CASE WHEN c.asset_key IS NULL THEN true
            WHEN c.partition IS NULL THEN EXISTS (
                SELECT FROM event_logs n WHERE n.asset_key = c.asset_key AND n.dagster_event_type = c.kind
                    AND n.id > c.id AND n.partition IS NULL)
            ELSE EXISTS (
                SELECT FROM event_logs n WHERE n.asset_key = c.asset_key AND n.partition = c.partition AND n.id > c.id
                    AND n.dagster_event_type = c.kind)
              OR (c.kind = 'ASSET_MATERIALIZATION_PLANNED' AND EXISTS (
                SELECT FROM event_logs n WHERE n.asset_key = c.asset_key AND n.partition = c.partition AND n.id > c.id
                    AND n.dagster_event_type = 'ASSET_MATERIALIZATION')) END
    RETURNING e.id
), tags AS (
    DELETE FROM asset_event_tags t USING gone WHERE t.event_id = gone.id)
SELECT max(id), bool_or(old OR ahead), (SELECT count(*) FROM gone) FROM chunk
"""

_RUNS = """
WITH gone AS (
    DELETE FROM runs WHERE id IN (
        SELECT id FROM runs r
        WHERE status IN ('SUCCESS', 'FAILURE', 'CANCELED')
            AND coalesce(to_timestamp(end_time) AT TIME ZONE 'UTC', update_timestamp) < %(before)s
            AND NOT EXISTS (SELECT FROM event_logs e WHERE e.run_id = r.run_id)
            AND NOT EXISTS (SELECT FROM asset_keys a WHERE a.last_run_id = r.run_id)
            AND NOT EXISTS (SELECT FROM asset_check_executions c WHERE c.run_id = r.run_id)
        LIMIT %(batch)s)
    RETURNING run_id)
SELECT count(*) FROM gone
"""

_BACKFILLS = """
WITH gone AS (
    DELETE FROM bulk_actions WHERE id IN (
        SELECT id FROM bulk_actions b
        WHERE status NOT IN ('REQUESTED', 'CANCELING', 'FAILING') AND timestamp < %(before)s
            AND NOT EXISTS (SELECT FROM runs r WHERE r.backfill_id = b.key)
        LIMIT %(batch)s)
    RETURNING key
), tags AS (
    DELETE FROM backfill_tags t USING gone WHERE t.backfill_id = gone.key)
SELECT count(*) FROM gone
"""


# Of a run that was to read the asset as well: one that was to run checks only has failed to, which is to be seen.
_VOID_CHECKS = """
DELETE FROM asset_check_executions c USING runs r
WHERE c.execution_status = 'PLANNED' AND c.asset_key = ANY(%s)
    AND r.run_id = c.run_id AND r.status IN ('SUCCESS', 'FAILURE', 'CANCELED')
    AND EXISTS (SELECT FROM event_logs e WHERE e.run_id = c.run_id AND e.asset_key = c.asset_key
        AND e.dagster_event_type = 'ASSET_MATERIALIZATION_PLANNED')
"""

_NEEDED = """
SELECT run_id FROM runs WHERE run_id = ANY(%(found)s)
    AND NOT (status IN ('SUCCESS', 'FAILURE', 'CANCELED')
        AND coalesce(to_timestamp(end_time) AT TIME ZONE 'UTC', update_timestamp) < %(before)s)
"""


@dataclass(frozen=True, slots=True)
class Removed:
    """How much was removed."""

    events: int = 0
    check_results: int = 0
    runs: int = 0
    backfills: int = 0
    folders: int = 0
    """Folders of what runs printed, on this machine."""


def remove_void_checks(url: str) -> int:
    """Remove from Dagster's database at `url` the checks that ended runs were to run beside their assets; how many.

    No run of ours does that. What begins to read forgets them itself, but one that is canceled in the queue, or never
    starts, leaves them where a check's last result stands. Raises WarehouseError.
    """
    assets = [dg.AssetKey(one.table).to_string() for one in DECLARED if one.is_asset]
    with (
        connect_to_dagster(url, application_name="nexhealth retention") as connection,
        driver_errors("removing checks that were planned in vain"),
    ):
        there = connection.execute("SELECT to_regclass('asset_check_executions')").fetchone()
        return connection.execute(_VOID_CHECKS, (assets,)).rowcount if there and there[0] else 0


def remove_old_records(url: str, days: int, stop: threading.Event | None = None) -> Removed:
    """Remove what is older than `days` from Dagster's database at `url` and from this machine's folders.

    Does nothing while another process is at it. Once `stop` is set, the rest is left. Raises WarehouseError.
    """
    stop = stop or threading.Event()
    with (
        connect_to_dagster(url, application_name="nexhealth retention") as connection,
        driver_errors("removing Dagster's old records"),
    ):
        require_clock(connection)
        row = connection.execute(
            "SELECT pg_try_advisory_lock(%s),"
            " clock_timestamp() AT TIME ZONE 'UTC' - %s * interval '1 day', to_regclass('event_logs') IS NOT NULL",
            (lock_key("dagster retention"), days),
        ).fetchone()
        assert row is not None
        if not row[0] or not row[2]:
            return Removed()
        limits = {"before": row[1], "batch": _BATCH}
        check_results = _in_batches(connection, _CHECKS, limits, stop)
        events = _remove_events(connection, limits, stop)
        removed = Removed(
            events=events,
            check_results=check_results,
            runs=_in_batches(connection, _RUNS, limits, stop),
            backfills=_in_batches(connection, _BACKFILLS, limits, stop),
            folders=_remove_folders(connection, limits, days),
        )
        if events >= _VACUUM_ROWS and not stop.is_set():
            # Not truncated at the end: that would shut out whoever writes. Not parallel: before 17 that takes shared memory,
            # of which a container has 64 MB.
            connection.execute("VACUUM (TRUNCATE false, PARALLEL 0) event_logs, asset_event_tags")
    return removed


def _in_batches(connection: psycopg.Connection, statement: str, limits: dict[str, Any], stop: threading.Event) -> int:
    removed, last = 0, _BATCH
    while last == _BATCH and not stop.is_set():
        row = connection.execute(statement.encode(), limits).fetchone()
        last = row[0] if row else 0
        removed += last
    return removed


def _remove_events(connection: psycopg.Connection, limits: dict[str, Any], stop: threading.Event) -> int:
    """Walk through all events by their number, which follows time, until none of a batch is old.

    Nor later than now: those came while a host's clock was ahead, and behind them may be more that are old.
    """
    kept, last = _kept_of_checks(connection, limits), _newest(connection)
    removed, after = 0, 0
    while not stop.is_set():
        row = connection.execute(_EVENTS, {**limits, "after": after, "last": last, "kept": kept}).fetchone()
        if row is None or not row[1]:
            break
        after, removed = row[0], removed + row[2]
    return removed


def _kept_of_checks(connection: psycopg.Connection, limits: dict[str, Any]) -> list[int]:
    """Old events of the check results that stayed."""
    rows = connection.execute(
        "SELECT evaluation_event_storage_id FROM asset_check_executions WHERE evaluation_event_storage_id IS NOT NULL"
        " AND coalesce(evaluation_event_timestamp, create_timestamp) < %(before)s",
        limits,
    )
    return [row[0] for row in rows]


def _newest(connection: psycopg.Connection) -> int:
    """The newest event, which stays: Dagster's cursors must not find the log shorter than it was."""
    row = connection.execute("SELECT coalesce(max(id), 0) FROM event_logs").fetchone()
    return int(row[0]) if row else 0


def _remove_folders(connection: psycopg.Connection, limits: dict[str, Any], days: int) -> int:
    """Remove the folders that runs of that time left here; another machine removes its own.

    A run that goes on, or ended lately, keeps its folder: it writes there for days without changing the folder's time.
    """
    before = time.time() - days * 86400
    places = [dagster_folder() / name for name in _FOLDERS]
    old = [one for place in places if place.is_dir() for one in place.iterdir() if _is_of_an_old_run(one, before)]
    rows = connection.execute(_NEEDED.encode(), {**limits, "found": [one.name for one in old]})
    needed = {row[0] for row in rows}
    return sum(_remove_folder(one) for one in old if one.name not in needed)


def _is_of_an_old_run(folder: Path, before: float) -> bool:
    with suppress(ValueError, OSError):  # the name is no run's id, or another process removed it
        named = str(UUID(folder.name)) == folder.name
        return named and folder.is_dir() and not folder.is_symlink() and folder.stat().st_mtime < before
    return False


def _remove_folder(folder: Path) -> bool:
    with suppress(OSError):  # another process removed it, or may write where this one may not
        shutil.rmtree(folder)
        return True
    return False
