"""Events that only tell of a change: what is read again because of them, how often, and what is left alone."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.practice import load_practices
from nexhealth_pipeline.sync.runner import run_slices
from nexhealth_pipeline.sync.slice_lock import SliceLock
from nexhealth_pipeline.sync.slices import Slice, SliceResult
from nexhealth_pipeline.webhooks.applying import apply, hints

from .asking import Told, asked, home, last, snapshot, without_events
from .kit import apply_all, body, due_again, store


@pytest.fixture
def db(settings: Settings) -> Iterator[psycopg.Connection]:
    with without_events(settings) as db:
        yield db


def insertion(row: tuple[int, str, int], number: int, **more: Any) -> bytes:
    data = {"appointment": {"id": number, "location_id": row[2]}}
    return body("appointment_insertion.complete", data, subdomain=row[1], **more)


def booked(box: SandboxServer, db: psycopg.Connection) -> tuple[tuple[int, str, int], int]:
    """An appointment of a location, changed at the practice."""
    place = home(db)
    row = db.execute(
        "SELECT id FROM nexhealth_appointments WHERE institution_id = %s AND location_id = %s LIMIT 1",
        (place[0], place[2]),
    ).fetchone()
    assert row is not None
    box.state.update("appointments", row[0], {"note": "changed"})
    return place, row[0]


def test_an_inserted_appointment_is_read_with_the_changes_of_its_location(
    box: SandboxServer, db: psycopg.Connection, told: Told
) -> None:
    """Many events, one read: an insertion and its outcome say the same."""
    place, number = booked(box, db)
    since = last(box)
    assert told(*(insertion(place, number, at=at) for at in range(5))) == [("applied", None)] * 5
    assert db.execute("SELECT note FROM nexhealth_appointments WHERE id = %s", (number,)).fetchall() == [("changed",)]
    read = asked(box, "/appointments", since)
    assert {one.param("location_id") for one in read} == {str(place[2])}
    assert all(one.param("updated_since") for one in read)
    assert len(read) == 2, "kept and cancelled ones, once each"


def test_the_months_it_changed_are_reported(box: SandboxServer, db: psycopg.Connection, settings: Settings) -> None:
    """What Dagit shows of it."""
    place, number = booked(box, db)
    store(db, insertion(place, number))
    (piece,), total = apply_all(settings)
    assert (piece.rows, piece.events, piece.complete, total.rows) == (1, 1, True, 1)
    assert piece.partition_key is not None
    assert piece.partition_key.startswith(f"{place[1]}.{place[2]}|")


def test_a_list_without_locations_in_its_events_is_read_everywhere(
    box: SandboxServer, db: psycopg.Connection, told: Told
) -> None:
    """Payment types belong to a database, and nobody says to which."""
    place = home(db)
    since = last(box)
    event = body("payment_type_updated", {"payment_type": {"id": 1}}, subdomain=place[1])
    assert told(event) == [("applied", None)]
    locations = {one.id for one in load_practices(db).active(place[0])}
    assert {int(one.param("location_id")) for one in asked(box, "/payment_types", since)} == locations


@pytest.mark.parametrize("other", [{"id": 2}, {"id": 2, "location_id": None}, None])
def test_one_record_without_a_location_is_enough_to_have_all_of_them_read(
    box: SandboxServer, db: psycopg.Connection, told: Told, other: object
) -> None:
    """It may be of any, but only the others' locations were read, and its change was said to be applied."""
    place = home(db)
    since = last(box)
    data = {"payment_types": [{"id": 1, "location_id": place[2]}, other]}
    assert told(body("payment_type_updated", data, subdomain=place[1])) == [("applied", None)]
    locations = {one.id for one in load_practices(db).active(place[0])}
    assert len(locations) > 1
    assert {int(one.param("location_id")) for one in asked(box, "/payment_types", since)} == locations


def test_the_state_of_the_office_is_read_again(box: SandboxServer, db: psycopg.Connection, told: Told) -> None:
    """Red or green decides whether data is fresh."""
    since = last(box)
    event = body("sync_status_read_change.green", {"syncstatus": {"read_status": "green"}}, subdomain=home(db)[1])
    assert told(event) == [("applied", None)]
    assert asked(box, "/sync_status", since)


