"""Events whose work breaks off, while their process lives: found like those that end it; innocent ones never given up."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from nexhealth_pipeline.errors import BudgetUnavailable, PipelineError, WarehouseError
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.warehouse.connect import driver_errors
from nexhealth_pipeline.webhooks.applying import apply, batches, hints
from nexhealth_pipeline.webhooks.applying.batches import Answered, Batches
from nexhealth_pipeline.webhooks.applying.pending import Mark, Outcome, StoredEvent
from nexhealth_pipeline.webhooks.applying.reading import Told, read_event
from tests.servers import Server
from tests.sync.kit import open_session

from .kit import LOCATION, apply_all, body, due_again, know_practice, patient, settings_for, store, updated

DEADLY = "Deadly"
ENDED = "taken 5 times, its run ended each time"
CRASH = """
CREATE FUNCTION crash() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    COPY (SELECT) TO PROGRAM 'kill -9 $PPID';
    RETURN new;
END
$$;
CREATE TRIGGER crash BEFORE INSERT OR UPDATE ON nexhealth_patients FOR EACH ROW
    WHEN (new.first_name = 'Deadly') EXECUTE FUNCTION crash();
"""
"""What the kernel does to a server process that takes too much memory."""


@pytest.fixture
def hurt(server: Server) -> str:
    """A practice's warehouse on a server that may be hurt."""
    url = server.database()
    with psycopg.connect(url, autocommit=True) as connection:
        know_practice(connection)
    return url


@contextmanager
def asking(url: str) -> Iterator[psycopg.Connection]:
    """A connection, once the server lets anybody in."""
    for left in reversed(range(100)):
        try:
            connection = psycopg.connect(url, autocommit=True)
            break
        except psycopg.OperationalError:
            if not left:
                raise
            time.sleep(0.1)
    with connection:
        yield connection


def patients(first: int, count: int) -> list[bytes]:
    return [updated(patient(number, 1)) for number in range(first, first + count)]


def inserted(number: int, note: str = "") -> bytes:
    """An event that only tells of an appointment."""
    return body("appointment_insertion.complete", {"appointment": {"id": number, "location_id": LOCATION}}, note=note)


def told(connection: psycopg.Connection, event: int) -> tuple[Any, ...]:
    """What is noted about an event."""
    row = connection.execute(
        "SELECT status, taken, attempts, taken_by, error FROM nexhealth_webhook_events WHERE id = %s", (event,)
    ).fetchone()
    assert row is not None
    return row


def not_applied(connection: psycopg.Connection) -> list[int]:
    rows = connection.execute("SELECT id FROM nexhealth_webhook_events WHERE status <> 'applied' ORDER BY id")
    return [id_ for (id_,) in rows]


def failed_until(settings: Settings, connection: psycopg.Connection, more: Callable[[int], bytes]) -> int:
    """Runs without memory, each with one more event and all pauses over; how many failed until one did not."""
    for failed in range(20):
        if not run(settings, MemoryError):
            return failed
        due_again(connection)
        store(connection, more(1000 + failed))
    raise AssertionError("for ever")


def run(settings: Settings, *expected: type[BaseException]) -> bool:
    """One run; whether it failed."""
    try:
        apply_all(settings)
    except expected:
        return True
    return False


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """From now on there is no memory for events that hold a word."""

    def short_for(word: str) -> None:
        def reading(event: StoredEvent, practices: Any) -> Told | Mark:
            if word in (event.payload or ""):
                raise MemoryError
            return read_event(event, practices)

        monkeypatch.setattr(batches, "read_event", reading)

    return short_for


def test_an_event_that_crashes_the_database_is_given_up_and_its_neighbours_are_applied(hurt: str) -> None:
    """Else it is the first of every run, and nothing behind it is ever reached."""
    with asking(hurt) as connection:
        connection.execute(CRASH)
        store(connection, *patients(1, 130))
        (deadly,) = store(connection, updated(patient(500, 1, first_name=DEADLY)))
        store(connection, *patients(200, 130))
    settings = settings_for(hurt)
    for failed in range(20):
        with asking(hurt) as connection:
            due_again(connection)
            store(connection, *patients(1000 + failed, 1))
        if not run(settings, PipelineError):
            break
    with asking(hurt) as connection:
        assert told(connection, deadly) == ("parked", 0, 1, None, ENDED)
        assert not_applied(connection) == [deadly]
    assert failed == 5


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
def test_a_restart_of_the_database_counts_for_nothing_however_often_it_meets_the_same_event(
    server: Server, hurt: str, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    """Not even where it is alone, one taking before its last, and everything else goes well."""
    with asking(hurt) as connection:
        (event,) = store(connection, updated(patient(1, 1)))
        connection.execute("UPDATE nexhealth_webhook_events SET taken = 4")
        others = store(connection, *patients(10, 3))
    load = Batches._load

    def loading(self: Batches, batch: batches.Batch, events: Sequence[StoredEvent]) -> list[Mark]:
        if any(one.id == event for one in events):
            server.restart(how)
        return load(self, batch, events)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "_load", loading)
        for _ in range(3):
            assert run(settings_for(hurt), PipelineError)
            with asking(hurt) as connection:
                assert told(connection, event) == ("pending", 4, 0, None, None)
                assert not_applied(connection) == [event]
                others += store(connection, *patients(10 + len(others), 1))
    apply_all(settings_for(hurt))
    with asking(hurt) as connection:
        assert not_applied(connection) == []


