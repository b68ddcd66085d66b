"""A Dagster database after nights of a practice with many locations: what its pages and ticks have to carry.

The rows are copies of one real run's and one real event's of each asset, written by SQL, since 30 nights of real
runs would take a day: keys, runs, planned and finished partitions of every asset, as the nightly schedule leaves them;
and the ticks that Dagster keeps.
"""

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from unittest.mock import patch

import dagster as dg
import psycopg
from dagster._core.definitions.selector import InstigatorSelector
from dagster._core.events import (
    AssetMaterializationPlannedData,
    DagsterEvent,
    DagsterEventType,
    StepMaterializationData,
)
from dagster._core.scheduler.instigation import InstigatorType, TickData, TickStatus

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.definitions import defs
from nexhealth_pipeline.orchestration.assets import collections_in, step_name
from nexhealth_pipeline.orchestration.names import SCOPE_JOBS
from nexhealth_pipeline.orchestration.partitions import INSTITUTIONS, LOCATIONS, add_keys
from nexhealth_pipeline.sync.months import month_keys

__all__ = ["NIGHT", "Size", "fill"]

NIGHT = "00000000-0000-4000-8000-000000000001"
"""Id of the last night's run over all locations."""
_DAY = 24 * 3600

_LOCATIONS_OF_ONE = 50
"""Locations an institution has."""
_METADATA = {
    "pages": 3, "records_read": 2000, "inserted": 10, "updated": 12, "unchanged": 1978, "quarantined": 0,
    "tombstoned": 0, "requests": 3, "retries": 0, "throttled_seconds": 0.0, "bytes": 1_000_000, "seconds": 1.234,
    "status": "succeeded", "as_of": dg.MetadataValue.timestamp(datetime(2026, 1, 1, tzinfo=UTC)),
    "location": "Practice (practice-1.1)", "dagster/partition_row_count": 2000,
}  # fmt: skip
"""What a materialization of a slice says, in size and kind."""


_KEY = "@@"
"""Stands for the partition in an event that is to be copied."""
_COPIES = """
WITH template AS (
    DELETE FROM event_logs WHERE id = (SELECT max(id) FROM event_logs WHERE run_id = %(run)s) RETURNING *
)
INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
SELECT run_id, replace(event, '"@@"', coalesce(to_json(key)::text, 'null')), dagster_event_type,
       %(at)s::timestamp + number * interval '20 ms', step_key, asset_key, key
FROM template, unnest(%(keys)s::text[]) WITH ORDINALITY AS keys (key, number)
"""
"""Copies of the run's last event, one a partition, in its place."""
_TAGS = """
INSERT INTO asset_event_tags (event_id, asset_key, key, value, event_timestamp)
SELECT id, asset_key, 'dagster/partition/' || dimension, split_part(partition, '|', place), timestamp
FROM event_logs, (VALUES ('location', 1), ('month', 2)) AS dimensions (dimension, place) WHERE run_id = %(run)s
"""
_TICKS = """
INSERT INTO job_ticks (job_origin_id, selector_id, status, type, timestamp, tick_body)
SELECT job_origin_id, selector_id, status, type, timestamp - ago * interval '1 second',
       replace(tick_body, %(at)s || '.0', (%(at)s - ago) || '.0')
FROM job_ticks, generate_series(%(apart)s, %(back)s, %(apart)s) ago WHERE id = %(tick)s
"""
"""Copies of a tick, one each so many seconds back in time."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: locations, and nights of history."""

    locations: int
    nights: int


