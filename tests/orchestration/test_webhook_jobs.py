"""The run that applies events: what it tells Dagster, how long it stays, and what a kill leaves."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.orchestration import webhook_apply, worker
from nexhealth_pipeline.orchestration.command_runs import COMMAND_TAGS
from nexhealth_pipeline.orchestration.names import (
    APPLY_JOB,
    APPLY_OP,
    EVENTS_ASSET,
    REPLAY_JOB,
    REPLAY_OP,
    WEBHOOK_SENSOR,
)
from nexhealth_pipeline.orchestration.webhook_jobs import heard
from nexhealth_pipeline.sync.months import month_keys
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.warehouse.runs import RunLock
from nexhealth_pipeline.webhooks.applying.apply import AppliedSlice, apply_pending
from nexhealth_pipeline.webhooks.events import EVENTS_CHANNEL
from tests.webhooks.kit import LOCATION, T0, body, mark_complete, patient, store, updated

from .kit import DESERT, NORTH, SOUTH, WILLOW, House
from .webhook_kit import Post, metadata, run_job

REPO = Path(__file__).resolve().parents[2]
OBSERVATION, MATERIALIZATION = dg.DagsterEventType.ASSET_OBSERVATION, dg.DagsterEventType.ASSET_MATERIALIZATION
READ = ["patients", "documents", "patient_addresses"]
MONTH = f"{T0:%Y-%m}"


def _procedure(number: int, at: float = 5) -> bytes:
    record = {"id": number, "updated_at": T0.replace(minute=int(at)).isoformat(), "location_id": LOCATION}
    return body("procedure_updated", {"procedures": [record]}, at=at)


def _appointment(number: int, at: float = 5) -> bytes:
    updated_at = T0.replace(minute=int(at)).isoformat()
    record = {"id": number, "updated_at": updated_at, "location_id": LOCATION, "start_time": T0.isoformat()}
    return body("appointment_updated", {"appointment": record}, at=at)


def _told(post: Post, run_id: str) -> dict[tuple[str, str | None], tuple[dg.DagsterEventType, dict[str, object]]]:
    told = [(one, metadata(one)) for one in post.told(run_id)]
    found = {(one.asset_key.path[-1], one.partition): (one.event_type, facts) for one, facts in told}
    assert len(found) == len(told)
    return found


def test_a_burst_is_one_run_that_tells_each_partition_once(post: Post) -> None:
    """A page of Dagit with an entry an event tells nobody anything, and costs more than the event."""
    store(post.db, *(updated(patient(number, at)) for number in range(1, 41) for at in (5, 7, 6)))
    store(post.db, *(_procedure(number) for number in range(1, 6)), *(_appointment(number) for number in range(1, 4)))
    mark_complete(post.db, "procedures", location=0)
    mark_complete(post.db, "appointments", MONTH)
    assert MONTH in month_keys(T0.date())
    result = post.apply()
    assert result.success
    assert post.statuses() == {"applied": 48, "superseded": 80}
    told = _told(post, result.run_id)
    # Complete: green. A patient of no known location: said, and no partition called complete.
    kind, facts = told["nexhealth_procedures", "smile"]
    assert (kind, facts["events"], facts["rows_changed"], facts["cause"]) == (MATERIALIZATION, 5, 5, "webhook")
    assert facts["as_of"] == T0.timestamp()
    assert told["nexhealth_appointments", f"smile.{LOCATION}|{MONTH}"][0] is MATERIALIZATION
    assert told["nexhealth_patients", None] == (OBSERVATION, {"events": 40, "rows_changed": 40, "cause": "webhook"})
    kind, facts = told[EVENTS_ASSET, None]
    assert (kind, facts["applied"], facts["superseded"], facts["pending_now"]) == (OBSERVATION, 48, 80, 0)
    assert len(told) == 4
    (line,) = post.log(result.run_id)
    assert line == ("128 events: 80 superseded, 48 applied; rows changed: patients 40, procedures 5, appointments 3")


def test_partitions_told_together_lie_a_millisecond_apart(post: Post) -> None:
    """Dagit's list of an asset's events shows one of each millisecond: the other partitions seemed untouched."""
    for month in range(4, 9):
        record = {"id": month, "updated_at": T0.isoformat(), "location_id": LOCATION}
        start = {"start_time": T0.replace(month=month).isoformat()}
        store(post.db, body("appointment_updated", {"appointment": record | start}))
    run_id = post.apply().run_id
    kind = dg.DagsterEventType.ASSET_OBSERVATION
    records = post.instance.get_records_for_run(run_id, of_type=kind).records
    moments = [int(one.event_log_entry.timestamp * 1000) for one in records]
    assert len(moments) == len(set(moments)) == 6


def test_why_an_event_failed_is_said_once_a_reason(post: Post) -> None:
    """Whoever sees a run with failures must not need SQL to learn why."""
    bad = store(post.db, *(updated(patient(1, 5, id="Canaryson"), at=at) for at in range(7)))
    (deleted,) = store(post.db, body("patient_updated", None))
    line, trouble, other = post.log(post.apply().run_id)
    assert line == "8 events: 8 failed; rows changed: none"
    assert trouble == f"7 events failed: patients: id: missing, or no integer (id {', '.join(map(str, bad[:5]))}, ...)"
    assert other == f"1 event failed: patients: data: holds no record (id {deleted})"


def test_a_slice_that_was_never_read_is_observed_only(post: Post) -> None:
    """Green says complete, and it is not."""
    store(post.db, _procedure(1))
    told = _told(post, post.apply().run_id)
    assert told["nexhealth_procedures", "smile"] == (OBSERVATION, {"events": 1, "rows_changed": 1, "cause": "webhook"})


def test_events_that_were_given_up_are_told_as_the_check_tells_them(post: Post) -> None:
    """One that can be replayed, one of late that could not be kept, and one whose payload has had its time."""
    store(post.db, _procedure(1))
    post.db.execute(
        "INSERT INTO nexhealth_webhook_events (verdict, status, payload, expunged_at)"
        " VALUES ('valid', 'parked', '{}', NULL), ('valid', 'parked', NULL, NULL), ('valid', 'parked', NULL, now())"
    )
    post.db.commit()
    facts = _told(post, post.apply().run_id)[EVENTS_ASSET, None][1]
    assert (facts["applied"], facts["parked_now"]) == (1, 2)


def test_what_comes_while_it_lingers_is_applied_by_the_same_run(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run would cost seconds before its first line."""
    store(post.db, _procedure(1))
    rang: list[bool] = []
    waits = webhook_apply._Doorbell.waits

    def ring(self: webhook_apply._Doorbell, seconds: float, stopped: Callable[[], bool]) -> bool:
        if not rang:
            store(post.db, _procedure(2))
            post.db.execute(f"NOTIFY {EVENTS_CHANNEL}")
            seconds = 60.0  # were the bell not heard
        rang.append(waits(self, seconds, stopped))
        return rang[-1]

    monkeypatch.setattr(webhook_apply._Doorbell, "waits", ring)
    result = post.apply()
    assert result.success
    assert post.statuses() == {"applied": 2}
    assert rang[0], "it was not woken"
    assert post.rows("SELECT DISTINCT run_id FROM nexhealth_webhook_events") == [(result.run_id,)]


