"""Documents whose events do not say whose they are: whose lists are asked for, and what is left to other reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.webhooks.applying import owners
from nexhealth_pipeline.webhooks.applying.replaying import Selection, replay
from nexhealth_pipeline.webhooks.applying.single_reads import SingleReads
from tests.sync.kit import LISTS_READ, noting_loads

from .asking import Told, asked, home, last, without_events
from .kit import body, due_again, store

NOWHERE = "documents: it does not say which patient's list it belongs to, and no list has it"
LEFT_ALONE = "documents: never read completely: its first full read will bring the change"


@pytest.fixture
def db(settings: Settings) -> Iterator[psycopg.Connection]:
    with without_events(settings) as db:
        yield db


def patients(db: psycopg.Connection, institution: int) -> list[int]:
    """Who has a visit within a month first, the nearest before all."""
    return [
        id_
        for (id_,) in db.execute(
            "SELECT p.id FROM nexhealth_patients p LEFT JOIN nexhealth_appointments a ON a.institution_id ="
            " p.institution_id AND a.patient_id = p.id AND abs(extract(epoch FROM a.start_time - now())) < 30 * 86400 WHERE p.institution_id = %s GROUP BY p.id, p.updated_at"
            " ORDER BY min(abs(extract(epoch FROM a.start_time - now()))) NULLS LAST, p.updated_at DESC",
            (institution,),
        )
    ]


def of_nobody(place: tuple[int, str, int], number: int) -> bytes:
    return body("document_insertion.complete", {"document": {"id": number}}, subdomain=place[1])


def lists_asked(box: SandboxServer, since: int) -> list[int]:
    return [int(one.path.split("/")[2]) for one in asked(box, "/patients/.*/documents", since)]


def test_a_document_that_names_no_patient_is_looked_for_where_it_is_likely(
    box: SandboxServer, db: psycopg.Connection, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NexHealth's documents have no patient in them: waiting for the rotation may take a month."""
    monkeypatch.setattr(owners, "_AT_ONCE", 1)
    place = home(db)
    first, second, *_ = patients(db, place[0])
    made = box.state.create("documents", {}, subdomain=place[1], patient_id=second)
    since = last(box)
    assert told(of_nobody(place, made.id)) == [("applied", None)]
    assert lists_asked(box, since) == [first, second]
    assert db.execute("SELECT patient_id FROM nexhealth_documents WHERE id = %s", (made.id,)).fetchall() == [(second,)]
    since = last(box)
    db.execute("DELETE FROM nexhealth_webhook_events")
    assert told(of_nobody(place, made.id)) == [("applied", None)]
    assert lists_asked(box, since) == [second], "whose it is is known by now"


