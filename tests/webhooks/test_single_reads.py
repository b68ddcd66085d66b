"""Lists of single rows that the API fails at or refuses: whose fault that is, and who is asked for all the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.warehouse.child_reads import DueRow
from nexhealth_pipeline.webhooks.applying import owners
from nexhealth_pipeline.webhooks.applying.single_reads import _known
from tests.sync.kit import sync_all

from .asking import Told, asked, home, last, sandbox, snapshot, without_events
from .kit import body, due_again

PATIENTS = 10
"""More than half of them are of one institution: more than may be refused before the others are asked for."""


@pytest.fixture(scope="module")
def box() -> Iterator[SandboxServer]:
    with sandbox(PATIENTS) as box:
        yield box


@pytest.fixture
def db(settings: Settings) -> Iterator[psycopg.Connection]:
    with without_events(settings) as db:
        yield db


def patients(db: psycopg.Connection) -> list[int]:
    """Of the institution, the lowest first: in this order they are asked for."""
    rows = db.execute("SELECT id FROM nexhealth_patients WHERE institution_id = %s ORDER BY id", home(db)[:1])
    found = [id_ for (id_,) in rows]
    assert len(found) > 5
    return found


def inserted(box: SandboxServer, db: psycopg.Connection, patient: int, *, named: bool = True) -> bytes:
    """The event of a new document."""
    subdomain = home(db)[1]
    made = box.state.create("documents", {}, subdomain=subdomain, patient_id=patient)
    data = {"id": made.id, "patient_id": patient} if named else {"id": made.id}
    return body("document_insertion.complete", {"document": data}, subdomain=subdomain)


@contextmanager
def failing(box: SandboxServer, status: int, *patients: int, path: str = "/documents") -> Iterator[None]:
    """The lists of these patients are answered so."""
    box.faults.add("status", path=f"/patients/({'|'.join(map(str, patients))}){path}", status=status)
    try:
        yield
    finally:
        box.faults.clear()


@pytest.mark.parametrize("collection", [one for one in DECLARED if one.per], ids=lambda one: one.name)
def test_whose_list_was_read_is_known_of_what_could_not_be_loaded(collection: Collection) -> None:
    """Also where the record says it itself, if it can be read: else no list read without it closes its note."""
    assert _known(collection, DueRow(5, None)) == {collection.parent_columns[0]: 5, "location_id": 0}


def attempts(db: psycopg.Connection) -> list[int]:
    return [one for (one,) in db.execute("SELECT attempts FROM nexhealth_webhook_events ORDER BY id")]


def lists_asked(box: SandboxServer, since: int) -> list[int]:
    return sorted({int(one.path.split("/")[2]) for one in asked(box, "/patients/.*", since)})


def test_a_list_that_is_refused_is_a_failed_try_of_its_own_event_alone(
    box: SandboxServer, db: psycopg.Connection, told: Told
) -> None:
    """One record was closed to the key: the documents of all other patients were given up with it."""
    everybody = patients(db)
    events = [inserted(box, db, one) for one in everybody]
    with failing(box, 403, everybody[0]):
        (status, error), *others = told(*events, concurrency=1)
    assert status == "pending"
    assert error is not None
    assert "no access" in error
    assert others == [("applied", None)] * len(others)
    assert attempts(db) == [1] + [0] * len(others)


def test_a_list_that_came_spoilt_is_asked_for_by_the_next_sync_though_it_was_read_before(
    box: SandboxServer, db: psycopg.Connection, told: Told, settings: Settings
) -> None:
    """The patient has not changed: what could not be loaded would wait for that list's turn, weeks later."""
    patient = patients(db)[0]
    event = inserted(box, db, patient)
    box.faults.add("garbled", path=f"/patients/{patient}/documents")
    told(event)
    box.faults.clear()
    notes = "SELECT count(*) > 0 FROM nexhealth_quarantine WHERE resolved_at IS NULL AND request ->> 'patient_id' = %s"
    assert db.execute(notes, (str(patient),)).fetchall() == [(True,)]
    sync_all(settings, only={"patients", "documents"})
    assert db.execute(notes, (str(patient),)).fetchall() == [(False,)]


