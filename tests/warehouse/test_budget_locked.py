"""A row of the budget that somebody holds: who asks for another key must not wait for it, nor who wants to stop."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from nexhealth_pipeline.catalog.limits import RateClass
from nexhealth_pipeline.errors import BudgetUnavailable, Cancelled
from nexhealth_pipeline.warehouse import budget as budget_module
from nexhealth_pipeline.warehouse.budget import BudgetConnection, PostgresBudget

CLASSES = (RateClass.PATIENTS,)


@contextmanager
def held(database_url: str, key: str) -> Iterator[psycopg.Connection]:
    """A connection that holds the rows of a key until it is rolled back."""
    with psycopg.connect(database_url) as db:
        rows = db.execute("SELECT FROM nexhealth_rate_budget WHERE key_hash = %s FOR UPDATE", (key,)).fetchall()
        assert rows
        yield db
        db.rollback()


def until_one_waits(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as looking:
        for _ in range(1000):
            waiting = looking.execute(
                "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                " AND application_name = 'nexhealth rate budget'"
            ).fetchall()
            if waiting:
                return
            time.sleep(0.01)
    raise AssertionError("nobody waits for the row")


def asking(budget: PostgresBudget, ends: list[type[Exception] | None]) -> threading.Thread:
    """A thread that asks until it is granted or refused, and notes which."""

    def ask() -> None:
        try:
            budget.acquire(CLASSES)
        except (BudgetUnavailable, Cancelled) as error:
            ends.append(type(error))
        else:
            ends.append(None)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_a_row_that_somebody_holds_keeps_no_other_key_waiting(database_url: str) -> None:
    """One connection asks for all keys: a hundred institutions stood still for as long as one row was held."""
    connection = BudgetConnection(database_url)
    ends: list[type[Exception] | None] = []
    stuck, free = PostgresBudget(connection, "stuck", 1.0), PostgresBudget(connection, "free", 1.0)
    stuck.acquire(CLASSES)
    with held(database_url, "stuck"):
        waiting = asking(stuck, ends)
        until_one_waits(database_url)
        began = time.monotonic()
        for _ in range(3):
            free.acquire(CLASSES)
        assert time.monotonic() - began < 10
        assert waiting.is_alive(), "it is asked again, as long as before"
    waiting.join(30)
    connection.close()
    assert ends == [None]


def test_a_stop_ends_the_wait_for_a_row_and_for_whoever_waits_for_one(database_url: str) -> None:
    """Ctrl-C, or Dagster's end of a run, took up to 40 seconds."""
    stop = threading.Event()
    ends: list[type[Exception] | None] = []
    connection = BudgetConnection(database_url, stop=stop)
    stuck, free = PostgresBudget(connection, "stuck", 1.0), PostgresBudget(connection, "free", 1.0)
    stuck.acquire(CLASSES)
    with held(database_url, "stuck"):
        threads = [asking(stuck, ends)]
        until_one_waits(database_url)
        threads += [asking(free, ends) for _ in range(2)]
        stop.set()
        began = time.monotonic()
        for thread in threads:
            thread.join(10)
        connection.close()
        assert time.monotonic() - began < 10
    # The others may have had their turn when the first gave up its own.
    assert Cancelled in ends
    assert BudgetUnavailable not in ends


def test_whoever_waits_for_a_turn_is_stopped_although_another_has_not_ended_its_own() -> None:
    """What the server does not answer at all ends after half a minute only."""
    stop = threading.Event()
    connection = BudgetConnection("postgresql://127.0.0.1:9/none", stop=stop)
    threading.Timer(0.1, stop.set).start()
    with connection._asking.turn(None), pytest.raises(Cancelled):
        PostgresBudget(connection, "k", 1.0).acquire(CLASSES)


def test_a_row_is_waited_for_as_long_as_before(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wait is short, so that others have their turn; what holds a row for half a minute still ends no run."""
    monkeypatch.setattr(budget_module, "_SESSION", "SELECT set_config('lock_timeout', '50ms', false)")
    monkeypatch.setattr(budget_module, "_TRY_AGAIN_SECONDS", 0.05)
    connection = BudgetConnection(database_url)
    budget, tries = PostgresBudget(connection, "stuck", 1.0), []
    budget.acquire(CLASSES)
    pause = connection.pause
    with held(database_url, "stuck") as db:

        def noting(seconds: float) -> None:
            tries.append(seconds)
            if len(tries) == 5:
                db.rollback()
            pause(seconds)

        monkeypatch.setattr(connection, "pause", noting)
        budget.acquire(CLASSES)
    assert len(tries) >= 5
    monkeypatch.setattr(budget_module, "_PATIENCE_SECONDS", 0.3)
    with held(database_url, "stuck"), pytest.raises(BudgetUnavailable):
        budget.acquire(CLASSES)
    connection.close()
