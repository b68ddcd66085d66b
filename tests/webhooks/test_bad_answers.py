"""Answers of the API that cannot be used: a failed try of those events alone that asked for them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql

from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.webhooks.applying import hints, owners, single_reads
from nexhealth_pipeline.webhooks.applying.batches import Answered
from nexhealth_pipeline.webhooks.applying.reading import Told as Read
from nexhealth_pipeline.webhooks.applying.single_reads import SingleReads

from .asking import Told, asked, home, last, without_events
from .kit import apply_all, body, due_again

Place = tuple[int, str, int]


@pytest.fixture
def db(settings: Settings) -> Iterator[psycopg.Connection]:
    with without_events(settings) as db:
        yield db


def patients(db: psycopg.Connection, institution: int) -> list[int]:
    rows = db.execute("SELECT id FROM nexhealth_patients WHERE institution_id = %s ORDER BY id", (institution,))
    return [id_ for (id_,) in rows]


def documents(box: SandboxServer, place: Place, *owners: int, named: bool = True) -> list[bytes]:
    """A new document for each of these patients, and the events of it."""
    made = [box.state.create("documents", {}, subdomain=place[1], patient_id=one) for one in owners]
    data = [
        {"id": one.id, "patient_id": owner} if named else {"id": one.id}
        for one, owner in zip(made, owners, strict=True)
    ]
    return [body("document_insertion.complete", {"document": one}, subdomain=place[1]) for one in data]


def lists_asked(box: SandboxServer, since: int) -> list[int]:
    return sorted(int(one.path.split("/")[2]) for one in asked(box, "/patients/.*/documents", since))


@contextmanager
def refusing(db: psycopg.Connection, patient: int) -> Iterator[None]:
    """The warehouse takes no document of one patient."""
    db.execute(
        sql.SQL("ALTER TABLE nexhealth_documents ADD CONSTRAINT refused CHECK (patient_id <> {}) NOT VALID").format(
            patient
        )
    )
    try:
        yield
    finally:
        db.execute("ALTER TABLE nexhealth_documents DROP CONSTRAINT refused")


def test_an_answer_that_is_refused_is_a_failed_try_of_its_own_event_and_none_is_asked_for_twice(
    box: SandboxServer, db: psycopg.Connection, settings: Settings, told: Told
) -> None:
    """1,500 documents in one transaction: one bad answer must not park them all, nor cost 1,500 requests once more."""
    place = home(db)
    everybody = patients(db, place[0])
    guilty, since = everybody[2], last(box)
    events = documents(box, place, *everybody)
    with refusing(db, guilty):
        found = told(*events)
    reason = "documents: PostgreSQL refused (23514 CheckViolation)"
    assert found == [("pending", reason) if one == guilty else ("applied", None) for one in everybody]
    assert lists_asked(box, since) == everybody
    assert db.execute(
        "SELECT attempts, next_attempt_at > now() FROM nexhealth_webhook_events WHERE status = 'pending'"
    ).fetchall() == [(1, True)]
    assert db.execute("SELECT status, inserted, error FROM nexhealth_sync_logs").fetchall() == [
        ("succeeded", len(everybody) - 1, reason)
    ]
    due_again(db)
    assert apply_all(settings)[1].applied == 1


def test_a_search_goes_on_past_a_list_that_is_refused(
    box: SandboxServer, db: psycopg.Connection, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands among the likeliest at each try: no document whose patient is not known would be found."""
    monkeypatch.setattr(owners, "_AT_ONCE", 1)
    place = home(db)
    everybody = patients(db, place[0])
    guilty, *_, owner = everybody
    db.execute("UPDATE nexhealth_child_reads SET read_at = read_at - interval '1 day' WHERE collection = 'documents'")
    (event,) = documents(box, place, owner, named=False)
    documents(box, place, guilty)
    with refusing(db, guilty):
        assert told(event) == [("applied", None)]