def test_an_event_without_memory_is_given_up_and_its_neighbours_are_applied(
    practice: psycopg.Connection, practice_url: str, no_memory: Callable[[str], None]
) -> None:
    """Whether its process is killed for that, or Python raises, is a matter of the host's settings."""
    store(practice, *patients(1, 130))
    (deadly,) = store(practice, updated(patient(500, 1, first_name=DEADLY)))
    store(practice, *patients(200, 130))
    no_memory(DEADLY)
    failed = failed_until(settings_for(practice_url), practice, lambda number: updated(patient(number, 1)))
    assert (failed, told(practice, deadly)) == (5, ("parked", 0, 1, None, ENDED))
    assert not_applied(practice) == [deadly]


def test_one_that_breaks_off_holds_up_none_that_comes_later_and_is_left_alone_for_a_while(
    practice: psycopg.Connection, practice_url: str, no_memory: Callable[[str], None]
) -> None:
    """And who looks at it reads why it waits."""
    (deadly,) = store(practice, updated(patient(500, 1, first_name=DEADLY)))
    no_memory(DEADLY)
    for number in range(4):
        (other,) = store(practice, *patients(1 + number, 1))
        assert run(settings_for(practice_url), MemoryError)
        assert told(practice, other)[0] == ("applied" if number else "pending")
    assert told(practice, deadly) == ("pending", 4, 0, None, "no memory was left")
    assert not run(settings_for(practice_url), MemoryError)
    assert not_applied(practice) == [deadly]