def test_a_run_that_is_stopped_in_dagit_ends_between_two_batches(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for more events must not have to be killed."""
    store(post.db, _procedure(1))
    run_id = "11111111-2222-3333-4444-666666666666"
    waits = webhook_apply._Doorbell.waits

    def stop(self: webhook_apply._Doorbell, _seconds: float, stopped: Callable[[], bool]) -> bool:
        run = post.instance.get_run_by_id(run_id)
        assert run is not None
        post.instance.report_run_canceling(run)
        return waits(self, 60.0, stopped)

    monkeypatch.setattr(webhook_apply._Doorbell, "waits", stop)
    monkeypatch.setattr(worker, "_STATUS_SECONDS", 0.0)
    post.apply(run_id=run_id)
    run = post.instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.CANCELED
    assert post.statuses() == {"applied": 1}
    assert post.rows("SELECT status FROM nexhealth_runs") == [("cancelled",)]


def test_its_turn_ends_though_more_is_waiting(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream without end would make one run without end."""
    monkeypatch.setattr(webhook_apply, "_EVENTS_A_CALL", 3)
    store(post.db, *(_procedure(number) for number in range(1, 8)))
    result = post.apply(turn_seconds=0.001)
    assert result.success
    assert post.statuses() == {"applied": 3, "pending": 4}
    assert isinstance(post.tick(WEBHOOK_SENSOR), dg.RunRequest)


def _bit_by_bit(
    post: Post, monkeypatch: pytest.MonkeyPatch, between: Callable[[SyncSession], object] = lambda _: None
) -> list[int]:
    """Seven events, of which a run takes three at a time; `between` is called before each time."""

    def apply(session: SyncSession, **options: Any) -> Iterator[AppliedSlice]:
        between(session)
        return apply_pending(session, **options)

    monkeypatch.setattr(webhook_apply, "_EVENTS_A_CALL", 3)
    monkeypatch.setattr(webhook_apply, "apply_pending", apply)
    return store(post.db, *(_procedure(number) for number in range(1, 8)))


def test_a_commands_run_knows_no_turn(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no daemon is, no other run follows it."""
    _bit_by_bit(post, monkeypatch)
    told: list[dict[str, object]] = []
    with heard(told.append):
        assert post.apply(due_only=True, turn_seconds=0.001).success
    assert told == [{"applied": 7, "rows": 7, "still_due": 0}]
    assert post.statuses() == {"applied": 7}


def test_a_commands_run_ends_though_events_keep_coming(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due when it begins is its work: a stream has no end, nor has an event that fails again and again."""
    numbers = itertools.count(101)
    store(post.db, body("patient_updated", None))
    _bit_by_bit(post, monkeypatch, lambda _: store(post.db, *(_procedure(next(numbers)) for _ in range(3))))
    told: list[dict[str, object]] = []
    with heard(told.append):
        assert post.apply(due_only=True).success
    assert told == [{"applied": 8, "failed": 1, "rows": 8, "still_due": 0}]
    assert post.statuses() == {"applied": 8, "pending": 9}


def test_a_commands_run_says_what_it_left(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle it must not look as if all was done."""
    calls = itertools.count()
    _bit_by_bit(post, monkeypatch, lambda session: session.stop.set() if next(calls) else None)
    told: list[dict[str, object]] = []
    with heard(told.append):
        run_id = post.apply(tags=COMMAND_TAGS, due_only=True).run_id
    assert told == [{"applied": 3, "rows": 3, "still_due": 4}]
    run = post.instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.CANCELED


def test_a_commands_run_waits_for_what_another_process_works_on(
    post: Post, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one may still end before it has applied them; but nobody waits for ever."""
    calls = itertools.count(1)
    other = "11111111-2222-3333-4444-777777777777"

    def ends_later(_: SyncSession) -> None:
        if next(calls) == 5:
            post.db.execute("UPDATE nexhealth_webhook_events SET status = 'applied' WHERE taken_by = %s", (other,))

    (first, *_) = _bit_by_bit(post, monkeypatch, ends_later)
    monkeypatch.setattr(webhook_apply, "_POLL_SECONDS", 0.01)
    take = "UPDATE nexhealth_webhook_events SET status = 'pending', taken = 1, taken_by = %s WHERE id = %s"
    told: list[dict[str, object]] = []
    with RunLock(environment["DATABASE_URL"], other), heard(told.append):
        post.db.execute(take, (other, first))
        assert post.apply(due_only=True).success
        assert next(calls) == 6
        post.db.execute(take, (other, first))
        monkeypatch.setattr(webhook_apply, "_LONGEST_SECONDS", 0.05)
        assert post.apply(due_only=True).success
    assert told == [{"applied": 6, "rows": 6, "still_due": 0}, {"rows": 0, "still_due": 1}]


def test_a_replay_is_a_run_of_its_own_and_can_be_rehearsed(post: Post) -> None:
    """Somebody who is not sure looks first."""
    ids = store(post.db, _procedure(1), _procedure(2))
    post.apply()
    post.db.execute("UPDATE nexhealth_procedures SET raw = '{}', row_hash = '', updated_at = NULL WHERE id = 1")
    post.db.execute("DELETE FROM nexhealth_warehouse")
    told: list[dict[str, object]] = []
    with heard(told.append):
        dry = run_job(post.instance, REPLAY_JOB, REPLAY_OP, ids=ids, dry_run=True)
        assert post.statuses() == {"applied": 2}
        assert post.db.execute("SELECT kind FROM nexhealth_warehouse").fetchall() == []
        done = run_job(post.instance, REPLAY_JOB, REPLAY_OP, since="2020-01-01", resources=["procedures"])
        refused = run_job(post.instance, REPLAY_JOB, REPLAY_OP)
    assert (dry.success, done.success, refused.success) == (True, True, False)
    assert told == [
        {"dry_run": True, "events": 2, "hints": 0, "applied": 1, "failed": 0, "rows": 1},
        {"dry_run": False, "events": 2, "applied": 1, "superseded": 1, "rows": 1, "still_due": 0},
    ]
    (facts,) = [metadata(one) for one in post.told(done.run_id) if one.asset_key.path[-1] == "nexhealth_procedures"]
    assert facts["cause"] == "replay"


def _place_and_patients(house: House) -> tuple[int, str, list[int]]:
    """An institution, its subdomain, and two patients of it."""
    ((place, subdomain, numbers),) = house.rows(
        "SELECT i.id, i.subdomain, (array_agg(p.id ORDER BY p.id))[:2] FROM nexhealth_institutions i"
        " JOIN nexhealth_patients p ON p.institution_id = i.id WHERE i.subdomain = %s AND p.deleted_at IS NULL"
        " GROUP BY 1, 2",
        WILLOW,
    )
    return place, subdomain, numbers


def _lists_told(house: House, result: dg.ExecuteInProcessResult) -> dict[str, dict[str, object]]:
    """What a run said of assets other than that of events and that of patients, each of which only once."""
    told = [one for one in house.events(result) if one.asset_key.path[-1] not in {EVENTS_ASSET, "nexhealth_patients"}]
    assert {(one.event_type, one.partition) for one in told} <= {(OBSERVATION, None)}
    found = {one.asset_key.path[-1]: metadata(one) for one in told}
    assert len(found) == len(told)
    return found


def test_lists_of_single_rows_that_events_had_read_are_observed_once_an_asset(
    known: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of documents changed, and their asset in Dagit showed nothing of it; an entry a patient would be too many."""
    monkeypatch.setattr(webhook_apply, "_EVENTS_A_CALL", 1)  # several rounds, still one entry
    assert known.run(Scope.LOCATION, [NORTH, SOUTH, DESERT], assets=READ).success
    place, subdomain, numbers = _place_and_patients(known)
    for at, number in enumerate(numbers):
        made = known.box.state.create(
            "documents", {"filename": "canary-77.pdf"}, subdomain=subdomain, patient_id=number
        )
        data = {"document": {"id": made.id, "patient_id": number}}
        store(known.warehouse, body("document_insertion.complete", data, subdomain=subdomain, at=at))
        known.box.state.update("patients", number, {"first_name": f"canary-77 {at}"})
        record = json.loads(json.dumps(known.box.state.row("patients", number).record()))
        store(known.warehouse, body("patient_updated", {"patients": [record]}, subdomain=subdomain, at=at))
    result = known.job(APPLY_JOB, APPLY_OP, config={"linger_seconds": 0.1})
    assert result.success
    assert known.rows("SELECT status, count(*) FROM nexhealth_webhook_events GROUP BY 1") == [("applied", 4)]
    documents = known.one(
        "SELECT count(*) FROM nexhealth_documents WHERE institution_id = %s AND patient_id = ANY(%s)", place, numbers
    )
    told = _lists_told(known, result)
    assert told["nexhealth_documents"] == {"lists_read": 2, "records_read": documents, "rows_changed": 2}
    assert (told["nexhealth_patient_addresses"]["lists_read"], len(told)) == (2, 2)
    logged = known.rows(
        "SELECT asset, sum(records_read), sum(inserted + updated) FROM nexhealth_sync_logs WHERE run_id = %s"
        " AND asset = ANY(%s) GROUP BY 1",
        *(result.run_id, list(told)),
    )
    assert {(asset, one["records_read"], one["rows_changed"]) for asset, one in told.items()} == set(logged)
    assert "canary-77" not in "".join(str(entry) for entry in known.instance.all_logs(result.run_id))


def test_a_list_that_could_not_be_read_is_not_observed(known: House) -> None:
    """What was rolled back or refused has changed nothing."""
    assert known.run(Scope.LOCATION, [NORTH, SOUTH, DESERT], assets=READ).success
    _, subdomain, (number, other) = _place_and_patients(known)
    known.box.faults.add("status", path=f"/patients/{number}/documents", status=400)
    for one in (number, other):
        made = known.box.state.create("documents", {}, subdomain=subdomain, patient_id=one)
        data = {"document": {"id": made.id, "patient_id": one}}
        store(known.warehouse, body("document_insertion.complete", data, subdomain=subdomain))
    told = _lists_told(known, known.job(APPLY_JOB, APPLY_OP, config={"linger_seconds": 0.1}))
    assert told["nexhealth_documents"]["lists_read"] == 1
    known.warehouse.execute("UPDATE nexhealth_webhook_events SET next_attempt_at = NULL WHERE status = 'pending'")
    assert _lists_told(known, known.job(APPLY_JOB, APPLY_OP, config={"linger_seconds": 0.1})) == {}


KILLED = """
import json
from nexhealth_pipeline.errors import PipelineError
from nexhealth_pipeline.orchestration.webhook_launch import run_webhook_job
from nexhealth_pipeline.orchestration.names import APPLY_JOB, REPLAY_JOB
from nexhealth_pipeline.settings import load_settings
try:
    run_webhook_job(load_settings(), APPLY_JOB, {"due_only": True}, kind="sandbox")
except PipelineError as error:
    said = str(error)
run = run_webhook_job(load_settings(), REPLAY_JOB, {"ids": [1], "dry_run": True}, kind="sandbox")
print(json.dumps([said, run.exit_status, run.result["events"]]))
"""


def test_a_run_that_is_killed_in_the_middle_is_followed_by_one_that_ends_the_work(
    post: Post, environment: dict[str, str]
) -> None:
    """Nothing acknowledged may be lost, nothing applied twice, and nobody wait for two minutes.

    It is a command's run, whose process tells that it died, and can go on with another.
    """
    store(post.db, *(_procedure(number, at) for number in range(1, 301) for at in (5, 6)))
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED],
        env={**os.environ, "DAGSTER_HOME": str(REPO), "NEXHEALTH_FAULT_POINT": "before_commit:webhook_events:2"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    said = "the run was ended by signal 9: what it has committed stays, run it again"
    assert ended.stdout == json.dumps([said, 0, 1]) + "\n", ended.stderr[-2000:]
    assert post.statuses() == {"applied": 250, "superseded": 250, "pending": 100}
    assert isinstance(post.tick(WEBHOOK_SENSOR), dg.RunRequest)
    (run,) = post.instance.get_runs(dg.RunsFilter(job_name=APPLY_JOB))
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert run.tags["dagster/will_retry"] == "false"  # the sensor has asked for the next one
    assert run.tags["dagster/max_runtime"] == "0", "a daemon must not end a command's run after an hour"
    assert post.apply(due_only=True).success
    assert post.statuses() == {"applied": 300, "superseded": 300}
    assert post.rows("SELECT count(*), min(updated_at), max(updated_at) FROM nexhealth_procedures") == [
        (300, T0.replace(minute=6), T0.replace(minute=6))
    ]
    assert post.tick(WEBHOOK_SENSOR) == "no event is pending"


def test_a_database_that_is_away_fails_the_run_by_one_line(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a traceback, which may quote a row."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hidden@127.0.0.1:1/none")
    result = run_job(post.instance, APPLY_JOB, APPLY_OP)
    assert not result.success
    failures = post.instance.get_records_for_run(result.run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
    assert "hidden" not in str(failures)
