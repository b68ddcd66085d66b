"""What a sync says of its own work: complete no further than it is, and nothing read in vain."""

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.paging import MOST_A_PAGE, Paging
from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync import reconcile
from nexhealth_pipeline.sync.months import month_keys, month_window
from nexhealth_pipeline.sync.slices import SliceResult
from nexhealth_pipeline.warehouse.checks import CHECKS, run
from nexhealth_pipeline.warehouse.seen import seen_passes

from .kit import Rows, sync_all
from .reconciled import DESERT, FULL, NORTH, RECONCILE, SOUTH, practice

pytestmark = pytest.mark.small_box(visits=2)

QUICK = RetryPolicy(sleep=lambda _: None)
OPEN_NOTES = (
    "SELECT record_id, first_seen_at < now() - interval '1 day' FROM nexhealth_quarantine WHERE resolved_at IS NULL"
)


@pytest.fixture
def settings(box: SandboxServer, database_url: str) -> Settings:
    return practice(box, database_url, "willow-dental")


def of(results: list[SliceResult], name: str, location: int | None = None) -> SliceResult:
    """The one read of a collection there."""
    (found,) = [
        one
        for one in results
        if one.slice.collection.name == name and one.absence is None and location in (None, one.slice.location_id)
    ]
    return found


def complete_through(rows: Rows, name: str, location: int = 0) -> Any:
    where = f"collection = '{name}' AND location_id = {location}"
    return rows(f"SELECT max(complete_through) FROM nexhealth_freshness WHERE {where}")[0][0]


