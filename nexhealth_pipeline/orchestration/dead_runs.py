"""Runs whose process is gone, told by their free lock, are failed in Dagster as well.

Dagster's DefaultRunLauncher does not notice a dead worker: such a run would stay "started" for ever.
Failing it lets the daemon repeat it (`run_retries`), unless a command started it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import psycopg

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.orchestration.jobs import CHANGES_JOB, PATIENT_JOB, SCOPE_JOBS
from nexhealth_pipeline.warehouse.runs import close_dead_runs, lock_key

__all__ = ["fail_dead_runs"]

_GRACE_SECONDS = 120.0
"""So long a run may be starting before it has a row of its own, or ending after that row was closed."""
_JOBS = {*SCOPE_JOBS.values(), CHANGES_JOB, PATIENT_JOB}
_ASSETS = {dg.AssetKey(one.table) for one in DECLARED if one.is_asset}
_LIVE = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def fail_dead_runs(instance: dg.DagsterInstance, connection: psycopg.Connection) -> list[str]:
    """Close dead runs in the warehouse and in Dagster; returns the ids of those failed in Dagster.

    `connection` must be in autocommit mode.
    """
    failed = []
    with _alone(connection):
        close_dead_runs(connection)
        for record in instance.get_run_records(dg.RunsFilter(statuses=_LIVE)):
            run = record.dagster_run
            if _is_ours(run) and _is_dead(connection, run.run_id, record.start_time):
                instance.report_run_failed(run, "the process of this run is gone (its lock is free)")
                failed.append(run.run_id)
    return failed


@contextmanager
def _alone(connection: psycopg.Connection) -> Iterator[None]:
    """Sensor, schedules and commands all look for dead runs; two at once would fail a run twice."""
    key = lock_key("dead runs")
    connection.execute("SELECT pg_advisory_lock(%s)", (key,))
    try:
        yield
    finally:
        connection.execute("SELECT pg_advisory_unlock(%s)", (key,))


def _is_ours(run: dg.DagsterRun) -> bool:
    """Whether the run is of a job of ours, or materializes assets of ours: other code may share the instance."""
    return run.job_name in _JOBS or bool(run.asset_selection and run.asset_selection <= _ASSETS)


def _is_dead(connection: psycopg.Connection, run_id: str, started: float | None) -> bool:
    row = connection.execute(
        "SELECT status = 'interrupted' OR finished_at < clock_timestamp() - make_interval(secs => %s)"
        " FROM nexhealth_runs WHERE run_id = %s",
        (_GRACE_SECONDS, run_id),
    ).fetchone()
    if row is not None:
        return bool(row[0])
    return started is not None and time.time() - started > _GRACE_SECONDS
