"""Runs whose process is gone: failed once, and no living one with them."""

import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial

import dagster as dg
import psycopg
import pytest
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.execution.retries import auto_reexecution_should_retry_run

from nexhealth_pipeline.definitions import defs
from nexhealth_pipeline.orchestration import dead_runs
from nexhealth_pipeline.orchestration.dead_runs import end_dead_runs, in_the_way
from nexhealth_pipeline.warehouse.runs import RunLock

FAILED, STARTED = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.STARTED


@pytest.fixture
def db(environment: dict[str, str]) -> Iterator[psycopg.Connection]:
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        yield connection


@pytest.fixture(autouse=True)
def _ends_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_runs, "_ENDING_SECONDS", 0.0)


def _started(instance: dg.DagsterInstance, job: str = "nexhealth_locations", **tags: str) -> dg.DagsterRun:
    """A run that its process has told to be started."""
    run = instance.create_run_for_job(
        defs.resolve_job_def(job), run_id=str(uuid.uuid4()), status=dg.DagsterRunStatus.STARTING, tags=tags
    )
    event = dg.DagsterEvent("PIPELINE_START", job, message="")
    instance.report_dagster_event(event, run.run_id)
    return run


def _status(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status


def _row(db: psycopg.Connection, run: dg.DagsterRun, status: str = "running", finished: str | None = None) -> None:
    db.execute(
        "INSERT INTO nexhealth_runs (run_id, host, pid, status, finished_at)"
        " VALUES (%s, 'h', 1, %s, now() - %s::interval)",
        (run.run_id, status, finished),
    )


def test_a_run_whose_lock_is_free_is_failed_once_and_its_rows_closed(
    instance: dg.DagsterInstance, db: psycopg.Connection
) -> None:
    """It would stay started for ever, and its partitions "materializing"."""
    run = _started(instance)
    _row(db, run)
    db.execute(
        "INSERT INTO nexhealth_sync_logs (run_id, asset, collection, mode, status) VALUES (%s, 'a', 'c', 'full', 'running')",
        (run.run_id,),
    )
    assert end_dead_runs(instance, db) == [run.run_id]
    assert _status(instance, run) is FAILED
    assert db.execute("SELECT status FROM nexhealth_runs").fetchall() == [("interrupted",)]
    assert db.execute("SELECT status FROM nexhealth_sync_logs").fetchall() == [("interrupted",)]
    assert end_dead_runs(instance, db) == []
    failures = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
    assert len(failures) == 1


@pytest.mark.parametrize("find", [end_dead_runs, partial(in_the_way, job="nexhealth_locations")])
def test_a_run_that_died_while_somebody_ended_it_is_canceled(
    instance: dg.DagsterInstance, db: psycopg.Connection, find: Callable[..., object]
) -> None:
    """The daemon would begin anew what a person has just stopped."""
    run = _started(instance)
    _row(db, run)
    instance.report_run_canceling(run)
    find(instance, db)
    assert _status(instance, run) is dg.DagsterRunStatus.CANCELED
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    assert "dagster/will_retry" not in found.tags


def test_a_living_run_is_left_alone(
    instance: dg.DagsterInstance, db: psycopg.Connection, environment: dict[str, str]
) -> None:
    """To fail it would start it a second time."""
    held, starting = _started(instance), _started(instance)
    with RunLock(environment["DATABASE_URL"], held.run_id):
        assert end_dead_runs(instance, db) == []
    ending = _started(instance)
    _row(db, ending, "succeeded", "1 second")
    db.execute("UPDATE nexhealth_runs SET finished_at = now(), status = 'failed' WHERE run_id = %s", (held.run_id,))
    assert end_dead_runs(instance, db) == []
    assert {_status(instance, run) for run in (held, starting, ending)} == {STARTED}


def test_a_run_that_never_came_to_its_lock_or_never_ended_is_failed_after_a_while(
    instance: dg.DagsterInstance, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process may die before it has a row, or after the row was closed."""
    ended = _started(instance)
    _row(db, ended, "succeeded", "3 minutes")
    assert end_dead_runs(instance, db) == [ended.run_id]
    early = _started(instance)
    assert end_dead_runs(instance, db) == []
    monkeypatch.setattr(dead_runs, "_GRACE_SECONDS", -1.0)
    assert end_dead_runs(instance, db) == [early.run_id]


def test_a_living_run_of_another_warehouse_is_left_alone_and_in_nobodys_way(
    instance: dg.DagsterInstance, db: psycopg.Connection, other_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both keep their runs in database `dagster` of their server; a sync into the one must not end the other's night."""
    monkeypatch.setattr(dead_runs, "_GRACE_SECONDS", -1.0)
    run = _started(instance)
    with RunLock(other_database_url, run.run_id):
        assert end_dead_runs(instance, db) == []
        assert in_the_way(instance, db, run.job_name) is None
        assert _status(instance, run) is STARTED
    # Nobody anywhere lives by it now: killed, or its warehouse was made anew. The server may take a moment.
    deadline = time.monotonic() + 60
    while (ended := end_dead_runs(instance, db)) == [] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended == [run.run_id]


def test_a_run_that_ends_in_another_warehouse_just_now_is_not_failed(
    instance: dg.DagsterInstance, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is free a moment before Dagster knows, and a night that is done would be begun anew."""
    monkeypatch.setattr(dead_runs, "_GRACE_SECONDS", -1.0)
    run = _started(instance)

    def ends_meanwhile(*_: object) -> bool:
        instance.report_run_canceled(run)
        return False

    monkeypatch.setattr(dead_runs, "_has_row", ends_meanwhile)
    assert end_dead_runs(instance, db) == []
    assert _status(instance, run) is dg.DagsterRunStatus.CANCELED


def test_runs_of_other_code_are_not_ours_to_end(
    instance: dg.DagsterInstance, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instance may serve other code locations, whose assets run in a job of the same name."""

    @dg.asset
    def other() -> None: ...

    @dg.job(name="other_job")
    def other_job() -> None: ...

    monkeypatch.setattr(dead_runs, "_GRACE_SECONDS", -1.0)
    theirs = dg.Definitions(assets=[other], jobs=[other_job])
    for job in ("__ASSET_JOB", "other_job"):
        run = instance.create_run_for_job(theirs.resolve_job_def(job), status=dg.DagsterRunStatus.STARTING)
        instance.report_dagster_event(dg.DagsterEvent("PIPELINE_START", job, message=""), run.run_id)
    ours = defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection={dg.AssetKey("nexhealth_patients")})
    mine = instance.create_run_for_job(
        ours, status=dg.DagsterRunStatus.STARTING, asset_selection=frozenset({dg.AssetKey("nexhealth_patients")})
    )
    instance.report_dagster_event(dg.DagsterEvent("PIPELINE_START", "__ASSET_JOB", message=""), mine.run_id)
    assert end_dead_runs(instance, db) == [mine.run_id]


def test_a_dead_run_of_one_check_is_failed_and_one_of_other_codes_check_is_not(
    instance: dg.DagsterInstance, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagit runs a check that somebody clicks in the job of everything, without an asset."""
    monkeypatch.setattr(dead_runs, "_GRACE_SECONDS", -1.0)
    runs = [
        dg.DagsterRun(
            job_name="__ASSET_JOB",
            run_id=str(uuid.uuid4()),
            status=dg.DagsterRunStatus.STARTING,
            asset_selection=frozenset(),
            asset_check_selection=frozenset({dg.AssetCheckKey(dg.AssetKey(asset), "fresh")}),
        )
        for asset in ("nexhealth_patients", "theirs")
    ]
    for run in runs:
        instance.run_storage.add_run(run)
        instance.report_dagster_event(dg.DagsterEvent("PIPELINE_START", "__ASSET_JOB", message=""), run.run_id)
    assert end_dead_runs(instance, db) == [runs[0].run_id]


def test_the_daemon_repeats_a_run_that_crashed_but_none_that_failed_nor_a_commands(
    instance: dg.DagsterInstance, db: psycopg.Connection
) -> None:
    """A slice that failed has used up its retries; a command is repeated by whoever gave it."""
    crashed, commanded, failed = (
        _started(instance),
        _started(instance, **{"dagster/max_retries": "0"}),
        _started(instance),
    )
    for run in (crashed, commanded):
        _row(db, run)
    assert set(end_dead_runs(instance, db)) == {crashed.run_id, commanded.run_id}
    reason = JobFailureData(error=None, failure_reason=RunFailureReason.STEP_FAILURE)
    instance.report_run_failed(failed, "a slice failed", reason)
    repeated = {
        run.run_id: found.tags.get("dagster/will_retry")
        for run in (crashed, commanded, failed)
        if (found := instance.get_run_by_id(run.run_id))
    }
    assert repeated == {crashed.run_id: "true", commanded.run_id: "false", failed.run_id: "false"}
    found = instance.get_run_by_id(crashed.run_id)
    assert found is not None
    assert auto_reexecution_should_retry_run(instance, found, None)
