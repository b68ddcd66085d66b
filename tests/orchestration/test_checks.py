"""The checks in Dagster: one run, outside of every sync, whose results hold ids and counts only."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.events import JobFailureData, RunFailureReason

from nexhealth_pipeline.definitions import defs
from nexhealth_pipeline.orchestration import dead_runs
from nexhealth_pipeline.orchestration.checks import CHECKS_SENSOR
from nexhealth_pipeline.orchestration.dead_runs import end_dead_runs
from nexhealth_pipeline.orchestration.names import CHECKS_JOB, EVENTS_ASSET, SCOPE_JOBS
from nexhealth_pipeline.orchestration.resource import NexHealthResource
from nexhealth_pipeline.warehouse.checks import CHECKS
from tests.webhooks.kit import free_locks

from .practices import add_locations

REPO = Path(__file__).resolve().parents[2]
REPOSITORY = defs.get_repository_def()
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@pytest.fixture
def warehouse(environment: dict[str, str]) -> Iterator[psycopg.Connection]:
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as db:
        yield db


def test_a_run_of_the_checks_that_hangs_is_ended_within_days() -> None:
    """While it goes on none other begins. A load may go on for as long as dagster.yaml lets all runs."""
    assert int(defs.resolve_job_def(CHECKS_JOB).tags["dagster/max_runtime"]) == 2 * 86400


def _patient(db: psycopg.Connection, institution: int, number: int, raw: str = "{}") -> None:
    db.execute(
        "INSERT INTO nexhealth_patients (institution_id, id, raw, synced_at, source_read_at, row_hash)"
        " VALUES (%s, %s, %s, now(), now(), '')",
        (institution, number, raw),
    )


def _evaluations(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str], Any]:
    return {(one.asset_key.to_user_string(), one.check_name): one for one in result.get_asset_check_evaluations()}


def test_no_sync_runs_a_check_and_the_job_of_the_checks_runs_them_all_in_one_step() -> None:
    """They must not slow a sync, nor hold one up, nor cost a night more than one run."""
    for name in SCOPE_JOBS.values():
        assert not defs.resolve_job_def(name).asset_layer.asset_graph.asset_check_keys
    job = defs.resolve_job_def(CHECKS_JOB)
    assert [node.name for node in job.nodes] == ["check_warehouse"]
    assert len(job.asset_layer.asset_graph.asset_check_keys) == len(CHECKS)
    graph = defs.resolve_asset_graph()
    checked = {key.asset_key for key in graph.asset_check_keys}
    assert checked == {*graph.materializable_asset_keys, dg.AssetKey(EVENTS_ASSET)}


def test_a_run_tells_every_check_and_fails_by_name_where_tenants_are_mixed(
    instance: dg.DagsterInstance, warehouse: psycopg.Connection
) -> None:
    """No key is needed: the warehouse alone is asked. Red, for whoever builds on the rows and looks; all else is told too."""
    add_locations(warehouse, 10, "acme", [1])
    add_locations(warehouse, 20, "bond", [2])
    _patient(warehouse, 10, 5, '{"institution_id": 10}')
    _patient(warehouse, 20, 6, '{"institution_id": 10, "first_name": "canary-5550100"}')
    result = defs.resolve_job_def(CHECKS_JOB).execute_in_process(
        instance=instance, raise_on_error=False, run_config=QUIET
    )
    found = _evaluations(result)
    assert len(found) == len(CHECKS)
    assert not result.success
    mixed = found["nexhealth_patients", "own_institution"]
    assert (mixed.passed, mixed.severity, mixed.blocking) == (False, dg.AssetCheckSeverity.ERROR, True)
    assert mixed.metadata["count"].value == 1
    assert mixed.metadata["institutions"].value == {"20": 1}
    assert mixed.metadata["sample_ids"].value == ["20/6"]
    late = found["nexhealth_operatories", "fresh"]
    assert (late.passed, late.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert set(late.metadata["details"].value) == {
        "acme.1 was never read completely",
        "bond.2 was never read completely",
    }
    assert found["nexhealth_patients", "no_orphans"].passed
    told = [str(entry) for entry in instance.all_logs(result.run_id)]
    assert "canary-5550100" not in "".join(told)
    assert any("nexhealth_patients: own_institution" in line for line in told)
    kept = warehouse.execute(
        "SELECT institution_id, faults FROM nexhealth_check_results"
        " WHERE (collection, check_name) = ('patients', 'own_institution') ORDER BY 1"
    ).fetchall()
    assert kept == [(0, 0), (10, 0), (20, 1)]


def test_one_check_can_be_run_alone_and_a_warning_fails_no_run(
    instance: dg.DagsterInstance, warehouse: psycopg.Connection
) -> None:
    """What a click in Dagit does."""
    add_locations(warehouse, 10, "acme", [1])
    key = dg.AssetCheckKey(dg.AssetKey("nexhealth_operatories"), "fresh")
    job = defs.resolve_job_def(CHECKS_JOB).get_subset(asset_check_selection={key})
    result = job.execute_in_process(instance=instance, run_config=QUIET)
    assert result.success
    assert [name for name, one in _evaluations(result).items() if not one.passed] == [
        ("nexhealth_operatories", "fresh")
    ]


def test_a_database_that_is_not_there_is_told_in_one_line(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hidden@127.0.0.1:1/none")
    result = defs.resolve_job_def(CHECKS_JOB).execute_in_process(
        instance=instance, raise_on_error=False, run_config=QUIET
    )
    told = "".join(str(entry) for entry in instance.all_logs(result.run_id))
    assert "DATABASE_URL" in told
    assert "hidden" not in told


def _sense(instance: dg.DagsterInstance) -> dg.RunRequest | str:
    sensor = REPOSITORY.get_sensor_def(CHECKS_SENSOR)
    context = dg.build_sensor_context(
        instance=instance, resources={"nexhealth": NexHealthResource()}, repository_def=REPOSITORY
    )
    data = sensor.evaluate_tick(context)
    return data.run_requests[0] if data.run_requests else str(data.skip_message)


def test_the_sensor_asks_once_after_the_syncs_have_ended(
    instance: dg.DagsterInstance, warehouse: psycopg.Connection
) -> None:
    """Checks in the middle of a night would find what has not been read yet."""
    assert _sense(instance) == "nothing was synced since the last checks"
    warehouse.execute(
        "INSERT INTO nexhealth_runs (run_id, host, pid, finished_at) VALUES ('w', 'h', 1, now());"
        " INSERT INTO nexhealth_sync_logs (run_id, asset, collection, mode, status)"
        " VALUES ('w', 'a', 'c', 'webhook', 'succeeded'), ('r1', 'a', 'c', 'full', 'succeeded');"
        " INSERT INTO nexhealth_check_results (collection, check_name, institution_id, severity, faults)"
        " VALUES ('webhook_events', 'nothing_waits', 0, 'warning', 0)"
    )
    assert _sense(instance) == "nothing was synced since the last checks"  # events were applied, the watchdog looked
    warehouse.execute("INSERT INTO nexhealth_runs (run_id, host, pid) VALUES ('r1', 'h', 1), ('r2', 'h', 1)")
    warehouse.execute("UPDATE nexhealth_runs SET finished_at = now(), status = 'succeeded' WHERE run_id = 'r1'")
    assert _sense(instance) == "a sync is going on"
    warehouse.execute("UPDATE nexhealth_runs SET finished_at = now(), status = 'failed'")
    assert isinstance(_sense(instance), dg.RunRequest)
    run = instance.create_run_for_job(defs.resolve_job_def(CHECKS_JOB), status=dg.DagsterRunStatus.STARTED)
    assert run.run_id in str(_sense(instance))
    instance.report_dagster_event(dg.DagsterEvent("PIPELINE_SUCCESS", CHECKS_JOB, message=""), run.run_id)
    _all_ran(warehouse, hours=0)
    assert _sense(instance) == "nothing was synced since the last checks"
    warehouse.execute("UPDATE nexhealth_runs SET finished_at = clock_timestamp()")
    assert _sense(instance) == "the checks ran in the last 6 hours"
    warehouse.execute("UPDATE nexhealth_check_results SET checked_at = checked_at - interval '7 hours'")
    assert isinstance(_sense(instance), dg.RunRequest)


def _all_ran(db: psycopg.Connection, *, hours: float) -> None:
    """Every check was run, that long ago."""
    with db.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO nexhealth_check_results (collection, check_name, institution_id, severity, faults, checked_at)"
            " VALUES (%s, %s, 0, 'warning', 0, now() - %s * interval '1 hour')",
            [(one.collection.name, one.rule.name, hours) for one in CHECKS],
        )


def test_one_check_that_somebody_clicks_is_no_run_of_them_all(
    instance: dg.DagsterInstance, warehouse: psycopg.Connection
) -> None:
    """It would put off those of a whole night."""
    _all_ran(warehouse, hours=7)
    _a_sync_has_ended(warehouse)
    clicked = (
        "UPDATE nexhealth_check_results SET checked_at = now() WHERE (collection, check_name) = ('patients', 'fresh')"
    )
    warehouse.execute(clicked)
    assert isinstance(_sense(instance), dg.RunRequest)
    warehouse.execute("UPDATE nexhealth_check_results SET checked_at = now()")
    assert _sense(instance) == "nothing was synced since the last checks"
    warehouse.execute("DELETE FROM nexhealth_check_results WHERE (collection, check_name) = ('patients', 'fresh')")
    assert isinstance(_sense(instance), dg.RunRequest), "a release brought it, and it was never run"


def test_checks_that_ran_by_a_clock_that_was_ahead_put_off_none(
    instance: dg.DagsterInstance, warehouse: psycopg.Connection
) -> None:
    """Risk: the database's clock was two months ahead for an hour, and for two months nobody learns what is wrong."""
    _all_ran(warehouse, hours=-60 * 24)
    _a_sync_has_ended(warehouse)
    assert isinstance(_sense(instance), dg.RunRequest)