def test_a_document_has_its_patients_list_read_and_no_other(
    box: SandboxServer, db: psycopg.Connection, told: Told
) -> None:
    """A request a patient: only for those that events name."""
    place = home(db)
    row = db.execute("SELECT min(id) FROM nexhealth_patients WHERE institution_id = %s", place[:1]).fetchone()
    assert row is not None
    made = box.state.create("documents", {}, subdomain=place[1], patient_id=row[0])
    since = last(box)
    data = {"document": {"id": made.id, "patient_id": row[0]}}
    events = [body("document_insertion.complete", data, subdomain=place[1], at=at) for at in range(3)]
    assert told(*events) == [("applied", None)] * 3
    assert [one.path for one in asked(box, "/patients/.*", since)] == [f"/patients/{row[0]}/documents"]
    assert db.execute("SELECT patient_id FROM nexhealth_documents WHERE id = %s", (made.id,)).fetchall() == [(row[0],)]
    assert db.execute("SELECT mode, inserted FROM nexhealth_sync_logs WHERE collection = 'documents'").fetchall() == [
        ("webhook", 1)
    ]


def test_a_document_that_moved_to_the_patient_is_not_missed_where_it_was(
    box: SandboxServer, db: psycopg.Connection, told: Told
) -> None:
    """A check would warn of rows that were lost, until the other patient's list is read in its turn."""
    (institution, subdomain, _) = home(db)
    found = db.execute(
        "SELECT id FROM nexhealth_patients WHERE institution_id = %s ORDER BY id LIMIT 2", (institution,)
    )
    (old,), (new,) = found.fetchall()
    made = box.state.create("documents", {}, subdomain=subdomain, patient_id=old)
    lists = "SELECT r.rows, count(d.id) FROM nexhealth_child_reads r LEFT JOIN nexhealth_documents d USING (patient_id)"
    lists += " WHERE r.collection = 'documents' AND patient_id = %s GROUP BY 1"
    held = []
    for patient in (old, new):
        box.state.update("documents", made.id, {}, about={"patient_id": patient})
        data = {"document": {"id": made.id, "patient_id": patient}}
        assert told(body("document_insertion.complete", data, subdomain=subdomain))[-1] == ("applied", None)
        held += db.execute(lists, (old,)).fetchall()
    (before, rows_before), (after, rows_after) = held
    assert (before, after) == (rows_before, rows_after)
    assert after == before - 1