def fill(environment: Mapping[str, str], url: str, size: Size) -> int:
    """Write it into the instance that a process with this environment has, whose database is at `url`; how many events."""
    with (
        patch.dict(os.environ, environment, clear=True),
        dg.DagsterInstance.get() as instance,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        return _fill(instance, connection, size)


def _fill(instance: dg.DagsterInstance, connection: psycopg.Connection, size: Size) -> int:
    institutions = [f"practice-{number}" for number in range(-(-size.locations // _LOCATIONS_OF_ONE))]
    locations = [f"{institutions[number // _LOCATIONS_OF_ONE]}.{number + 1}" for number in range(size.locations)]
    add_keys(instance, INSTITUTIONS, institutions)
    add_keys(instance, LOCATIONS, locations)
    months = [f"{location}|{month}" for location in locations for month in month_keys(datetime.now(UTC).date())]
    written = 0
    for night in range(size.nights):
        at = datetime.now(UTC) - timedelta(days=size.nights - night)
        written += _run(instance, connection, Scope.PRACTICE, [None], at)
        written += _run(instance, connection, Scope.INSTITUTION, institutions, at)
        last = night == size.nights - 1
        written += _run(instance, connection, Scope.LOCATION, locations, at, run_id=NIGHT if last else None)
        if night == 0:
            written += _run(instance, connection, Scope.LOCATION_MONTH, months, at)
    _ticks(instance, connection, size.nights)
    connection.execute("VACUUM ANALYZE")
    return written


def _ticks(instance: dg.DagsterInstance, connection: psycopg.Connection, nights: int) -> None:
    """Those of schedules, one a night, and of sensors that found nothing to do: a day of them is kept."""
    repository = defs.get_repository_def()
    kinds = [(one.name, InstigatorType.SCHEDULE, _DAY, nights * _DAY) for one in repository.schedule_defs]
    kinds += [
        (one.name, InstigatorType.SENSOR, one.minimum_interval_seconds or 30, _DAY) for one in repository.sensor_defs
    ]
    at = int(time.time())
    for name, kind, apart, back in kinds:
        selector = InstigatorSelector(location_name="nexhealth_pipeline", repository_name="__repository__", name=name)
        asked = {"run_ids": [NIGHT]} if kind is InstigatorType.SCHEDULE else {"skip_reason": "nothing to do"}
        status = TickStatus.SUCCESS if kind is InstigatorType.SCHEDULE else TickStatus.SKIPPED
        tick = instance.create_tick(
            TickData(
                name, name, kind, status, float(at), selector_id=selector.get_id(), end_timestamp=float(at), **asked
            )
        )
        connection.execute(_TICKS, {"at": at, "apart": apart, "back": back - apart, "tick": tick.tick_id})


def _run(
    instance: dg.DagsterInstance,
    connection: psycopg.Connection,
    scope: Scope,
    keys: Iterable[str | None],
    at: datetime,
    *,
    run_id: str | None = None,
) -> int:
    """One succeeded run that planned and materialized `keys` of every asset of `scope`; how many events that is."""
    job = defs.resolve_job_def(SCOPE_JOBS[scope])
    run = instance.create_run_for_job(job, run_id=run_id, status=dg.DagsterRunStatus.SUCCESS)
    connection.execute("DELETE FROM event_logs WHERE run_id = %s", (run.run_id,))  # planned, of no partition
    written = 0
    of_assets = [
        _events(collection.table, run, step_name(scope), partitioned=scope is not Scope.PRACTICE)
        for collection in collections_in(scope)
    ]
    for event in chain.from_iterable(zip(*of_assets, strict=True)):  # all is planned before anything is read
        instance.report_dagster_event(event, run.run_id)
        values = {"keys": list(keys), "run": run.run_id, "at": at.replace(tzinfo=None)}
        written += connection.execute(_COPIES, values).rowcount
    if scope is Scope.LOCATION_MONTH:
        connection.execute(_TAGS, {"run": run.run_id})
    ended = DagsterEvent(DagsterEventType.RUN_SUCCESS.value, run.job_name, message="Finished execution of run.")
    instance.report_dagster_event(ended, run.run_id)
    connection.execute(
        "UPDATE runs SET create_timestamp = %(at)s, update_timestamp = %(at)s, start_time = extract(epoch FROM %(at)s),"
        " end_time = extract(epoch FROM %(at)s) + 900 WHERE run_id = %(run)s",
        {"at": at.replace(tzinfo=None), "run": run.run_id},
    )
    return written + 1


def _events(asset: str, run: dg.DagsterRun, step: str, *, partitioned: bool) -> list[DagsterEvent]:
    key, partition = dg.AssetKey(asset), _KEY if partitioned else None
    planned = AssetMaterializationPlannedData(key, partition=partition, partitions_subset=None)
    done = StepMaterializationData(dg.AssetMaterialization(key, partition=partition, metadata=_METADATA))
    kind = DagsterEventType.ASSET_MATERIALIZATION.value
    return [
        DagsterEvent.build_asset_materialization_planned_event(run.job_name, step, planned),
        DagsterEvent(kind, run.job_name, event_specific_data=done, step_key=step),
    ]