def _end(instance: dg.DagsterInstance, reason: RunFailureReason | None, *, canceled: bool = False) -> dg.DagsterRun:
    """A run of the checks that ended without an answer; without a reason its process was found to be gone."""
    run = instance.create_run_for_job(defs.resolve_job_def(CHECKS_JOB), status=dg.DagsterRunStatus.STARTED)
    if canceled:
        instance.report_run_canceled(run)
    else:
        data = JobFailureData(error=None, failure_reason=reason) if reason else None
        instance.report_run_failed(run, "it failed", data)
    return run


def _later(monkeypatch: pytest.MonkeyPatch, hours: float) -> None:
    monkeypatch.setattr(time, "time", lambda: datetime.now(UTC).timestamp() + hours * 3600)


@pytest.mark.parametrize(("canceled", "words"), [(False, "failed"), (True, "was canceled")])
def test_a_run_that_ends_without_an_answer_is_followed_by_the_next_one_after_an_hour(
    instance: dg.DagsterInstance,
    warehouse: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    canceled: bool,
    words: str,
) -> None:
    """Else one would come every five minutes for ever, and again as soon as somebody has ended it."""
    _all_ran(warehouse, hours=7)
    _a_sync_has_ended(warehouse)
    run = _end(instance, RunFailureReason.STEP_FAILURE, canceled=canceled)
    assert str(_sense(instance)).startswith(f"run {run.run_id} of {CHECKS_JOB} {words}; the next one begins at ")
    _later(monkeypatch, 1.1)
    assert isinstance(_sense(instance), dg.RunRequest)
    _later(monkeypatch, -60 * 24)
    assert isinstance(_sense(instance), dg.RunRequest), "the clock by which it ended was two months ahead"
    _later(monkeypatch, 1.1)
    _end(instance, RunFailureReason.STEP_FAILURE)
    _later(monkeypatch, 1.6)
    assert "; the next one begins at " in str(_sense(instance)), "after a second one it takes twice as long"
    _later(monkeypatch, 3.2)
    assert isinstance(_sense(instance), dg.RunRequest)
    warehouse.execute("UPDATE nexhealth_check_results SET checked_at = clock_timestamp() + interval '1 minute'")
    assert _sense(instance) == "nothing was synced since the last checks"


