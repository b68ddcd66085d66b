"""Runs whose process is gone, told by their free lock, are ended in Dagster as well.

Dagster's DefaultRunLauncher does not notice a dead worker: such a run would stay "started" for ever.
Failing it lets the daemon repeat it (`run_retries`), unless a command started it. One that somebody was
ending is canceled instead, which nothing repeats; a code server that is still there is quicker, and fails it.

Two warehouses on one server may share Dagster's database: a run of the other one is left to that.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import psycopg
from dagster._core.events import RunFailureReason
from dagster._core.storage.tags import RUN_FAILURE_REASON_TAG

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.orchestration.names import (
    CHANGES_JOB,
    CHECKS_JOB,
    EVENTS_ASSET,
    PATIENT_JOB,
    SCOPE_JOBS,
    WEBHOOK_JOBS,
)
from nexhealth_pipeline.warehouse.runs import close_dead_runs, close_if_dead, is_elsewhere, lock_key

__all__ = ["end_dead_runs", "in_the_way", "met_no_error"]

_GRACE_SECONDS = 120.0
"""So long a run may be starting before it has a row of its own, or ending after that row was closed."""
_SHORT_GRACE_SECONDS = 30.0
"""So long a run gets where nothing is lost if two go on side by side: a new one is not kept waiting for long."""
_ENDING_SECONDS = 10.0
"""So long a run may take from giving its lock back until Dagster knows that it has ended."""
_JOBS = {*SCOPE_JOBS.values(), CHANGES_JOB, CHECKS_JOB, PATIENT_JOB, *WEBHOOK_JOBS}
_ASSETS = {*(dg.AssetKey(one.table) for one in DECLARED if one.is_asset), dg.AssetKey(EVENTS_ASSET)}
_ERRORS = {
    one.value
    for one in (
        RunFailureReason.STEP_FAILURE,
        RunFailureReason.RUN_EXCEPTION,
        RunFailureReason.JOB_INITIALIZATION_FAILURE,
    )
}
"""Reasons of runs that failed by themselves."""
_FROM_UI = "dagster/from_ui"
"""Dagit puts it on each run that it launches, and few of those go on at once (`dagster.yaml`)."""
_LIVE = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_COMING = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING]


def end_dead_runs(instance: dg.DagsterInstance, connection: psycopg.Connection) -> list[str]:
    """Close dead runs in the warehouse and in Dagster; returns the ids of those ended in Dagster.

    `connection` must be in autocommit mode.
    """
    with _alone(connection):
        close_dead_runs(connection)
    found = {run.run_id for run in _dead(instance, connection)}
    if not all(_has_row(connection, run_id) for run_id in found):
        # Perhaps of another warehouse, and giving its lock back as it ends. Nobody else waits for that.
        time.sleep(_ENDING_SECONDS)
    with _alone(connection):
        dead = [run for run in _dead(instance, connection) if run.run_id in found] if found else []
        for run in dead:
            _end(instance, run)
    return [run.run_id for run in dead]


def _dead(instance: dg.DagsterInstance, connection: psycopg.Connection) -> list[dg.DagsterRun]:
    """Runs of ours that Dagster takes for living, and nobody lives by."""
    records = instance.get_run_records(dg.RunsFilter(statuses=_LIVE))
    ours = [one for one in records if _is_ours(one.dagster_run)]
    return [
        one.dagster_run for one in ours if _is_dead(connection, one.dagster_run.run_id, one.start_time, _GRACE_SECONDS)
    ]


def _has_row(connection: psycopg.Connection, run_id: str) -> bool:
    return connection.execute("SELECT 1 FROM nexhealth_runs WHERE run_id = %s", (run_id,)).fetchone() is not None


def in_the_way(instance: dg.DagsterInstance, connection: psycopg.Connection, job: str) -> dg.DagsterRun | None:
    """The run of `job` that a new one should wait for, or None.

    One that somebody launched in Dagit and that waits in the queue is not: it may do so for days, behind long ones of
    theirs, and a new one need not.
    A run whose process was killed is ended here, so that the next one need not wait for anybody to notice.
    One that never starts, or whose process went before it held its lock, cannot be told from a slow one: it is
    in the way for a short while only, and twice as long with each that is passed over, so that a slow machine is not
    filled with them. Whoever started it fails it, or Dagster's monitor. `connection` must be in autocommit mode.
    """
    grace = _SHORT_GRACE_SECONDS
    records = instance.get_run_records(dg.RunsFilter(job_name=job, statuses=[*_COMING, *_LIVE]), ascending=True)
    for record in records:
        run = record.dagster_run
        if run.status is dg.DagsterRunStatus.QUEUED:
            if _FROM_UI in run.tags:
                continue
            return run
        if run.status in _LIVE:
            if _was_killed(instance, connection, run) or is_elsewhere(connection, run.run_id):
                continue
            passed_over = _is_dead(connection, run.run_id, record.start_time, grace)
        else:
            passed_over = time.time() - record.update_timestamp.timestamp() > grace
        if not passed_over:
            return run
        grace *= 2
    return None


def met_no_error(run: dg.DagsterRun) -> bool:
    """Whether a run failed because its process is gone or never came: then Dagster knows no reason, or another one."""
    return run.status is dg.DagsterRunStatus.FAILURE and run.tags.get(RUN_FAILURE_REASON_TAG) not in _ERRORS


def _was_killed(instance: dg.DagsterInstance, connection: psycopg.Connection, run: dg.DagsterRun) -> bool:
    """End the run if it held its lock and holds it no more, without having come to its end."""
    with _alone(connection):
        current = instance.get_run_by_id(run.run_id)  # another tick may have been here
        close_if_dead(connection, run.run_id)
        if not _is_interrupted(connection, run.run_id):
            return False
        if current is not None and current.status in _LIVE:
            _end(instance, current)
        return True


def _end(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    message = "the process of this run is gone (its lock is free)"
    if run.status is dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, message)
    else:
        instance.report_run_failed(run, message)


def _is_interrupted(connection: psycopg.Connection, run_id: str) -> bool:
    row = connection.execute("SELECT status FROM nexhealth_runs WHERE run_id = %s", (run_id,)).fetchone()
    return row is not None and row[0] == "interrupted"


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
    """Whether the run is of a job of ours, or of assets of ours or their checks: other code may share the instance."""
    chosen = {*(run.asset_selection or ()), *(one.asset_key for one in run.asset_check_selection or ())}
    return run.job_name in _JOBS or (bool(chosen) and chosen <= _ASSETS)


def _is_dead(connection: psycopg.Connection, run_id: str, started: float | None, grace: float) -> bool:
    row = connection.execute(
        "SELECT status = 'interrupted' OR finished_at < clock_timestamp() - make_interval(secs => %s)"
        " FROM nexhealth_runs WHERE run_id = %s",
        (grace, run_id),
    ).fetchone()
    if row is not None:
        return bool(row[0])
    return started is not None and time.time() - started > grace and not is_elsewhere(connection, run_id)