def test_what_a_search_cannot_see_is_not_said_to_be_nowhere(
    box: SandboxServer, db: psycopg.Connection, told: Told
) -> None:
    """Its document may be in the very list that was refused."""
    place = home(db)
    guilty = patients(db, place[0])[0]
    db.execute("UPDATE nexhealth_child_reads SET read_at = read_at - interval '1 day' WHERE collection = 'documents'")
    (event,) = documents(box, place, guilty, named=False)
    with refusing(db, guilty):
        ((status, error),) = told(event)
    assert status == "pending"
    assert error is not None
    assert error.endswith("the likeliest lacked it; the nightly rotation reads all of them")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (ZeroDivisionError(), "could not be read (ZeroDivisionError)"),
        (psycopg.DataError("a NUL"), "PostgreSQL refused (DataError)"),
    ],
)
def test_whatever_else_goes_wrong_with_an_event_fails_it_alone(
    box: SandboxServer,
    db: psycopg.Connection,
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    reason: str,
) -> None:
    """What nobody foresaw: the batch is halved until it is by itself, as one that is loaded is."""
    place = home(db)
    everybody = patients(db, place[0])
    own_lists = hints.HintReader._own_lists_of

    def failing(self: hints.HintReader, search: owners.OwnerSearch, told: Sequence[Read]) -> Any:
        if any(everybody[1] in one.owners for one in told):
            raise failure
        return own_lists(self, search, told)

    monkeypatch.setattr(hints.HintReader, "_own_lists_of", failing)
    found = told(*documents(box, place, *everybody))
    assert found == [("pending", reason) if one == everybody[1] else ("applied", None) for one in everybody]
    assert db.execute("SELECT sum(attempts), sum(taken) FROM nexhealth_webhook_events").fetchall() == [(1, 0)]