def test_a_run_that_is_killed_is_followed_at_once_but_not_for_ever(
    instance: dg.DagsterInstance, warehouse: psycopg.Connection
) -> None:
    """A host that goes down is no fault of the checks; a run that is killed each time may take too much memory."""
    _all_ran(warehouse, hours=7)
    _a_sync_has_ended(warehouse)
    for _ in range(2):
        _end(instance, None)
        assert isinstance(_sense(instance), dg.RunRequest)
    third = _end(instance, None)
    assert str(_sense(instance)).startswith(f"run {third.run_id} of {CHECKS_JOB} failed; ")


def test_what_was_found_before_a_check_breaks_off_is_kept(
    instance: dg.DagsterInstance, warehouse: psycopg.Connection
) -> None:
    """A hundred answers are not to be lost for the one that cannot be had."""
    add_locations(warehouse, 10, "acme", [1])
    warehouse.execute(f"DROP TABLE {CHECKS[-1].collection.table} CASCADE")
    result = defs.resolve_job_def(CHECKS_JOB).execute_in_process(
        instance=instance, raise_on_error=False, run_config=QUIET
    )
    assert not result.success
    kept = warehouse.execute("SELECT DISTINCT collection, check_name FROM nexhealth_check_results").fetchall()
    assert (CHECKS[0].collection.name, CHECKS[0].rule.name) in kept
    assert (CHECKS[-1].collection.name, CHECKS[-1].rule.name) not in kept