def test_a_try_asks_for_a_bounded_number_of_lists_and_the_next_one_for_others(
    box: SandboxServer, db: psycopg.Connection, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A practice may have 20,000 patients, and a thousand requests a minute."""
    monkeypatch.setattr(owners, "_SEARCHED", 2)
    monkeypatch.setattr(owners, "_AGAIN", timedelta(days=1))
    place = home(db)
    everybody = patients(db, place[0])
    since = last(box)
    ((status, error),) = told(of_nobody(place, 1))
    # Both at once, so either may be first to arrive.
    assert (status, sorted(lists_asked(box, since))) == ("pending", sorted(everybody[:2]))
    assert error is not None
    assert error.endswith("the likeliest lacked it; the nightly rotation reads all of them")
    while status == "pending":
        due_again(db)
        ((status, error),) = told()
    assert (status, sorted(lists_asked(box, since))) == ("parked", sorted(everybody))
    assert error == NOWHERE


def test_a_document_whose_event_is_ahead_of_its_list_is_looked_for_again(
    box: SandboxServer, db: psycopg.Connection, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a small practice no list was left after the first try, so that it was given up seconds after it came."""
    monkeypatch.setattr(owners, "_AGAIN", timedelta(0))
    place, number = home(db), 990_001
    assert told(of_nobody(place, number)) == [("pending", NOWHERE)]
    box.state.create("documents", {"id": number}, subdomain=place[1], patient_id=patients(db, place[0])[1])
    due_again(db)
    assert told() == [("applied", None)]


def test_a_try_reads_some_lists_again_and_some_that_were_not_read_yet(
    box: SandboxServer, db: psycopg.Connection, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The likeliest ones may have it by now, and in a large practice the others must come to their turn as well."""
    monkeypatch.setattr(owners, "_SEARCHED", 2)
    monkeypatch.setattr(owners, "_AGAIN", timedelta(0))
    place = home(db)
    first, second, third, *_ = patients(db, place[0])
    since = last(box)
    told(of_nobody(place, 1))
    assert sorted(lists_asked(box, since)) == sorted([first, second])
    due_again(db)
    since = last(box)
    told()
    assert sorted(lists_asked(box, since)) == sorted([first, third])


def test_for_a_replay_the_search_begins_anew(box: SandboxServer, db: psycopg.Connection, told: Told) -> None:
    """Who had found out that the document is there by now was told that no list has it, without one being asked."""
    place, number = home(db), 990_002
    assert told(of_nobody(place, number), webhook_attempts=1) == [("parked", NOWHERE)]
    box.state.create("documents", {"id": number}, subdomain=place[1], patient_id=patients(db, place[0])[1])
    assert replay(db, Selection(statuses=("parked",))) == 1
    assert told() == [("applied", None)]


def test_the_search_for_a_replay_comes_to_every_list_although_all_were_read_since_its_event(
    box: SandboxServer, db: psycopg.Connection, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a practice of three hundred patients it was given up after two tries, with a hundred lists never asked for."""
    monkeypatch.setattr(owners, "_SEARCHED", 1)
    monkeypatch.setattr(owners, "_AGAIN", timedelta(0))
    place, number = home(db), 990_003
    everybody = patients(db, place[0])
    assert len(everybody) > 2
    store(db, of_nobody(place, number))
    db.execute("UPDATE nexhealth_webhook_events SET status = 'parked'")
    for patient in everybody:
        db.execute("UPDATE nexhealth_child_reads SET read_at = clock_timestamp() WHERE patient_id = %s", (patient,))
    box.state.create("documents", {"id": number}, subdomain=place[1], patient_id=everybody[-1])
    assert replay(db, Selection(statuses=("parked",))) == 1
    since, status = last(box), "pending"
    while status == "pending":
        due_again(db)
        ((status, _),) = told(webhook_attempts=len(everybody))
    assert (status, lists_asked(box, since)) == ("applied", everybody)


def test_a_document_of_days_ago_that_no_list_holds_is_given_up_at_once(db: psycopg.Connection, told: Told) -> None:
    """No list is that late: it may have been deleted since."""
    store(db, of_nobody(home(db), 1))
    db.execute("UPDATE nexhealth_webhook_events SET received_at = now() - interval '2 days'")
    assert told() == [("parked", NOWHERE)]


def test_a_list_read_for_an_event_is_as_old_as_its_request(
    box: SandboxServer, db: psycopg.Connection, told: Told, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what comes while it is loaded is never looked for in it."""
    assert settings.database_url is not None
    loads = noting_loads(monkeypatch, settings.database_url.get_secret_value(), "documents")
    told(of_nobody(home(db), 1))
    assert loads
    for patient, read_at in db.execute(LISTS_READ).fetchall():
        assert patient not in loads or read_at < loads[patient]


def test_a_search_that_is_stopped_leaves_its_event_as_it_was(
    db: psycopg.Connection, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has not looked everywhere."""
    ask = SingleReads._ask

    def stopping(self: SingleReads, *given: Any) -> Any:
        self._session.stop.set()
        return ask(self, *given)

    monkeypatch.setattr(SingleReads, "_ask", stopping)
    assert told(of_nobody(home(db), 1)) == [("pending", None)]


def test_a_document_without_patient_and_id_is_parked(box: SandboxServer, db: psycopg.Connection, told: Told) -> None:
    """Nothing can be looked for."""
    place, since = home(db), last(box)
    nothing = body("document_insertion", {"document": {"filename": "x"}}, subdomain=place[1])
    assert told(nothing) == [("parked", "documents: it does not say which patient's list it belongs to")]
    assert lists_asked(box, since) == []


@contextmanager
def first_read_under_way(db: psycopg.Connection, *read: int) -> Iterator[None]:
    """The first read of documents has asked for these patients' lists, and has not come to its end."""
    db.execute("UPDATE nexhealth_sync_state SET watermark = NULL WHERE collection = 'documents'")
    db.execute(
        "DELETE FROM nexhealth_child_reads WHERE collection = 'documents' AND patient_id <> ALL(%s)", (list(read),)
    )
    try:
        yield
    finally:
        db.execute("UPDATE nexhealth_sync_state SET watermark = pass_started_at WHERE collection = 'documents'")


def ends_at_home_of(db: psycopg.Connection, patient: int) -> None:
    """The first read has come to its end at this patient's location."""
    db.execute(
        "UPDATE nexhealth_sync_state SET watermark = pass_started_at WHERE collection = 'documents'"
        " AND location_id = (SELECT location_id FROM nexhealth_patient_locations WHERE patient_id = %s)",
        (patient,),
    )


def test_a_list_that_the_first_read_has_passed_is_read_again_before_that_has_ended(
    box: SandboxServer, db: psycopg.Connection, told: Told
) -> None:
    """It does not come back to it: what was uploaded meanwhile came with the rotation, up to a month later."""
    place = home(db)
    _, passed, *_ = patients(db, place[0])
    made = box.state.create("documents", {}, subdomain=place[1], patient_id=passed)
    with first_read_under_way(db, passed):
        assert told(of_nobody(place, made.id)) == [("applied", None)]
    assert db.execute("SELECT patient_id FROM nexhealth_documents WHERE id = %s", (made.id,)).fetchall() == [(passed,)]


def test_a_first_read_in_which_a_list_failed_has_read_the_others(
    box: SandboxServer, db: psycopg.Connection, told: Told
) -> None:
    """Where one fails every night it is never complete, for all that it has asked for everything."""
    place = home(db)
    _failing, *others = patients(db, place[0])
    made = box.state.create("documents", {}, subdomain=place[1], patient_id=others[-1])
    with first_read_under_way(db, *others):
        db.execute("UPDATE nexhealth_sync_state SET since = pass_started_at WHERE collection = 'documents'")
        found = told(of_nobody(place, made.id))
        db.execute("UPDATE nexhealth_sync_state SET since = NULL WHERE collection = 'documents'")
    assert found == [("applied", None)]


def test_what_a_search_lacks_is_left_to_the_first_read_while_that_goes_on(
    db: psycopg.Connection, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes hours or days, and a search an hour: most of the documents of that time were given up."""
    monkeypatch.setattr(owners, "_SEARCHED", 1)
    place = home(db)
    first, *_ = patients(db, place[0])
    with first_read_under_way(db, first):
        ends_at_home_of(db, first)
        assert [status for status, _ in told(of_nobody(place, 1), webhook_attempts=2)] == ["pending"]
        due_again(db)
        assert told(webhook_attempts=2) == [("superseded", LEFT_ALONE)]


@pytest.mark.parametrize("ended", ["completely", "but for lists that failed", "where lists are left"])
def test_what_a_search_lacks_is_given_up_once_the_first_read_has_ended(
    db: psycopg.Connection, told: Told, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    """Nothing but the rotation brings it any more: of all locations, or of the one whose list was never read."""
    monkeypatch.setattr(owners, "_SEARCHED", 1)
    place = home(db)
    first, *others, last_ = patients(db, place[0])
    with first_read_under_way(db, first, *others):
        state = "UPDATE nexhealth_sync_state SET {} WHERE collection = 'documents'"
        if ended == "completely":
            db.execute(state.format("watermark = pass_started_at").encode())
        elif ended == "but for lists that failed":
            db.execute(state.format("since = pass_started_at").encode())
        else:
            ends_at_home_of(db, last_)
        ((status, error),) = told(of_nobody(place, 1), webhook_attempts=1)
        db.execute(state.format("since = NULL").encode())
    assert status == "parked"
    assert error is not None
    assert error.endswith("the likeliest lacked it; the nightly rotation reads all of them")


def test_what_no_list_holds_is_given_up_although_the_first_read_goes_on(db: psycopg.Connection, told: Told) -> None:
    """It has no list left to read."""
    place = home(db)
    with first_read_under_way(db, *patients(db, place[0])):
        assert told(of_nobody(place, 1), webhook_attempts=1) == [("parked", NOWHERE)]


def test_what_no_list_holds_is_left_to_an_office_whose_patients_are_yet_to_come(
    db: psycopg.Connection, told: Told
) -> None:
    """It may be one of theirs, whose lists nobody can ask for yet."""
    place = home(db)
    with first_read_under_way(db, *patients(db, place[0])):
        db.execute(
            "UPDATE nexhealth_freshness SET complete_through = NULL WHERE collection = 'patients' AND institution_id = %s"
            " AND location_id = (SELECT max(id) FROM nexhealth_locations WHERE institution_id = %s AND NOT inactive)",
            (place[0], place[0]),
        )
        assert told(of_nobody(place, 1), webhook_attempts=1) == [("superseded", LEFT_ALONE)]
        db.execute("UPDATE nexhealth_freshness SET complete_through = now() WHERE collection = 'patients'")


def test_a_document_of_nobody_is_left_to_the_first_read_where_that_is_still_to_come(
    box: SandboxServer, db: psycopg.Connection, told: Told
) -> None:
    """It asks for every list."""
    place, since = home(db), last(box)
    with first_read_under_way(db):
        ((status, error),) = told(of_nobody(place, 1))
    assert (status, lists_asked(box, since)) == ("superseded", [])
    assert error == LEFT_ALONE
