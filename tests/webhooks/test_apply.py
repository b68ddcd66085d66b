"""What becomes of stored events: the newest version per record in the table, each event marked, none lost."""

import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import sql

from nexhealth_pipeline.errors import BudgetUnavailable, WarehouseError, WarehouseUnreachable
from nexhealth_pipeline.sync.fault_points import POINTS
from nexhealth_pipeline.webhooks.applying import apply
from tests.forks import Forks
from tests.sync.kit import open_session

from .appliers import appliers
from .kit import (
    INSTITUTION,
    LOCATION,
    apply_all,
    body,
    due_again,
    free_locks,
    load_page,
    mark_complete,
    moment,
    patient,
    settings_for,
    store,
    updated,
)
from .model import Story, history_is_sound

SEEDS = int(os.environ.get("SOAK_ROUNDS", "10"))
SEED = int(os.environ.get("SOAK_SEED", "0"))


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Processes that apply events."""
    with appliers(tmp_path_factory.mktemp("applied")) as started:
        yield started


def places(connection: psycopg.Connection) -> list[tuple[object, ...]]:
    """Where each row version lies and who wrote it: the same before and after means nothing was written."""
    return connection.execute("SELECT ctid, xmin, xmax, id FROM nexhealth_patients ORDER BY id").fetchall()


def tell(seed: int, patients: int, events: int, practice_url: str, practice: psycopg.Connection, batch: int) -> None:
    """Events and pages in any order: the table equals the model, and replaying all of it writes nothing."""
    story = Story(seed, patients, events)
    for told in story.chunks(events // 4):
        story.store(practice, told)
        story.read_page(practice)
        apply_all(settings_for(practice_url), limit=batch)
        story.read_page(practice)
        apply_all(settings_for(practice_url))
        story.lose(practice)
    story.check(practice)
    history_is_sound(practice)
    before, versions = places(practice), practice.execute("SELECT count(*) FROM nexhealth_history").fetchall()
    practice.execute("UPDATE nexhealth_webhook_events SET status = 'pending', replays = replays + 1")
    _, total = apply_all(settings_for(practice_url))
    assert (total.applied, total.rows) == (0, 0)
    assert places(practice) == before
    assert practice.execute("SELECT count(*) FROM nexhealth_history").fetchall() == versions


def test_what_is_not_known_of_an_event_is_null_whatever_the_server_takes_the_word_for(
    practice: psycopg.Connection, practice_url: str
) -> None:
    """With `array_nulls = off` each event had an error, by the name of NULL, and one of no institution ended the run."""
    base = sql.Identifier(practice.info.dbname)
    practice.execute(sql.SQL("ALTER DATABASE {} SET array_nulls = off").format(base))
    store(practice, updated(patient()), b"no event")
    try:
        apply_all(settings_for(practice_url))
    finally:
        practice.execute(sql.SQL("ALTER DATABASE {} RESET array_nulls").format(base))
    rows = practice.execute("SELECT status, error IS NULL, institution_id FROM nexhealth_webhook_events ORDER BY id")
    assert rows.fetchall() == [("applied", True, INSTITUTION), ("parked", False, None)]


def test_events_and_pages_in_any_order_end_with_the_newest_version(
    practice: psycopg.Connection, practice_url: str
) -> None:
    """Events come twice, late and out of order, between pages that are older or newer: promise 4."""
    tell(1, 40, 500, practice_url, practice, batch=90)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(SEED, SEED + SEEDS))
def test_ten_thousand_events_of_five_hundred_patients(
    seed: int, practice: psycopg.Connection, practice_url: str
) -> None:
    """The same, at length."""
    tell(seed, 500, 10_000, practice_url, practice, batch=1_700)


def test_an_event_with_a_record_becomes_a_row_that_says_where_it_came_from(
    practice: psycopg.Connection, practice_url: str
) -> None:
    """Whoever asks why a row changed finds the event, the run and its counts."""
    load_page(practice, "patients", [patient(1, 0)])
    mark_complete(practice, "patients")
    practice.execute(
        "INSERT INTO nexhealth_freshness (institution_id, location_id, collection) VALUES (7, %s, 'patients')",
        (LOCATION,),
    )
    practice.execute(
        "INSERT INTO nexhealth_patient_locations (institution_id, patient_id, location_id, first_seen)"
        " VALUES (7, 1, %s, now())",
        (LOCATION,),
    )
    (event,) = store(practice, updated(patient(1, 5)))
    (piece,), total = apply_all(settings_for(practice_url))
    assert (total.applied, total.rows) == (1, 1)
    assert practice.execute("SELECT last_name FROM nexhealth_patients").fetchall() == [("v5",)]
    told = practice.execute(
        "SELECT status, attempts, error, institution_id, run_id FROM nexhealth_webhook_events"
    ).fetchone()
    assert told is not None
    assert told[:4] == ("applied", 0, None, 7)
    assert practice.execute("SELECT cause, run_id, event_id FROM nexhealth_history").fetchall() == [
        ("webhook", told[4], str(event))
    ]
    assert practice.execute(
        "SELECT collection, mode, status, records_read, updated FROM nexhealth_sync_logs"
    ).fetchall() == [("patients", "webhook", "succeeded", 1, 1)]
    assert (piece.collection.name, piece.partition_key, piece.rows, piece.events) == ("patients", "smile.70", 1, 1)
    assert piece.complete
    assert piece.as_of is not None
    changed = practice.execute(
        "SELECT last_change_at > now() - interval '1 minute' FROM nexhealth_freshness"
    ).fetchall()
    assert changed == [(True,)]


def test_a_slice_that_was_never_read_is_not_called_complete(practice: psycopg.Connection, practice_url: str) -> None:
    """One row is no copy: such a slice is observed, not materialized."""
    store(practice, body("appointment_created", {"appointments": [appointment(9, 5)]}))
    (piece,), _ = apply_all(settings_for(practice_url))
    assert (piece.partition_key, piece.complete, piece.as_of) == ("smile.70|2026-04", False, None)


def test_a_moved_appointment_reports_both_its_months(practice: psycopg.Connection, practice_url: str) -> None:
    """The month it has left changed as much as the one it came to."""
    load_page(practice, "appointments", [appointment(9, 0)])
    store(practice, body("appointment_updated", {"appointment": appointment(9, 5, start_time="2026-06-01T09:00:00Z")}))
    pieces, _ = apply_all(settings_for(practice_url))
    assert {(one.partition_key, one.rows) for one in pieces} == {("smile.70|2026-04", 1), ("smile.70|2026-06", 1)}


def appointment(number: int, at: float, **fields: object) -> dict[str, object]:
    return {
        "id": number,
        "location_id": LOCATION,
        "start_time": "2026-04-10T09:00:00Z",
        "updated_at": moment(at),
    } | fields


DEEP = "[" * 5_000 + "]" * 5_000
POISON = {
    "no JSON": b"{",
    "a list": b"[1]",
    "no event": b'{"data": {"id": 1}}',
    "an event that feeds nothing": b'{"event_name": "message_created", "subdomain": "smile", "data": {"id": 1}}',
    "no data": body("patient_updated", None),
    "data of a bad type": body("patient_updated", 17),
    "records of a bad type": body("patient_updated", {"patients": [1, "Canaryson"]}),
    "no id": body("patient_updated", {"patients": [patient(1, 5, id=...)]}),
    "an id of a bad type": body("patient_updated", {"patients": [patient(1, 5, id="Canaryson")]}),
    "an id too large": body("patient_updated", {"patients": [patient(1, 5, id=2**70)]}),
    "an unknown institution": body("patient_updated", {"patients": [patient(1, 5)]}, subdomain="unknown"),
    "nested too deep": body("patient_updated", {"patients": ["deep"]}).replace(
        b'"deep"', b'{"id": 1, "updated_at": "%s", "x": %s}' % (moment(5).encode(), DEEP.encode())
    ),
    "a lone surrogate": body("patient_updated", {"patients": [patient(1, 5, email="surrogate")]}).replace(
        b"surrogate", rb"\ud800"
    ),
}


def test_what_cannot_be_applied_is_parked_with_a_reason_and_holds_nobody_up(
    practice: psycopg.Connection, practice_url: str
) -> None:
    """One bad event in front of the queue must not stop a practice's data, nor be tried for ever."""
    ids = {}
    for name, bad in POISON.items():
        (ids[name],) = store(practice, bad)
        store(practice, updated(patient(100 + len(ids), 1)))
    practice.execute("UPDATE nexhealth_webhook_events SET received_at = received_at - interval '27 hours'")
    settings = settings_for(practice_url, NEXHEALTH_WEBHOOK_ATTEMPTS="3")
    _, total = apply_all(settings)
    assert total.applied == len(POISON)
    assert practice.execute("SELECT count(*) FROM nexhealth_patients").fetchall() == [(len(POISON),)]
    for _ in range(3):
        due_again(practice)
        apply_all(settings)
    rows = practice.execute(
        "SELECT id, status, attempts, error FROM nexhealth_webhook_events WHERE status <> 'applied' ORDER BY id"
    ).fetchall()
    assert [(id_, status) for id_, status, _, _ in rows] == [(one, "parked") for one in ids.values()]
    applied = practice.execute(
        "SELECT count(*), count(applied_at) FROM nexhealth_webhook_events GROUP BY status = 'applied'"
    )
    assert sorted(applied.fetchall()) == [(len(POISON), 0), (len(POISON), len(POISON))], (
        "only what was applied says when"
    )
    for _, _, attempts, error in rows:
        assert 1 <= attempts <= 3
        assert error
        assert "Canary" not in error
    assert practice.execute("SELECT count(*) FROM nexhealth_quarantine").fetchall() == [(0,)]