def test_a_location_is_no_fresher_than_the_owner_of_its_database(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Risk: its own read only tells whom it lists; the patients come with the owner's, which fails night after night."""
    sync_all(settings, FULL, only={"patients"})
    (owner,) = rows(f"SELECT watermark FROM nexhealth_sync_state WHERE location_id = {NORTH} AND pass = 'all'")
    box.faults.add("status", path="/patients", location_id=NORTH, query="location_strict=false", status=400)
    results = sync_all(settings, only={"patients"})
    assert str(of(results, "patients", NORTH).status) == "failed"
    sibling = of(results, "patients", SOUTH)
    assert (str(sibling.status), sibling.as_of) == ("succeeded", owner[0])
    assert complete_through(rows, "patients", SOUTH) == owner[0]
    box.faults.clear()
    healed = of(sync_all(settings, only={"patients"}), "patients", SOUTH)
    assert healed.as_of is not None
    assert healed.as_of > owner[0]


def test_lists_under_rows_do_not_wait_for_what_nobody_reads_since_a_database_is_no_longer_shared(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Risk: the last office of a database says for ever that its documents are as old as the other's leaving."""
    sync_all(settings, FULL, only={"patients", "documents"})
    box.state.update("locations", SOUTH, {"inactive": True})
    old = "watermark = watermark - interval '10 days', pass_started_at = pass_started_at - interval '10 days'"
    rows(f"UPDATE nexhealth_sync_state SET {old} WHERE location_id = {NORTH} AND pass = 'members' RETURNING 1")
    began = datetime.now(UTC)
    documents = of(sync_all(settings, only={"patients", "documents"}), "documents", NORTH)
    assert documents.as_of is not None
    assert documents.as_of > began - timedelta(minutes=1)
    assert complete_through(rows, "documents", NORTH) == documents.as_of


@pytest.mark.parametrize("ahead", [-600, 600])
def test_what_came_after_a_whole_read_is_told_from_what_it_lacked_whatever_our_clock_says(
    ahead: int, database_url: str, rows: Rows
) -> None:
    """Risk: a row that an event brings within the minutes that our clock is ahead counts as one that the API lost."""
    with SandboxServer(patients=5, limits=False, clock=lambda: time.time() + ahead) as box:
        sync_all(practice(box, database_url, "willow-dental"), FULL, only={"nex_staff", "patients", "documents"})
    (check,) = [one for one in CHECKS if (one.collection.name, one.rule.name) == ("nex_staff", "no_rows_left_over")]

    def left_over(seconds: int) -> int:
        """Where one more row was read so many seconds after the read of all of them ended."""
        with psycopg.connect(database_url) as connection:
            connection.execute(
                "INSERT INTO nexhealth_nex_staff (institution_id, id, synced_at, source_read_at, row_hash)"
                " SELECT institution_id, 999999, now(), %s + %s * interval '1 s', '' FROM nexhealth_nex_staff LIMIT 1",
                (api_time, seconds),
            )
            found = run(connection, check).count
            connection.rollback()
        return found

    (api_time,) = rows("SELECT max(source_read_at) FROM nexhealth_nex_staff")[0]
    assert abs(api_time - datetime.now(UTC) - timedelta(seconds=ahead)) < timedelta(minutes=5)
    assert (left_over(240), left_over(-240)) == (0, 1)
    far = "complete_at IS NULL OR abs(extract(epoch FROM complete_at - watermark)) > 240"
    assert rows(f"SELECT DISTINCT collection FROM nexhealth_sync_state WHERE {far}") == []


def test_a_location_is_complete_once_every_pass_of_its_months_is(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Risk: one month's cancelled visits were never read, and the location says that it has everything."""
    today = datetime.now(UTC).date()
    last = month_keys(today)[-1]
    begins = f"start={month_window(last, today)[0]:%Y-%m-%d}"
    box.faults.add(
        "status", path="/appointments", location_id=DESERT, status=400,
        query=f"cancelled=true.*{begins}|{begins}.*cancelled=true",
    )  # fmt: skip
    results = sync_all(settings, FULL, only={"appointments"}, retry=QUICK)
    mine = [one for one in results if one.slice.location_id == DESERT]
    assert [one.slice.window_key for one in mine if str(one.status) == "failed"] == [last]
    # The months are read side by side: another one ends after it.
    sync_all(settings, FULL, only={"appointments"}, retry=QUICK)
    assert complete_through(rows, "appointments", NORTH) is not None
    assert complete_through(rows, "appointments", DESERT) is None
    box.faults.clear()
    sync_all(settings, only={"appointments"}, retry=QUICK)
    assert complete_through(rows, "appointments", DESERT) is not None


def test_what_only_a_reconcile_reads_tells_nothing_of_other_reads(settings: Settings, rows: Rows) -> None:
    """Risk: for a week after a reconcile the others' state is told by a pass that none of them moves."""
    names = {"insurance_coverages", "coverage_subscribers", "providers"}
    full = sync_all(settings, FULL, only=names)
    weekly = sync_all(settings, RECONCILE, only=names)
    assert of(weekly, "providers").rows == of(full, "providers").rows
    rows(
        "UPDATE nexhealth_sync_state SET watermark = watermark - interval '3 days' WHERE pass = 'active_again' RETURNING 1"
    )
    nightly = of(sync_all(settings, only=names), "coverage_subscribers")
    assert nightly.as_of is not None
    assert nightly.as_of > datetime.now(UTC) - timedelta(days=1)
    assert complete_through(rows, "coverage_subscribers") == nightly.as_of


def test_lists_side_by_side_that_cannot_be_read_do_not_stand_before_all_others(database_url: str, rows: Rows) -> None:
    """Five failures in a row end a location's read: were they the first every night, nobody behind them was ever read."""
    with SandboxServer(patients=400, appointments_per_patient=0, limits=False) as box:
        settings = practice(box, database_url, "willow-dental")
        sync_all(settings, FULL, only={"patients"})
        where = f"location_id = {DESERT} AND gone_at IS NULL"
        bad = [
            one
            for (one,) in rows(f"SELECT patient_id FROM nexhealth_patient_locations WHERE {where} ORDER BY 1 LIMIT 6")
        ]
        box.faults.add("status", path=f"/patients/({'|'.join(map(str, bad))})/documents", status=400)
        results = sync_all(settings, only={"patients", "documents"}, retry=QUICK)
        assert "6 single reads of" in (of(results, "documents", DESERT).reason or "")
        unread = "SELECT id FROM nexhealth_patients WHERE id NOT IN (SELECT patient_id FROM nexhealth_child_reads) ORDER BY 1"
        assert rows(unread) == [(one,) for one in bad]


def test_a_sync_that_broke_off_leaves_spoilt_records_to_the_next(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both come of one bad line: a record that was not readable, and a sync that did not ask for it to the end."""
    monkeypatch.setitem(MOST_A_PAGE, Paging.CURSOR, 3)
    box.faults.add("garbled", path="/patients", location_id=DESERT, count=3, per_url=True)
    sync_all(settings, FULL, only={"patients"}, retry=QUICK)
    assert rows(OPEN_NOTES) != []
    box.faults.clear()
    box.faults.add("repeated_page", path="/patients", location_id=DESERT, skip=1)
    broken = sync_all(settings, only={"patients"}, retry=QUICK)
    assert str(of(broken, "patients", DESERT).status) == "failed"
    box.faults.clear()
    sync_all(settings, only={"patients"}, retry=QUICK)
    assert rows(OPEN_NOTES) == []
    held = {one for (one,) in rows("SELECT id FROM nexhealth_patients")}
    sync_all(settings, FULL, only={"patients"}, retry=QUICK)
    assert held == {one for (one,) in rows("SELECT id FROM nexhealth_patients")}


def test_asking_once_more_closes_no_note_of_what_it_did_not_ask_for(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Risk: a record that can never be read is not there, and after another one's mishap nobody says so any more."""
    sync_all(settings, FULL, only={"patients"})
    (institution, patient) = rows(
        f"SELECT institution_id, min(patient_id) FROM nexhealth_patient_locations WHERE location_id = {DESERT} GROUP BY 1"
    )[0]
    rows(
        "INSERT INTO nexhealth_quarantine (collection, institution_id, location_id, record_id, field, rule, loaded, raw,"
        " fingerprint, run_id, read_at, first_seen_at) VALUES"
        f" ('patients', {institution}, {DESERT}, '', '', 'no id', false, '', 'old', 'r', now() - interval '60 days',"
        " now() - interval '60 days') RETURNING 1"
    )
    box.state.update("patients", int(str(patient)), {"first_name": "Moved"})
    rule = box.faults.add("garbled", path="/patients", location_id=DESERT, count=3, per_url=True)
    sync_all(settings, only={"patients"}, retry=QUICK)
    assert rule.fired
    assert sorted(old for _, old in rows(OPEN_NOTES)) == [False, True]
    box.faults.clear()
    sync_all(settings, only={"patients"}, retry=QUICK)
    assert [old for _, old in rows(OPEN_NOTES)] == [True]
    sync_all(settings, FULL, only={"patients"}, retry=QUICK)
    assert rows(OPEN_NOTES) == []


def test_a_reconcile_goes_on_with_nothing_that_it_could_not_judge_by(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Risk: a new run takes up a pass that a dead one began, reads all the rest, and then says that it was not complete."""
    monkeypatch.setitem(MOST_A_PAGE, Paging.CURSOR, 2)
    sync_all(settings, FULL, only={"patients"})
    (victim,) = rows(f"SELECT min(patient_id) FROM nexhealth_patient_locations WHERE location_id = {DESERT}")[0]
    box.state.delete("patients", int(str(victim)), hard=True)
    stop = threading.Event()

    def after_one(label: str, pages: int, records: int) -> None:
        if label == f"patients willow-dental.{DESERT}":
            stop.set()

    small = replace(RECONCILE, batch_pages=1, concurrency=1)
    sync_all(settings, small, only={"patients"}, on_progress=after_one, stop=stop)
    assert rows("SELECT id FROM nexhealth_patients WHERE deleted_by = 'absence'") == []
    began = rows("SELECT clock_timestamp()")[0][0]
    sync_all(settings, replace(small, fresh_after=began), only={"patients"})
    assert rows("SELECT id FROM nexhealth_patients WHERE deleted_by = 'absence'") == [(victim,)]


def test_another_sync_meanwhile_does_not_take_from_a_reconcile_what_it_met(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Risk: a reconcile judges hours after it read whom a location lists, and every sync in between forgets that."""
    sync_all(settings, FULL, only={"patients"})
    (victim,) = rows(f"SELECT min(patient_id) FROM nexhealth_patient_locations WHERE location_id = {SOUTH}")[0]
    box.state.delete("patients", int(str(victim)), hard=True)
    between: list[SliceResult] = []

    def later(*asked: Any) -> Any:
        if not between:
            between.extend(sync_all(settings, only={"patients"}))
        return seen_passes(*asked)

    monkeypatch.setattr(reconcile, "seen_passes", later)
    sync_all(settings, RECONCILE, only={"patients"})
    assert {str(one.status) for one in between} == {"succeeded"}
    assert rows("SELECT id FROM nexhealth_patients WHERE deleted_by = 'absence'") == [(victim,)]
    assert rows("SELECT 1 FROM nexhealth_seen_passes WHERE pass LIKE '% alone'") == []
