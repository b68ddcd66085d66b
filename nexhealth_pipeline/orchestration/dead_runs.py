"""Runs whose process is gone, told by their free lock, are failed in Dagster as well.

Dagster's DefaultRunLauncher does not notice a dead worker: such a run would stay "started" for ever.
"""

import time

import dagster as dg
import psycopg

from nexhealth_pipeline.orchestration.jobs import CHANGES_JOB, PATIENT_JOB, SCOPE_JOBS
from nexhealth_pipeline.warehouse.runs import close_dead_runs

__all__ = ["fail_dead_runs"]

_GRACE_SECONDS = 120.0
"""A run without a row of its own may still be starting for so long."""
_OURS = {*SCOPE_JOBS.values(), CHANGES_JOB, PATIENT_JOB, "__ASSET_JOB"}
_LIVE = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def fail_dead_runs(instance: dg.DagsterInstance, connection: psycopg.Connection) -> list[str]:
    """Close dead runs in the warehouse and in Dagster; returns the ids of those failed in Dagster."""
    close_dead_runs(connection)
    failed = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=_LIVE)):
        run = record.dagster_run
        if run.job_name in _OURS and _is_dead(connection, run.run_id, record.start_time):
            instance.report_run_failed(run, "the process of this run is gone (its lock is free)")
            failed.append(run.run_id)
    return failed


def _is_dead(connection: psycopg.Connection, run_id: str, started: float | None) -> bool:
    row = connection.execute(
        "SELECT finished_at IS NOT NULL AND status = 'interrupted' FROM nexhealth_runs WHERE run_id = %s", (run_id,)
    ).fetchone()
    if row is not None:
        return bool(row[0])
    return started is not None and time.time() - started > _GRACE_SECONDS