def test_where_nothing_can_be_applied_no_event_is_given_up(
    practice: psycopg.Connection, practice_url: str, no_memory: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that is short of memory all night: forty runs fail, none of which tells who is to blame."""
    events = store(practice, *patients(1, 2), inserted(9))
    with monkeypatch.context() as patch:
        patch.setattr(batches, "read_event", _out_of_memory)
        for _ in range(40):
            assert run(settings_for(practice_url), MemoryError)
            due_again(practice)
    assert not_applied(practice) == events
    assert practice.execute("SELECT max(taken), max(attempts) FROM nexhealth_webhook_events").fetchall() == [(4, 0)]
    apply_all(settings_for(practice_url))
    assert practice.execute(
        "SELECT status, taken, error IS NULL, count(*) FROM nexhealth_webhook_events GROUP BY 1, 2, 3 ORDER BY 1"
    ).fetchall() == [("applied", 0, True, 2), ("superseded", 0, False, 1)]


def _out_of_memory(*_: object) -> None:
    raise MemoryError


def test_one_that_is_alone_in_the_world_waits_until_another_has_fared_better(
    practice: psycopg.Connection, practice_url: str, no_memory: Callable[[str], None]
) -> None:
    """It holds nobody up meanwhile."""
    (deadly,) = store(practice, updated(patient(500, 1, first_name=DEADLY)))
    no_memory(DEADLY)
    for _ in range(10):
        assert run(settings_for(practice_url), MemoryError)
        due_again(practice)
    assert told(practice, deadly) == ("pending", 4, 0, None, "no memory was left")
    store(practice, *patients(1, 1))
    assert run(settings_for(practice_url), MemoryError)
    due_again(practice)
    assert not run(settings_for(practice_url), MemoryError)
    assert told(practice, deadly) == ("parked", 0, 1, None, ENDED)


@pytest.mark.parametrize("attempts", ["1", "5"])
def test_two_that_break_off_do_not_stand_before_one_that_is_alone_as_well(
    practice: psycopg.Connection, practice_url: str, no_memory: Callable[[str], None], attempts: str
) -> None:
    """Where nothing else comes, whoever was tried last is the last to be tried again."""
    store(practice, *(updated(patient(number, 1, first_name=DEADLY)) for number in (1, 2)))
    (innocent,) = store(practice, updated(patient(3, 1)))
    practice.execute("UPDATE nexhealth_webhook_events SET taken = 3")
    no_memory(DEADLY)
    for _ in range(3):
        assert run(settings_for(practice_url, NEXHEALTH_WEBHOOK_ATTEMPTS=attempts), MemoryError)
        practice.execute(
            "UPDATE nexhealth_webhook_events SET next_attempt_at = next_attempt_at - interval '1 hour'"
            " WHERE next_attempt_at > now()"
        )
    assert told(practice, innocent)[0] == "applied"


def test_an_event_the_api_is_asked_for_is_given_up_as_well(
    practice: psycopg.Connection, practice_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is settled in a later step than it is read in: what that step ends counts once, not for each step."""
    store(practice, *(inserted(number) for number in range(1, 30)))
    (deadly,) = store(practice, inserted(99, DEADLY))

    def asking_(_: hints.HintReader, told: Sequence[Told]) -> Answered:
        if any(DEADLY in (one.event.payload or "") for one in told):
            raise MemoryError
        return [Mark(one.event.id, Outcome.APPLIED) for one in told], 0, []

    monkeypatch.setattr(hints.HintReader, "read", asking_)
    assert failed_until(settings_for(practice_url), practice, inserted) == 5
    assert told(practice, deadly) == ("parked", 0, 1, None, ENDED)
    assert not_applied(practice) == [deadly]


def test_a_crash_on_another_connection_of_the_run_counts_as_well(hurt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices are read on connections of their own; a server that crashes ends all of them."""

    def crashing(*_: object) -> Answered:
        with driver_errors("loading nexhealth_appointments"), psycopg.connect(hurt) as other:
            other.execute("COPY (SELECT) TO PROGRAM 'kill -9 $PPID'")
        return [], 0, []

    with asking(hurt) as connection:
        (event,) = store(connection, inserted(1))
    monkeypatch.setattr(hints.HintReader, "read", crashing)
    assert run(settings_for(hurt), PipelineError)
    with asking(hurt) as connection:
        status, taken, attempts, by, error = told(connection, event)
    assert (status, taken, attempts, by) == ("pending", 1, 0, None)
    assert error == "loading nexhealth_appointments: the connection to PostgreSQL was lost"


@pytest.mark.parametrize("stopping", [False, True])
@pytest.mark.parametrize("failure", [psycopg.errors.OutOfMemory(), psycopg.errors.InternalError_(), MemoryError()])
def test_what_an_event_can_cause_counts_unless_somebody_wished_to_stop(
    practice: psycopg.Connection,
    practice_url: str,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    stopping: bool,
) -> None:
    """Whoever ends a run may take its memory and its connections as well."""
    (event,) = store(practice, *patients(1, 1))
    stop = threading.Event()

    def fails(*_: object) -> None:
        if stopping:
            stop.set()
        raise failure

    monkeypatch.setattr(Batches, "_load", fails)
    with (
        pytest.raises((WarehouseError, MemoryError)),
        open_session(settings_for(practice_url), stop=stop) as session,
    ):
        list(apply.apply_pending(session))
    _, taken, attempts, _, error = told(practice, event)
    assert (taken, attempts, error is None) == ((0, 0, True) if stopping else (1, 0, False))


def _refused() -> psycopg.OperationalError:
    """What the driver says where nothing answers: as little as of a connection that was lost."""
    with pytest.raises(psycopg.OperationalError) as refused:
        psycopg.connect("postgresql://127.0.0.1:9/none")
    return refused.value


FAILURES = [
    (psycopg.errors.DiskFull(), WarehouseError),
    (psycopg.errors.AdminShutdown(), WarehouseError),
    (psycopg.errors.TooManyConnections(), WarehouseError),
    (_refused(), WarehouseError),
    (PoolTimeout(), WarehouseError),
    (BudgetUnavailable("the shared rate budget cannot be asked"), BudgetUnavailable),
    (KeyboardInterrupt(), KeyboardInterrupt),
]


@pytest.mark.parametrize(("failure", "heard"), FAILURES, ids=lambda one: getattr(one, "__name__", type(one).__name__))
@pytest.mark.parametrize("step", ["load", "ask"])
def test_a_failure_of_nobodys_leaves_no_trace(
    practice: psycopg.Connection,
    practice_url: str,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    failure: BaseException,
    heard: type[BaseException],
) -> None:
    """A full disk, a maintenance window, a wish to stop: as often as it happens."""
    store(practice, *patients(1, 2), inserted(9))

    def fails(*_: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        if step == "load":
            patch.setattr(Batches, "_load", fails)
        else:
            patch.setattr(hints.HintReader, "read", fails)
        for _ in range(7):
            with pytest.raises(heard):
                apply_all(settings_for(practice_url))
    assert practice.execute(
        "SELECT sum(taken), count(taken_by), sum(attempts), count(error) FROM nexhealth_webhook_events"
        " WHERE status = 'pending'"
    ).fetchall() == [(0, 0, 0, 0)]
    apply_all(settings_for(practice_url))
    assert practice.execute("SELECT count(*) FROM nexhealth_webhook_events WHERE status = 'pending'").fetchall() == [
        (0,)
    ]