def test_the_sensor_asks_once_a_day_where_nothing_is_synced_any_more(
    instance: dg.DagsterInstance, warehouse: psycopg.Connection
) -> None:
    """Without a key, or with the schedules off, nobody else would say that the copy grows old."""
    warehouse.execute(
        "INSERT INTO nexhealth_check_results (collection, check_name, institution_id, severity, faults, checked_at)"
        " VALUES ('patients', 'fresh', 0, 'warning', 0, now() - interval '23 hours')"
    )
    assert _sense(instance) == "nothing was synced since the last checks"
    warehouse.execute("INSERT INTO nexhealth_runs (run_id, host, pid) VALUES ('r', 'h', 1)")
    assert _sense(instance) == "a sync is going on"
    warehouse.execute("UPDATE nexhealth_check_results SET checked_at = checked_at - interval '1 hour'")
    assert isinstance(_sense(instance), dg.RunRequest), "a first sync may take days"


CHECKING = """
import dagster as dg
from nexhealth_pipeline.definitions import defs
with dg.DagsterInstance.get() as instance:
    defs.resolve_job_def("nexhealth_checks").execute_in_process(instance=instance)
"""


def _a_sync_has_ended(db: psycopg.Connection) -> None:
    db.execute(
        "INSERT INTO nexhealth_runs (run_id, host, pid, status, finished_at) VALUES ('r', 'h', 1, 'succeeded', now());"
        " INSERT INTO nexhealth_sync_logs (run_id, asset, collection, mode, status)"
        " VALUES ('r', 'a', 'c', 'full', 'succeeded')"
    )


def _locked_run(db: psycopg.Connection) -> str:
    """Id of the run that holds its lock, once there is one."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if row := db.execute("SELECT run_id FROM nexhealth_runs WHERE finished_at IS NULL").fetchone():
            return str(row[0])
        time.sleep(0.05)
    raise AssertionError("no run holds its lock")


def test_a_run_that_is_killed_is_failed_at_once_and_a_living_one_never(
    instance: dg.DagsterInstance,
    warehouse: psycopg.Connection,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would stay started for two days, in which no check runs; one that takes long must not be run twice."""
    monkeypatch.setattr(dead_runs, "_GRACE_SECONDS", -1.0)
    add_locations(warehouse, 10, "acme", [1])
    _a_sync_has_ended(warehouse)
    with psycopg.connect(environment["DATABASE_URL"]) as other:
        other.execute("LOCK TABLE nexhealth_patients IN ACCESS EXCLUSIVE MODE")  # the checks wait
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", CHECKING],
            env={**os.environ, "DAGSTER_HOME": str(REPO)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                run_id = _locked_run(warehouse)
                assert run_id in str(_sense(instance))
                assert end_dead_runs(instance, warehouse) == []
            finally:
                process.kill()
    free_locks(warehouse)
    assert isinstance(_sense(instance), dg.RunRequest)
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert (run.job_name, run.status) == (CHECKS_JOB, dg.DagsterRunStatus.FAILURE)
    assert run.tags["dagster/will_retry"] == "false"  # the sensor has asked for the next one
    assert end_dead_runs(instance, warehouse) == []
    assert defs.resolve_job_def(CHECKS_JOB).execute_in_process(instance=instance, run_config=QUIET).success
    statuses = warehouse.execute("SELECT status, count(*) FROM nexhealth_runs GROUP BY 1").fetchall()
    assert dict(statuses) == {"interrupted": 1, "succeeded": 2}


def test_a_run_whose_query_fails_leaves_a_failed_row_and_no_lock(
    instance: dg.DagsterInstance, warehouse: psycopg.Connection
) -> None:
    """It has come to its end: nobody may take it for one that was killed."""
    warehouse.execute("DROP TABLE nexhealth_check_results")
    result = defs.resolve_job_def(CHECKS_JOB).execute_in_process(
        instance=instance, raise_on_error=False, run_config=QUIET
    )
    assert not result.success
    assert warehouse.execute("SELECT run_id, status FROM nexhealth_runs").fetchall() == [(result.run_id, "failed")]
    free_locks(warehouse)