def test_lists_are_told_once_they_are_committed_and_never_if_they_are_not(
    box: SandboxServer, db: psycopg.Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is told of rows that were rolled back looks for them in vain."""
    place = home(db)
    row = db.execute("SELECT min(id) FROM nexhealth_patients WHERE institution_id = %s", place[:1]).fetchone()
    assert row is not None
    made = box.state.create("documents", {}, subdomain=place[1], patient_id=row[0])
    data = {"document": {"id": made.id, "patient_id": row[0]}}
    store(db, body("document_insertion.complete", data, subdomain=place[1]))

    def fails(_answer: object) -> int:
        raise ValueError

    with monkeypatch.context() as patch:
        patch.setattr(hints, "_gravity", fails)
        _, total = apply_all(settings)
    assert (total.failed, total.lists) == (1, [])
    assert not db.execute("SELECT FROM nexhealth_documents WHERE id = %s", (made.id,)).fetchall()
    due_again(db)
    _, total = apply_all(settings)
    (done,) = total.lists
    assert (total.applied, done.collection.name, done.read, done.changed) == (1, "documents", {row[0]}, 1)


def test_a_record_without_a_version_has_its_list_read(box: SandboxServer, db: psycopg.Connection, told: Told) -> None:
    """Nothing else tells whether it is newer than the row."""
    place = home(db)
    row = db.execute("SELECT min(id) FROM nexhealth_patients WHERE institution_id = %s", place[:1]).fetchone()
    assert row is not None
    box.state.update("patients", row[0], {"email": "new@example.org"})
    event = body("patient_updated", {"patient": {"id": row[0], "email": "not to be trusted"}}, subdomain=place[1])
    assert told(event) == [("applied", None)]
    assert db.execute("SELECT email FROM nexhealth_patients WHERE id = %s", row).fetchall() == [("new@example.org",)]


def test_what_was_never_read_is_left_to_its_first_read(box: SandboxServer, db: psycopg.Connection, told: Told) -> None:
    """A change read of an empty table would look complete and not be."""
    since = last(box)
    ((status, error),) = told(body("adjustment_type_updated", {"adjustment_type": {"id": 1}}, subdomain=home(db)[1]))
    assert status == "superseded"
    assert error is not None
    assert "first full read" in error
    assert not asked(box, "/adjustment_types", since)


def test_while_the_api_is_away_events_wait_and_are_not_blamed(
    box: SandboxServer, db: psycopg.Connection, settings: Settings, told: Told
) -> None:
    """An outage of a day must not park a day's events."""
    place = home(db)
    box.faults.add("status", path="/payment_types", status=503)
    try:
        event = body("payment_type_updated", {"payment_type": {"id": 1}}, subdomain=place[1])
        ((status, error),) = told(event)
    finally:
        box.faults.clear()
    assert status == "pending"
    assert error
    row = db.execute("SELECT attempts, next_attempt_at > now() FROM nexhealth_webhook_events").fetchone()
    assert row == (0, True)
    due_again(db)
    _, total = apply_all(settings)
    assert total.applied == 1


def test_a_server_that_ends_idle_transactions_does_not_end_ours(
    box: SandboxServer, db: psycopg.Connection, settings: Settings, told: Told
) -> None:
    """The one that claims the events is idle while the API is read, however long that takes."""
    name = db.info.dbname
    db.execute(f'ALTER DATABASE "{name}" SET idle_in_transaction_session_timeout = 200')
    box.faults.add("hang", path="/payment_types", seconds=1.0, count=1)
    try:
        event = body("payment_type_updated", {"payment_type": {"id": 1}}, subdomain=home(db)[1])
        assert told(event) == [("applied", None)]
    finally:
        box.faults.clear()
        db.execute(f'ALTER DATABASE "{name}" RESET idle_in_transaction_session_timeout')


def document(db: psycopg.Connection) -> bytes:
    """An event about a document."""
    place = home(db)
    question = "SELECT id, patient_id FROM nexhealth_documents WHERE institution_id = %s ORDER BY id LIMIT 1"
    row = db.execute(question, place[:1]).fetchone()
    assert row is not None
    return body("document_insertion.complete", {"document": {"id": row[0], "patient_id": row[1]}}, subdomain=place[1])


def test_while_the_api_key_is_refused_events_wait_and_are_not_blamed(
    db: psycopg.Connection, settings: Settings, told: Told
) -> None:
    """A key that is corrected the next day must not find the day's events parked."""
    events = body("payment_type_updated", {"payment_type": {"id": 1}}, subdomain=home(db)[1]), document(db)
    refused = settings.model_copy(update={"api_key": SecretStr("outdated")})
    store(db, *events)
    apply_all(refused)
    rows = "SELECT status, attempts, next_attempt_at > now() + interval '1 minute', error FROM nexhealth_webhook_events"
    found = db.execute(rows).fetchall()
    assert [one[:3] for one in found] == [("pending", 0, True)] * 2, "and asked again once in a while only"
    assert all("API key is refused" in one[3] for one in found)
    due_again(db)
    _, total = apply_all(settings)
    assert total.applied == 2


def test_a_refused_read_counts_as_a_try(box: SandboxServer, db: psycopg.Connection, told: Told) -> None:
    """Asking the same again would bring the same."""
    box.faults.add("status", path="/payment_types", status=400)
    try:
        told(body("payment_type_updated", {"payment_type": {"id": 1}}, subdomain=home(db)[1]))
    finally:
        box.faults.clear()
    assert db.execute("SELECT status, attempts FROM nexhealth_webhook_events").fetchall() == [("pending", 1)]


def test_a_slice_that_is_being_read_is_not_waited_for(db: psycopg.Connection, settings: Settings, told: Told) -> None:
    """A full read may last an hour; other events must not stand behind it."""
    place = home(db)
    location = next(one for one in load_practices(db).locations if one.id == place[2])
    piece = Slice(COLLECTIONS["payment_types"], location.institution, location)
    assert settings.database_url
    with (
        psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as other,
        SliceLock(other, piece, threading.Event()),
    ):
        data = {"payment_type": {"id": 1, "location_id": place[2]}}
        ((status, error),) = told(body("payment_type_updated", data, subdomain=place[1]))
    assert status == "pending"
    assert error is not None
    assert "another run reads it" in error
    due_again(db)
    _, total = apply_all(settings)
    assert total.applied == 1


def test_a_slice_that_another_run_begins_to_read_meanwhile_is_not_waited_for(
    db: psycopg.Connection, settings: Settings, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of hundreds the last is read minutes after the first: the night may have come to it before."""
    place = home(db)
    location = next(one for one in load_practices(db).locations if one.id == place[2])
    piece = Slice(COLLECTIONS["payment_types"], location.institution, location)
    assert settings.database_url
    with ExitStack() as night:
        other = night.enter_context(psycopg.connect(settings.database_url.get_secret_value(), autocommit=True))
        end = threading.Timer(10, night.close)
        night.callback(end.cancel)

        def begun_by_then(*given: Any, **more: Any) -> Iterator[SliceResult]:
            night.enter_context(SliceLock(other, piece, threading.Event()))
            end.start()
            return run_slices(*given, **more)

        monkeypatch.setattr(hints, "run_slices", begun_by_then)
        data = {"payment_type": {"id": 1, "location_id": place[2]}}
        ((status, error),) = told(body("payment_type_updated", data, subdomain=place[1]))
    assert (status, error) == ("pending", f"{piece.label}: another run reads it just now")
    assert db.execute("SELECT attempts FROM nexhealth_webhook_events").fetchall() == [(0,)]


def test_a_new_patient_gets_its_address_and_its_locations(
    box: SandboxServer, db: psycopg.Connection, told: Told
) -> None:
    """No list has told of it yet, and webhook payloads lack both."""
    place = home(db)
    made = box.state.create("patients", {"first_name": "New"}, subdomain=place[1], location_ids=[place[2]])
    since = last(box)
    assert told(snapshot(box, made.id, place[1])) == [("applied", None)]
    assert [one.path for one in asked(box, "/patients/.*", since)] == [f"/patients/{made.id}"]
    assert db.execute(
        "SELECT location_id, gone_at FROM nexhealth_patient_locations WHERE patient_id = %s", (made.id,)
    ).fetchall() == [(place[2], None)]
    reads = db.execute(
        "SELECT collection, patient_version = p.updated_at FROM nexhealth_child_reads r"
        " JOIN nexhealth_patients p ON p.id = r.patient_id WHERE patient_id = %s",
        (made.id,),
    ).fetchall()
    assert reads == [("patient_addresses", True)]


def test_only_so_many_single_reads_are_made_at_once(
    box: SandboxServer, db: psycopg.Connection, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst must not use up the practice's limits: the nightly sync reads the rest."""
    monkeypatch.setattr(apply, "_MOST_SINGLES", 2)
    place = home(db)
    rows = db.execute(
        "SELECT id FROM nexhealth_patients WHERE institution_id = %s ORDER BY id LIMIT 4", place[:1]
    ).fetchall()
    for (number,) in rows:
        box.state.update("patients", number, {"first_name": f"Changed {datetime.now(UTC)}"})
    since = last(box)
    assert told(*(snapshot(box, number, place[1]) for (number,) in rows)) == [("applied", None)] * 4
    assert len(asked(box, "/patients/.*", since)) == 2


def test_what_lists_lack_is_read_for_events_before_the_first_read_of_all_has_ended(
    box: SandboxServer, db: psycopg.Connection, told: Told
) -> None:
    """It never ends where the answer for one row cannot be used: all addresses were left to the nights."""
    place = home(db)
    row = db.execute("SELECT max(id) FROM nexhealth_patients WHERE institution_id = %s", place[:1]).fetchone()
    assert row is not None
    box.state.update("patients", row[0], {"first_name": f"Changed {datetime.now(UTC)}"})
    since = last(box)
    ended = "UPDATE nexhealth_sync_state SET watermark = {} WHERE collection = 'patient_addresses'"
    db.execute(ended.format("NULL"))
    try:
        assert told(snapshot(box, row[0], place[1])) == [("applied", None)]
    finally:
        db.execute(ended.format("pass_started_at"))
    assert [one.path for one in asked(box, "/patients/.*", since)] == [f"/patients/{row[0]}"]


def test_what_lists_lack_is_not_asked_for_where_it_never_was(
    box: SandboxServer, db: psycopg.Connection, told: Told
) -> None:
    """Subscribers of coverages were not read yet: their first read asks for all of them."""
    place = home(db)
    row = db.execute(
        "SELECT min(id) FROM nexhealth_insurance_coverages WHERE institution_id = %s", place[:1]
    ).fetchone()
    assert row is not None
    box.state.update("insurance_coverages", row[0], {"priority": 9})
    record = box.state.row("insurance_coverages", row[0]).record()
    since = last(box)
    assert told(body("patient_insurance_updated", {"insurance_coverage": record}, subdomain=place[1])) == [
        ("applied", None)
    ]
    assert not asked(box, "/insurance_coverages/.*", since)