def test_a_bad_field_is_null_and_noted_as_a_page_would(practice: psycopg.Connection, practice_url: str) -> None:
    """The rest of the record is good, and quarantine tells of the field."""
    store(practice, updated(patient(1, 5, bio={"city": "Malmö", "date_of_birth": "2024-02-30"})))
    _, total = apply_all(settings_for(practice_url))
    assert total.applied == 1
    assert practice.execute("SELECT bio_city, bio_date_of_birth FROM nexhealth_patients").fetchall() == [
        ("Malmö", None)
    ]
    assert practice.execute("SELECT field, loaded FROM nexhealth_quarantine").fetchall() == [
        ("bio_date_of_birth", True)
    ]


def test_failed_tries_wait_longer_each_time(practice: psycopg.Connection, practice_url: str) -> None:
    """What it failed by may be over within minutes, or within the hour."""
    store(practice, updated(patient(1, 5, id=...)))
    waits = []
    for _ in range(4):
        due_again(practice)
        apply_all(settings_for(practice_url))
        row = practice.execute(
            "SELECT extract(epoch FROM next_attempt_at - clock_timestamp()) FROM nexhealth_webhook_events"
        ).fetchone()
        assert row is not None
        waits.append(round(float(row[0]) / 10) * 10)
    assert waits == [30, 120, 600, 3600]
    assert practice.execute("SELECT attempts, status FROM nexhealth_webhook_events").fetchall() == [(4, "pending")]


