"""Ticks of the sensor, and the queue's order: events start one run at once, and nothing else holds it up."""

import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.definitions import defs
from nexhealth_pipeline.orchestration.names import (
    APPLY_JOB,
    BULK_TAG,
    CHANGES_JOB,
    NIGHT_TAGS,
    SCOPE_JOBS,
    WEBHOOK_SENSOR,
)
from nexhealth_pipeline.orchestration.resource import NexHealthResource
from nexhealth_pipeline.sync.months import month_keys
from nexhealth_pipeline.warehouse.runs import RunLock
from tests.webhooks.kit import INSTITUTION, LOCATION, free_locks, patient, store, updated

from .practices import complete_months
from .webhook_kit import Post

REPO = Path(__file__).resolve().parents[2]
Status = dg.DagsterRunStatus
DISCOVERY = SCOPE_JOBS[Scope.PRACTICE]
LONG_JOBS = (*(job for job in SCOPE_JOBS.values() if job != DISCOVERY), CHANGES_JOB)


def _tags(job: str) -> Mapping[str, str]:
    return {} if job == "__ASSET_JOB" else defs.resolve_job_def(job).run_tags


def _run(post: Post, status: Status, job: str = APPLY_JOB, **tags: str) -> dg.DagsterRun:
    """A run of `job` as the daemon's tables have it; its plan, which takes long to make, is left out."""
    first = Status.STARTING if status is Status.STARTED else status
    location = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("nexhealth_pipeline"), "__repository__")
    run = dg.DagsterRun(
        job_name=job,
        run_id=str(uuid.uuid4()),
        status=first,
        tags={**_tags(job), **tags},
        remote_job_origin=RemoteJobOrigin(location, job),
    )
    post.instance.run_storage.add_run(run)
    if status is Status.STARTED:
        post.instance.report_dagster_event(dg.DagsterEvent("PIPELINE_START", job, message=""), run.run_id)
    return run


def _status(post: Post, run: dg.DagsterRun) -> Status:
    found = post.instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status


def test_events_that_wait_start_one_run_that_goes_first(post: Post) -> None:
    """The tags must hold counts, never a name."""
    assert post.tick(WEBHOOK_SENSOR) == "no event is pending"
    store(post.db, updated(patient(1, 5)), updated(patient(2, 5)))
    request = post.tick(WEBHOOK_SENSOR)
    assert isinstance(request, dg.RunRequest)
    assert request.tags["nexhealth/events"] == "2"
    assert set(request.tags) - {"nexhealth/events", "nexhealth/oldest_seconds", "dagster/sensor_name"} == set()
    tags = _tags(APPLY_JOB)
    assert (tags["dagster/priority"], tags["dagster/max_retries"]) == ("10", "0")


def test_events_that_wait_for_their_next_try_start_no_run(post: Post) -> None:
    """A poisoned event would otherwise cost a run every five seconds, for hours."""
    store(post.db, updated(patient(1, 5)))
    post.db.execute("UPDATE nexhealth_webhook_events SET attempts = 1, next_attempt_at = now() + interval '1 minute'")
    answer = post.tick(WEBHOOK_SENSOR)
    assert isinstance(answer, str)
    assert answer.startswith("1 events wait for their next try, the first until")
    # Sooner or, by a clock that was ahead when it was set, far later than any is put off.
    for at in ("now()", "now() + interval '3 days'"):
        post.db.execute(f"UPDATE nexhealth_webhook_events SET next_attempt_at = {at}")
        assert isinstance(post.tick(WEBHOOK_SENSOR), dg.RunRequest)


@pytest.mark.parametrize("status", [Status.QUEUED, Status.STARTING, Status.STARTED])
def test_a_run_that_is_on_its_way_is_named_and_not_doubled(post: Post, status: Status) -> None:
    """Two runs at once would only cost twice the memory."""
    store(post.db, updated(patient(1, 5)))
    run = _run(post, status)
    answer = post.tick(WEBHOOK_SENSOR)
    assert isinstance(answer, str)
    assert run.run_id in answer
    assert status.value.lower() in answer


