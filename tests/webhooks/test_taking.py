"""Events whose process is killed while it works on them: none is tried for ever, none is lost, and no neighbour is blamed."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.orchestration import webhook_apply
from nexhealth_pipeline.warehouse.runs import RunLock, lock_key
from nexhealth_pipeline.webhooks.applying import apply, hints
from nexhealth_pipeline.webhooks.applying.batches import Answered
from nexhealth_pipeline.webhooks.applying.pending import LONGEST_PAUSE, Backlog, newest_id
from nexhealth_pipeline.webhooks.applying.replaying import Selection, replay
from nexhealth_pipeline.webhooks.applying.taking import take_new
from tests.forks import Forks
from tests.sync.kit import open_session

from .appliers import appliers
from .kit import LOCATION, apply_all, body, due_again, free_locks, patient, settings_for, store, updated

DEADLY = "Deadly"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Processes that apply events."""
    with appliers(tmp_path_factory.mktemp("taken")) as started:
        yield started


def killed_until_parked(started: Forks, db: psycopg.Connection, url: str, **how: object) -> int:
    """Runs one after the other, all pauses over; how many were killed until one was not."""
    for killed in range(30):
        status = started.run(url=url, **how)
        if status == 0:
            return killed
        assert status == -9, started.output.read_text()
        free_locks(db)
        due_again(db)
    raise AssertionError("killed for ever")


def ends(db: psycopg.Connection) -> dict[int, tuple[str, str | None]]:
    rows = db.execute("SELECT id, status, error FROM nexhealth_webhook_events").fetchall()
    return {id_: (status, error) for id_, status, error in rows}


def patients(first: int, count: int) -> list[bytes]:
    return [updated(patient(number, 1)) for number in range(first, first + count)]


def inserted(number: int, note: str = "") -> bytes:
    """An event that only tells of an appointment."""
    data = {"appointment": {"id": number, "location_id": LOCATION}}
    return body("appointment_insertion.complete", data, note=note)


@pytest.mark.parametrize("method", ["", "hashjoin", "nestloop", "mergejoin", "indexscan", "material"])
def test_no_more_are_taken_than_asked_for_however_it_is_planned(practice: psycopg.Connection, method: str) -> None:
    """Risk: where the planner takes the table for tiny, it asks for the next ones once a row, and takes them all."""
    store(practice, patients(1, 1)[0])
    practice.execute("ANALYZE nexhealth_webhook_events")
    store(practice, *patients(2, 40))
    others = [
        f"enable_{one}" for one in ("hashjoin", "nestloop", "mergejoin", "indexscan", "material") if one != method
    ]
    with practice.transaction(force_rollback=True):
        for setting in others if method else []:
            practice.execute(f"SET LOCAL {setting} = off")
        taken = take_new(practice, "a run", upto=newest_id(practice), without=(), retried=False, limit=10, leaving=())
    assert len(taken) == 10


@pytest.mark.parametrize(("tries", "killed"), [("5", 5), ("1", 4)])
def test_an_event_that_ends_its_process_is_given_up_and_its_neighbours_are_applied(
    started: Forks, practice: psycopg.Connection, practice_url: str, tries: str, killed: int
) -> None:
    """Out of memory at one record, say: it is alone before it is given up, however few tries the settings allow."""
    before = store(practice, *patients(1, 130))
    (deadly,) = store(practice, updated(patient(500, 1, first_name=DEADLY)))
    after = store(practice, *patients(200, 130))
    order = {"deadly": DEADLY, "batch": 200, "attempts": tries}
    assert killed_until_parked(started, practice, practice_url, **order) == killed
    found = ends(practice)
    assert found.pop(deadly) == ("parked", f"taken {killed} times, its run ended each time")
    assert found == dict.fromkeys(before + after, ("applied", None))
    assert practice.execute("SELECT count(*) FROM nexhealth_patients").fetchall() == [(260,)]
    assert practice.execute("SELECT max(taken), max(taken_by) FROM nexhealth_webhook_events").fetchall() == [(0, None)]


def test_what_comes_later_is_applied_before_it_is_tried_again(
    started: Forks, practice: psycopg.Connection, practice_url: str
) -> None:
    """Else each new event would wait, and be taken in vain, until it is given up."""
    store(practice, updated(patient(500, 1, first_name=DEADLY)))
    assert started.run(url=practice_url, deadly=DEADLY) == -9
    free_locks(practice)
    later = store(practice, *patients(1, 3))
    assert started.run(url=practice_url, deadly=DEADLY) == -9
    assert [ends(practice)[one] for one in later] == [("applied", None)] * 3


def test_an_event_the_api_is_asked_for_is_given_up_as_well(
    started: Forks, practice: psycopg.Connection, practice_url: str
) -> None:
    """It is settled in a later step than it is read in: what that step ends counts once, not for each step."""
    others = store(practice, *(inserted(number) for number in range(1, 30)))
    (deadly,) = store(practice, inserted(99, DEADLY))
    assert killed_until_parked(started, practice, practice_url, asked=DEADLY) == 5
    found = ends(practice)
    assert found.pop(deadly) == ("parked", "taken 5 times, its run ended each time")
    assert found == dict.fromkeys(others, ("applied", None))