def test_an_institution_that_is_read_later_gets_its_events(practice: psycopg.Connection, practice_url: str) -> None:
    """Webhooks may be set up before the first sync."""
    practice.execute("UPDATE nexhealth_institutions SET subdomain = 'other'")
    store(practice, updated(patient(1, 5)))
    _, total = apply_all(settings_for(practice_url))
    assert (total.waiting, total.failed) == (1, 0)
    practice.execute("UPDATE nexhealth_institutions SET subdomain = 'smile'")
    due_again(practice)
    _, total = apply_all(settings_for(practice_url))
    assert total.applied == 1


def test_several_processes_share_the_events_and_none_is_applied_twice(
    practice: psycopg.Connection, practice_url: str
) -> None:
    """The daemon's run, a command and a second host may all be at it."""
    story = Story(7, 40, 600)
    for told in story.chunks(720):
        story.store(practice, told)
    pending = practice.execute("SELECT count(*) FROM nexhealth_webhook_events").fetchone()
    with ThreadPoolExecutor(3) as pool:
        totals = [total for _, total in pool.map(lambda _: apply_all(settings_for(practice_url)), range(3))]
    assert pending == (sum(total.applied + total.superseded for total in totals),)
    story.check(practice)
    history_is_sound(practice)


def test_a_run_that_is_stopped_ends_between_two_batches(
    practice: psycopg.Connection, practice_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C: what is committed is reported, the rest is the next run's."""
    monkeypatch.setattr(apply, "BATCH", 10)
    store(practice, *(updated(patient(number, 1)) for number in range(1, 31)))
    stop = threading.Event()
    with open_session(settings_for(practice_url), stop=stop) as session:
        pieces = list(apply.apply_pending(session, on_batch=lambda _: stop.set()))
    assert [piece.rows for piece in pieces] == [10]
    assert practice.execute("SELECT count(*) FROM nexhealth_patients").fetchall() == [(10,)]
    _, total = apply_all(settings_for(practice_url), limit=15)
    assert total.applied == 15


def test_a_run_keeps_one_log_row_however_often_it_looks_for_events(
    practice: psycopg.Connection, practice_url: str
) -> None:
    """A run stays while events come: its counts are one story."""
    with open_session(settings_for(practice_url)) as session:
        for at in (1, 2, 3):
            store(practice, updated(patient(1, at)))
            assert len(list(apply.apply_pending(session))) == 1
    assert practice.execute("SELECT status, records_read, inserted, updated FROM nexhealth_sync_logs").fetchall() == [
        ("succeeded", 3, 1, 2)
    ]


def test_a_caller_that_fails_is_heard_and_no_event_is_blamed(practice: psycopg.Connection, practice_url: str) -> None:
    """What is told after a commit has nothing to do with the events."""
    store(practice, updated(patient(1, 1)))

    def fails(_: apply.Batch) -> None:
        raise ValueError("the caller's own")

    with pytest.raises(ValueError, match="own"), open_session(settings_for(practice_url)) as session:
        list(apply.apply_pending(session, on_batch=fails))
    assert practice.execute("SELECT status, attempts FROM nexhealth_webhook_events").fetchall() == [("applied", 0)]


@pytest.mark.parametrize(
    ("failure", "heard"),
    [
        (BudgetUnavailable("the shared rate budget cannot be asked"), BudgetUnavailable),
        (psycopg.errors.DiskFull(), WarehouseError),
        (MemoryError(), MemoryError),
    ],
)
def test_what_was_applied_before_a_failure_is_told(
    failure: Exception,
    heard: type[Exception],
    practice: psycopg.Connection,
    practice_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else Dagster never hears of those rows, and the log says that they failed."""

    def fails(_: object) -> None:
        raise failure

    monkeypatch.setattr(apply._Applier, "_ask_again", fails)
    store(practice, updated(patient(1, 1)))
    told: list[apply.AppliedSlice] = []
    with pytest.raises(heard), open_session(settings_for(practice_url)) as session:
        told.extend(apply.apply_pending(session))
    assert [(piece.collection.name, piece.rows) for piece in told] == [("patients", 1)]
    assert practice.execute("SELECT status, inserted FROM nexhealth_sync_logs").fetchall() == [("succeeded", 1)]


def test_a_lost_connection_loses_no_event(
    practice: psycopg.Connection, practice_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL is restarted in the middle: nothing is blamed, the next run goes on."""
    monkeypatch.setattr(apply, "BATCH", 10)
    store(practice, *(updated(patient(number, 1)) for number in range(1, 31)))

    def restart(_: apply.Batch) -> None:
        practice.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    with pytest.raises(WarehouseUnreachable), open_session(settings_for(practice_url)) as session:
        list(apply.apply_pending(session, on_batch=restart))
    assert practice.execute(
        "SELECT status, attempts, taken, count(*) FROM nexhealth_webhook_events GROUP BY 1, 2, 3 ORDER BY 1"
    ).fetchall() == [("applied", 0, 0, 10), ("pending", 0, 0, 20)]
    _, total = apply_all(settings_for(practice_url))
    assert total.applied == 20


@pytest.mark.parametrize(
    "point", [f"{point}:{'patients' if point == 'after_copy' else 'webhook_events'}" for point in POINTS]
)
def test_a_run_killed_at_any_step_has_applied_each_event_once(
    point: str, started: Forks, practice: psycopg.Connection, practice_url: str
) -> None:
    """Promise 11: rows, marks and counts are one transaction."""
    story = Story(11, 10, 60)
    for told in story.chunks(72):
        story.store(practice, told)
    killed = [started.wait(started.start(url=practice_url, point=f"{point}:{n}")) for n in (1, 2)]
    assert killed == [-9, -9]
    free_locks(practice)
    due_again(practice)
    started.finish(url=practice_url)
    story.check(practice)
    history_is_sound(practice)
    assert (
        practice.execute("SELECT status, count(*) FROM nexhealth_runs WHERE finished_at IS NULL GROUP BY 1").fetchall()
        == []
    )
    read = practice.execute("SELECT sum(records_read) FROM nexhealth_sync_logs").fetchone()
    assert read == practice.execute("SELECT count(*) FROM nexhealth_webhook_events").fetchone()


def killed_at_random(rounds: int, seed: int, started: Forks, practice: psycopg.Connection, practice_url: str) -> None:
    chance = random.Random(seed)
    story = Story(seed, 100, 150 * rounds)
    for told in story.chunks(180):
        story.store(practice, told)
        pid = started.start(url=practice_url)
        time.sleep(chance.uniform(0.0, 0.15))
        started.kill(pid)
        assert started.wait(pid) in {-9, 0}
    free_locks(practice)
    due_again(practice)
    started.finish(url=practice_url)
    story.check(practice)
    history_is_sound(practice)
    read = practice.execute("SELECT sum(records_read) FROM nexhealth_sync_logs").fetchone()
    assert read == practice.execute("SELECT count(*) FROM nexhealth_webhook_events").fetchone()


def test_runs_killed_at_random_lose_nothing(started: Forks, practice: psycopg.Connection, practice_url: str) -> None:
    """kill -9 asks nobody where it is convenient."""
    killed_at_random(5, 3, started, practice, practice_url)


@pytest.mark.soak
def test_runs_killed_at_random_many_times_lose_nothing(
    started: Forks, practice: psycopg.Connection, practice_url: str
) -> None:
    """The same, at length."""
    killed_at_random(SEEDS, SEED, started, practice, practice_url)