def test_a_living_run_is_in_the_way_and_a_killed_one_is_failed_at_once(post: Post, environment: dict[str, str]) -> None:
    """Its events must not wait for the two minutes that a starting run is given."""
    store(post.db, updated(patient(1, 5)))
    run = _run(post, Status.STARTED)
    with RunLock(environment["DATABASE_URL"], run.run_id):
        assert run.run_id in str(post.tick(WEBHOOK_SENSOR))
    free_locks(post.db)
    assert isinstance(post.tick(WEBHOOK_SENSOR), dg.RunRequest)
    assert _status(post, run) is Status.FAILURE


def test_a_run_that_never_comes_to_life_is_passed_over_after_a_while_each_further_one_later(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process may have died before it held a lock, which looks like a slow start: it is not failed here."""
    store(post.db, updated(patient(1, 5)))
    starting, started = _run(post, Status.STARTING), _run(post, Status.STARTED)
    assert starting.run_id in str(post.tick(WEBHOOK_SENSOR))
    monkeypatch.setattr(time, "time", lambda: datetime.now(UTC).timestamp() + 45)
    assert started.run_id in str(post.tick(WEBHOOK_SENSOR))
    monkeypatch.setattr(time, "time", lambda: datetime.now(UTC).timestamp() + 75)
    assert isinstance(post.tick(WEBHOOK_SENSOR), dg.RunRequest)
    assert (_status(post, starting), _status(post, started)) == (Status.STARTING, Status.STARTED)


def _fail(post: Post, reason: RunFailureReason | None) -> None:
    """A run that ended by itself for `reason`, or whose process was found to be gone."""
    data = JobFailureData(error=None, failure_reason=reason) if reason else None
    post.instance.report_run_failed(_run(post, Status.STARTED), "it failed", data)


def test_runs_that_fail_one_after_the_other_come_ever_later(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warehouse that is broken in a new way must not get a run every five seconds."""
    store(post.db, updated(patient(1, 5)))
    for reason in (RunFailureReason.STEP_FAILURE, None, RunFailureReason.JOB_INITIALIZATION_FAILURE):
        assert isinstance(post.tick(WEBHOOK_SENSOR), dg.RunRequest)
        _fail(post, reason)
    answer = post.tick(WEBHOOK_SENSOR)
    assert isinstance(answer, str)
    number, unit = answer.split()[-2:]
    assert unit == "s"
    assert 5 < int(number) <= 20, "twenty after the second that failed by itself, less what has gone by since"
    clock = time.time
    for behind, waits in ((60, True), (60 * 86400, False)):
        monkeypatch.setattr(time, "time", lambda behind=behind: clock() - behind)
        assert isinstance(post.tick(WEBHOOK_SENSOR), str) is waits, "a run that ended in two months is not waited for"


def test_runs_that_were_killed_do_not_keep_fresh_events_waiting(post: Post, environment: dict[str, str]) -> None:
    """Whoever ended them: the next tick, the server that started them, or Dagster's monitor."""
    store(post.db, updated(patient(1, 5)))
    for reason in (None, RunFailureReason.START_TIMEOUT, RunFailureReason.UNEXPECTED_TERMINATION):
        _fail(post, reason)
        killed = _run(post, Status.STARTED)
        with RunLock(environment["DATABASE_URL"], killed.run_id):
            pass
        free_locks(post.db)
        assert isinstance(post.tick(WEBHOOK_SENSOR), dg.RunRequest)
        assert _status(post, killed) is Status.FAILURE


def test_without_a_key_or_a_database_it_says_what_is_missing(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs from the first start: a newcomer's Dagit must not turn red."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hidden@127.0.0.1:1/none")
    answer = post.tick(WEBHOOK_SENSOR)
    assert isinstance(answer, str)
    assert "DATABASE_URL" in answer
    assert "hidden" not in answer
    monkeypatch.delenv("NEXHEALTH_API_KEY")
    assert "NEXHEALTH_API_KEY" in str(post.tick(WEBHOOK_SENSOR))


def _next(post: Post) -> list[str]:
    """Jobs of the runs that Dagster's own queue would start now."""
    daemon = QueuedRunCoordinatorDaemon(interval_seconds=1)
    config = post.instance.get_concurrency_config()
    return [run.job_name for run in daemon._get_runs_to_dequeue(post.instance, config, None)]


def test_whatever_fills_the_queue_webhook_work_starts_at_once(post: Post) -> None:
    """Backfills and nights take hours; an event must not wait for their end."""
    for _ in range(8):
        _run(post, Status.QUEUED, LONG_JOBS[0])
        _run(post, Status.QUEUED, LONG_JOBS[1], **NIGHT_TAGS)
        _run(post, Status.QUEUED, "__ASSET_JOB", **{"dagster/backfill": "abcdefgh"})
        _run(post, Status.QUEUED, "__ASSET_JOB", **{"dagster/from_ui": "true"})
    started = _next(post)
    assert len(started) == 3 + 3 + 2 + 4
    of_jobs = {"__ASSET_JOB": {"dagster/backfill": "abcdefgh", "dagster/from_ui": "true"}, LONG_JOBS[1]: NIGHT_TAGS}
    for job in started:
        _run(post, Status.STARTED, job, **of_jobs.get(job, {}))
    for job in LONG_JOBS:  # a command's runs are not queued
        _run(post, Status.STARTED, job)
    assert _next(post) == []
    _run(post, Status.QUEUED)
    assert _next(post) == [APPLY_JOB]


def test_a_run_that_waits_for_others_is_not_in_the_way(post: Post) -> None:
    """Launched in Dagit behind long runs of somebody's, it may wait for two days, and all events with it."""
    store(post.db, updated(patient(1, 5)))
    for _ in range(4):
        _run(post, Status.STARTED, "__ASSET_JOB", **{"dagster/from_ui": "true"})
    _run(post, Status.QUEUED, **{"dagster/from_ui": "true"})
    assert _next(post) == []
    assert isinstance(post.tick(WEBHOOK_SENSOR), dg.RunRequest)
    run = _run(post, Status.QUEUED)
    assert run.run_id in str(post.tick(WEBHOOK_SENSOR))


@pytest.mark.parametrize("name", [f"nexhealth_nightly_{one.removeprefix('nexhealth_')}" for one in LONG_JOBS])
def test_the_night_waits_for_no_long_run_of_somebodys(post: Post, name: str) -> None:
    """Three offices' first loads, started by hand, kept it in the queue for days, and nothing was red."""
    schedule = defs.get_repository_def().get_schedule_def(name)
    if schedule.job_name == CHANGES_JOB:  # due where a month has been read
        complete_months(post.db, INSTITUTION, [LOCATION], month_keys(datetime.now(UTC).date()))
    context = dg.build_schedule_context(
        instance=post.instance,
        scheduled_execution_time=datetime.now(UTC),
        resources={"nexhealth": NexHealthResource()},
        repository_def=defs.get_repository_def(),
    )
    (request,) = schedule.evaluate_tick(context).run_requests or ()
    for job in LONG_JOBS:
        _run(post, Status.STARTED, job)
    _run(post, Status.QUEUED, LONG_JOBS[0])
    assert _next(post) == []
    _run(post, Status.QUEUED, schedule.job_name, **request.tags)
    assert _next(post) == [schedule.job_name]


def test_discovery_waits_for_no_long_run(post: Post) -> None:
    """A few requests: without them a new office stays unknown, and nobody knows who is offline, for days."""
    for job in LONG_JOBS[:3]:
        _run(post, Status.STARTED, job)
        _run(post, Status.STARTED, job, **NIGHT_TAGS)
    _run(post, Status.QUEUED, LONG_JOBS[0])
    context = dg.build_schedule_context(
        instance=post.instance,
        scheduled_execution_time=datetime.now(UTC),
        resources={"nexhealth": NexHealthResource()},
        repository_def=defs.get_repository_def(),
    )
    nightly = defs.get_repository_def().get_schedule_def("nexhealth_nightly_practice")
    (request,) = nightly.evaluate_tick(context).run_requests or ()
    _run(post, Status.QUEUED, DISCOVERY, **request.tags)
    assert _next(post) == [DISCOVERY]


def test_every_job_that_reads_long_has_the_tag_that_is_limited() -> None:
    """One that is forgotten could fill all places."""
    limits = yaml.safe_load((REPO / "dagster.yaml").read_text())["concurrency"]["runs"]["tag_concurrency_limits"]
    assert {one["key"] for one in limits} == {BULK_TAG, "dagster/backfill", "dagster/from_ui"}
    assert {_tags(job)[BULK_TAG] for job in LONG_JOBS} == {"true"}
    for job in (APPLY_JOB, DISCOVERY):
        assert not {one["key"] for one in limits} & _tags(job).keys()