def test_a_deadlock_of_lists_is_repeated_without_a_request(
    box: SandboxServer, db: psycopg.Connection, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is nobody's fault, and the answers are here."""
    place, since = home(db), last(box)
    load_all, left = SingleReads._load_all, iter([True, True, False])

    def meeting(self: SingleReads, *given: Any) -> Any:
        done = load_all(self, *given)
        if next(left):
            raise psycopg.errors.DeadlockDetected
        return done

    monkeypatch.setattr(SingleReads, "_load_all", meeting)
    everybody = patients(db, place[0])
    assert told(*documents(box, place, *everybody)) == [("applied", None)] * len(everybody)
    assert lists_asked(box, since) == everybody


def test_a_deadlock_of_events_that_are_asked_for_is_repeated(
    box: SandboxServer, db: psycopg.Connection, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of events that are loaded."""
    place, left = home(db), iter([True, False])
    read = hints.HintReader.read

    def meeting(self: hints.HintReader, told: Sequence[Read]) -> Answered:
        answered = read(self, told)
        if next(left):
            raise psycopg.errors.DeadlockDetected
        return answered

    monkeypatch.setattr(hints.HintReader, "read", meeting)
    assert told(*documents(box, place, *patients(db, place[0])[:2])) == [("applied", None)] * 2


@contextmanager
def lacking_a_right(db: psycopg.Connection, table: str) -> Iterator[None]:
    """The role may not write to a table."""
    db.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE insufficient_privilege; END $$;"
        f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION refuse()"
    )
    try:
        yield
    finally:
        db.execute("DROP FUNCTION refuse CASCADE")


def test_a_table_that_cannot_be_used_fails_the_events_of_that_table_alone(
    box: SandboxServer, db: psycopg.Connection, settings: Settings, told: Told
) -> None:
    """The read of a slice failed the run, and the next one's, and all other events that the API is asked for waited."""
    place = home(db)
    for number in box.state.ids("payment_types"):
        box.state.update("payment_types", number, {"name": "changed"})
    types = body("payment_type_updated", {"payment_type": {"id": 1}}, subdomain=place[1])
    visit = body(
        "appointment_insertion.complete", {"appointment": {"id": 1, "location_id": place[2]}}, subdomain=place[1]
    )
    with lacking_a_right(db, "nexhealth_payment_types"):
        (first, second) = told(types, visit)
    assert second == ("applied", None)
    assert first == ("pending", "loading nexhealth_payment_types: the database role lacks a right (42501)")
    assert db.execute("SELECT sum(attempts) FROM nexhealth_webhook_events").fetchall() == [(1,)]
    due_again(db)
    assert apply_all(settings)[1].applied == 1


def test_lists_of_a_table_that_cannot_be_used_are_loaded_once_and_not_each_alone(
    box: SandboxServer, db: psycopg.Connection, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No list would fare better than another."""
    place = home(db)
    events = documents(box, place, *patients(db, place[0]))
    load_all, loads = SingleReads._load_all, []

    def counted(self: SingleReads, *given: Any) -> Any:
        loads.append(given)
        return load_all(self, *given)

    monkeypatch.setattr(SingleReads, "_load_all", counted)
    with lacking_a_right(db, "nexhealth_documents"):
        found = told(*events)
    assert found == [("pending", "documents: PostgreSQL refused (42501 InsufficientPrivilege)")] * len(events)
    assert len(loads) == 1


@pytest.mark.parametrize(
    ("told", "locations"),
    [
        (b"[1, 2]", [1, 2]),
        (b"[9223372036854775807]", [9223372036854775807]),
        (b"[1, 9223372036854775808]", None),
        (b"[1, -9223372036854775809]", None),
        (b"[1.5]", None),
        (b"null", None),
    ],
)
def test_locations_that_no_column_holds_are_not_taken_for_locations(told: bytes, locations: list[int] | None) -> None:
    """What is in the answer besides is not known to be all: nothing is said about where the patient is listed."""
    assert single_reads._locations(b'{"location_ids": %s}' % told) == locations


def test_a_document_that_its_patients_list_does_not_hold_yet_is_looked_for_again(
    box: SandboxServer, db: psycopg.Connection, told: Told
) -> None:
    """A delivery may be ahead of the list: called applied, its document would come with the rotation of a month."""
    place = home(db)
    row = db.execute("SELECT min(id) FROM nexhealth_patients WHERE institution_id = %s", place[:1]).fetchone()
    assert row is not None
    number = max(box.state.ids("documents")) + 1
    data = {"document": {"id": number, "patient_id": row[0]}}
    ahead = body("document_insertion.complete", data, subdomain=place[1])
    assert told(ahead) == [("pending", "documents: the list of the patient that it names does not hold it yet")]
    assert db.execute("SELECT attempts, next_attempt_at > now() FROM nexhealth_webhook_events").fetchall() == [
        (1, True)
    ]

    box.state.create("documents", {"id": number}, subdomain=place[1], patient_id=row[0])
    due_again(db)
    assert told() == [("applied", None)]
    assert db.execute("SELECT patient_id FROM nexhealth_documents WHERE id = %s", (number,)).fetchall() == [row]


def test_what_no_list_will_hold_is_not_waited_for(box: SandboxServer, db: psycopg.Connection, told: Told) -> None:
    """A write that failed, a document that is known and gone since, one of a patient who is."""
    place = home(db)
    rows = db.execute(
        "SELECT min(id), patient_id FROM nexhealth_documents WHERE institution_id = %s GROUP BY 2 ORDER BY 2 LIMIT 2",
        place[:1],
    ).fetchall()
    (known, owner), (_, left) = rows
    patient = box.state.row("patients", left)
    document_of = box.state.row("documents", known)
    box.state.delete("documents", known, hard=True)
    box.state.delete("patients", left, hard=True)
    never = max(box.state.ids("documents")) + 1
    events = [
        body(f"document_insertion.{how}", {"document": {"id": number, "patient_id": whose}}, subdomain=place[1])
        for how, number, whose in (
            ("failed", never, owner),
            ("timed_out", never, owner),
            ("complete", known, owner),
            ("complete", never, left),
        )
    ]
    try:
        assert told(*events) == [("applied", None)] * 4
    finally:
        box.state.store("patients").put(patient)
        box.state.store("documents").put(document_of)


def test_an_old_events_document_may_have_been_deleted_since(
    box: SandboxServer, db: psycopg.Connection, told: Told
) -> None:
    """A backlog, or a replay months later: what nobody will ever list again must not end as given up."""
    place = home(db)
    row = db.execute("SELECT min(id) FROM nexhealth_patients WHERE institution_id = %s", place[:1]).fetchone()
    assert row is not None
    data = {"document": {"id": max(box.state.ids("documents")) + 1, "patient_id": row[0]}}
    assert told(body("document_insertion.complete", data, subdomain=place[1]))[0][0] == "pending"
    db.execute("UPDATE nexhealth_webhook_events SET received_at = received_at - interval '25 hours'")
    due_again(db)
    assert told() == [("applied", None)]