def test_one_that_is_taken_alone_is_left_alone_for_a_while(
    started: Forks, practice: psycopg.Connection, practice_url: str
) -> None:
    """What ended its process may be the host's memory that others used."""
    store(practice, updated(patient(500, 1, first_name=DEADLY)))
    for _ in range(4):
        assert started.run(url=practice_url, deadly=DEADLY) == -9
        free_locks(practice)
    started.finish(url=practice_url, deadly=DEADLY)
    row = practice.execute(
        "SELECT taken, extract(epoch FROM next_attempt_at - clock_timestamp())::int FROM nexhealth_webhook_events"
    ).fetchone()
    assert row is not None
    assert row[0] == 4
    assert 20 <= row[1] <= 30


def test_one_that_was_given_up_is_replayed_from_the_beginning(
    started: Forks, practice: psycopg.Connection, practice_url: str
) -> None:
    """After a mistake was mended, or on a larger host."""
    (event,) = store(practice, updated(patient(500, 1, first_name=DEADLY)))
    killed_until_parked(started, practice, practice_url, deadly=DEADLY)
    assert replay(practice, Selection(ids=(event,))) == 1
    assert started.run(url=practice_url, deadly=DEADLY) == -9
    free_locks(practice)
    _, total = apply_all(settings_for(practice_url))
    assert total.applied == 1
    assert ends(practice)[event] == ("applied", None)


def test_what_a_living_run_has_taken_is_left_to_it(practice: psycopg.Connection, practice_url: str) -> None:
    store(practice, *patients(1, 2))
    practice.execute("UPDATE nexhealth_webhook_events SET taken = 1, taken_by = 'other'")
    with RunLock(practice_url, "other"):
        assert apply_all(settings_for(practice_url))[1].claimed == 0
    practice.execute("SELECT pg_advisory_lock(%s)", (lock_key("run", "other"),))
    practice.execute("SELECT pg_advisory_unlock(%s)", (lock_key("run", "other"),))
    assert apply_all(settings_for(practice_url))[1].applied == 2


@pytest.mark.parametrize("taken", [0, 4], ids=["tried in vain", "taken in vain"])
@pytest.mark.parametrize(("hours", "due"), [(0.9, False), (72, True)])
def test_no_event_rests_longer_than_events_do(
    practice: psycopg.Connection, practice_url: str, taken: int, hours: float, due: bool
) -> None:
    """Risk: the database's clock was days ahead when its next try was set, and for days nobody would see the change."""
    store(practice, *patients(1, 1))
    practice.execute(
        "UPDATE nexhealth_webhook_events SET attempts = 1, taken = %s, next_attempt_at = clock_timestamp() + %s",
        (taken, timedelta(hours=hours)),
    )
    assert (Backlog.now(practice).left(practice), webhook_apply._is_due(practice)) == (due, due)
    assert apply_all(settings_for(practice_url))[1].applied == due


def test_what_was_tried_since_is_no_more_left_of_a_backlog(practice: psycopg.Connection) -> None:
    """However long it rests: who waits until all has been tried would wait for ever."""
    store(practice, *patients(1, 2))
    backlog = Backlog.now(practice)
    practice.execute(
        "UPDATE nexhealth_webhook_events SET next_attempt_at = clock_timestamp() + %s WHERE id = %s",
        (LONGEST_PAUSE, backlog.newest_id),
    )
    assert backlog.left(practice) == 1


def test_a_wish_to_stop_is_no_end_of_a_process(
    practice: psycopg.Connection, practice_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the API is asked: what came to no verdict is as before, however often."""
    (event,) = store(practice, inserted(9))
    for _ in range(7):
        stop = threading.Event()

        def stopped(*_: object, stop: threading.Event = stop) -> Answered:
            stop.set()
            return [], 0, []

        with monkeypatch.context() as patch, open_session(settings_for(practice_url), stop=stop) as session:
            patch.setattr(hints.HintReader, "read", stopped)
            assert list(apply.apply_pending(session)) == []
    assert practice.execute("SELECT taken, taken_by FROM nexhealth_webhook_events").fetchall() == [(0, None)]
    apply_all(settings_for(practice_url))
    assert ends(practice)[event][0] == "superseded"


def test_an_event_that_another_run_looks_at_just_now_is_waited_for(
    practice: psycopg.Connection, practice_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A taking keeps the locks of rows that it met and left until it ends; who has taken them must not pass over them."""
    store(practice, *patients(1, 3))

    def taken(*given: Any, **how: Any) -> list[int]:
        ids = take_new(*given, **how)
        if ids:
            other = psycopg.connect(practice_url)
            other.execute("SELECT FROM nexhealth_webhook_events FOR UPDATE")
            threading.Timer(0.3, other.close).start()
        return ids

    monkeypatch.setattr(apply, "take_new", taken)
    _, total = apply_all(settings_for(practice_url))
    assert total.applied == 3