def test_where_all_lists_are_refused_those_that_were_not_asked_for_have_failed_as_well(
    box: SandboxServer, db: psycopg.Connection, told: Told
) -> None:
    """The practice has closed them all: at four tries a run a backlog of thousands was pending for days."""
    everybody, since = patients(db), last(box)
    events = [inserted(box, db, one) for one in everybody]
    with failing(box, 403, *everybody):
        found = told(*events, concurrency=1)
    assert lists_asked(box, since) == everybody[:4]
    assert {status for status, _ in found} == {"pending"}
    assert attempts(db) == [1] * len(everybody)
    later = db.execute("SELECT bool_and(next_attempt_at > now()) FROM nexhealth_webhook_events").fetchall()
    assert later == [(True,)]
    due_again(db)
    assert told() == [("applied", None)] * len(everybody)


def test_failures_with_answers_between_them_are_no_outage(
    box: SandboxServer, db: psycopg.Connection, told: Told
) -> None:
    """A few rows that the API cannot answer for kept all after the third from being asked for, in each run anew."""
    everybody, since = patients(db), last(box)
    events = [inserted(box, db, one) for one in everybody]
    bad = everybody[0], everybody[2], everybody[4]
    with failing(box, 500, *bad):
        found = told(*events, concurrency=1)
    assert lists_asked(box, since) == everybody
    assert [status for status, _ in found] == ["pending" if one in bad else "applied" for one in everybody]
    assert attempts(db) == [0] * len(everybody)


def test_after_some_failures_in_a_row_the_others_wait(box: SandboxServer, db: psycopg.Connection, told: Told) -> None:
    """Each costs all its retries."""
    everybody, since = patients(db), last(box)
    events = [inserted(box, db, one) for one in everybody]
    with failing(box, 500, *everybody[1:]):
        (first, *others) = told(*events, concurrency=1)
    assert lists_asked(box, since) == everybody[:4]
    assert (first, {status for status, _ in others}) == (("applied", None), {"pending"})
    assert attempts(db) == [0] * len(everybody)


@pytest.mark.parametrize("status", [403, 500])
def test_a_search_goes_on_past_a_list_that_is_not_answered(
    box: SandboxServer, db: psycopg.Connection, told: Told, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """It is due for ever, and so among the first that each search asks for."""
    monkeypatch.setattr(owners, "_AT_ONCE", len(patients(db)) - 1)
    *others, owner = patients(db)
    # As nobody has a visit, who has changed last comes first.
    db.execute("UPDATE nexhealth_appointments SET start_time = start_time + interval '1 year'")
    db.execute("UPDATE nexhealth_patients SET updated_at = updated_at - interval '10 years' WHERE id = %s", (owner,))
    event = inserted(box, db, owner, named=False)
    with failing(box, status, others[0]):
        assert told(event, concurrency=1) == [("applied", None)]


@pytest.mark.parametrize("answered", [0, 1])
def test_an_outage_in_a_search_is_no_failed_try_although_a_list_was_refused_before(
    box: SandboxServer, db: psycopg.Connection, told: Told, answered: int
) -> None:
    """The refusal is one row's, and what ended the search the outage: each event of the batch was given up by it."""
    closed, *others = patients(db)
    event = inserted(box, db, others[-1], named=False)
    with failing(box, 500, *others[answered:]), failing(box, 403, closed):
        ((status, error),) = told(event, concurrency=1)
    assert (status, attempts(db)) == ("pending", [0])
    assert error is not None
    assert "no access" not in error


def test_addresses_that_are_all_refused_are_asked_for_a_few_times_and_the_events_are_applied_all_the_same(
    box: SandboxServer, db: psycopg.Connection, told: Told
) -> None:
    """Their records came with the events; the addresses are the next sync's."""
    everybody = patients(db)
    for number in everybody:
        box.state.update("patients", number, {"first_name": f"Changed {datetime.now(UTC)}"})
    since = last(box)
    with failing(box, 403, *everybody, path=""):
        found = told(*(snapshot(box, number, home(db)[1]) for number in everybody), concurrency=1)
    assert found == [("applied", None)] * len(everybody)
    assert lists_asked(box, since) == everybody[:4]
