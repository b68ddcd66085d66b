"""The shared budget against a real PostgreSQL: what it counts, paces, and says while it cannot be asked."""

import os
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from nexhealth_pipeline.catalog.limits import LIMITS, Limit, RateClass, rate_classes
from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.errors import BudgetUnavailable, Cancelled
from nexhealth_pipeline.warehouse import budget as budget_module
from nexhealth_pipeline.warehouse.budget import BUDGET_DDL, PACE_SLACK, BudgetConnection, PostgresBudget
from nexhealth_pipeline.warehouse.connect import connect

GENERAL, PATIENTS, OTHER = RateClass.GENERAL, RateClass.PATIENTS, RateClass.OTHER
WIDE = {name: Limit(10_000, 1.0) for name in RateClass}


@pytest.fixture
def url(database_url: str) -> str:
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(BUDGET_DDL)
    return database_url


@pytest.fixture
def budget_of(url: str) -> Iterator:
    made: list[PostgresBudget] = []

    def make(share: float = 1.0, limits: dict[RateClass, Limit] = WIDE, key: str = "k", **options) -> PostgresBudget:
        made.append(PostgresBudget(BudgetConnection(url, **options), key, share, limits=limits))
        return made[-1]

    yield make
    for budget in made:
        budget._connection.close()


def told_by(budget: PostgresBudget) -> list[float]:
    """The waits that the database tells from now on. A busy machine may take longer, but that is not decided here."""
    ask, told = budget._connection.ask, []

    def noting(query: str, parameters: tuple[object, ...]) -> float:
        if wait := ask(query, parameters):
            told.append(wait)
        return wait

    budget._connection.ask = noting  # type: ignore[method-assign]
    return told


def only(requests: int, seconds: float, name: RateClass = PATIENTS) -> dict[RateClass, Limit]:
    """Wide limits but one."""
    return {**WIDE, name: Limit(requests, seconds)}


def test_a_request_counts_in_all_its_classes_or_in_none(budget_of, url):
    """A grant counted in the wide class while the narrow one waits would waste the wide one."""
    stop = threading.Event()
    budget = budget_of(limits={**WIDE, RateClass.APPOINTMENT_LIST: Limit(2, 60.0)}, stop=stop)
    classes = rate_classes("/appointments")
    assert [budget.acquire(classes) for _ in range(2)] == [0.0, 0.0]
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(Cancelled):
        budget.acquire(classes)
    with psycopg.connect(url) as db:
        rows = db.execute(
            "SELECT rate_class, (SELECT sum(n) FROM unnest(counts) n) FROM nexhealth_rate_budget"
        ).fetchall()
    assert dict(rows) == {"general": 2, "patients": 2, "appointment_list": 2}


def test_a_full_class_does_not_hold_up_another(budget_of):
    stop = threading.Event()
    budget = budget_of(limits=only(1, 60.0), stop=stop)
    budget.acquire((GENERAL, PATIENTS))
    waiting = threading.Thread(target=_until_cancelled, args=(budget, (GENERAL, PATIENTS)))
    waiting.start()
    assert budget.acquire((GENERAL, OTHER)) == 0.0
    stop.set()
    waiting.join()


def _until_cancelled(budget: PostgresBudget, classes: tuple[RateClass, ...]) -> None:
    with pytest.raises(Cancelled):
        budget.acquire(classes)


def test_the_wait_is_reported(budget_of):
    budget, answers = budget_of(), iter([0.1, 0.0])
    budget._connection.ask = lambda *_: next(answers)  # a busy machine might ask a real window when it is over
    began = time.monotonic()
    assert 0.1 <= budget.acquire((PATIENTS,)) <= time.monotonic() - began


def test_throttle_stops_every_process_in_these_classes_only(budget_of):
    """A 429 met by one is respected by all (other objects stand for other processes)."""
    one, other = budget_of(), budget_of()
    began = time.monotonic()  # before the throttle: else a delay between both shortens what is measured
    one.throttle((GENERAL, PATIENTS), 0.3)
    assert other.acquire((OTHER,)) == 0.0
    other.acquire((GENERAL, OTHER))
    assert time.monotonic() - began > 0.29


def test_a_shorter_throttle_never_shortens_a_longer_one(budget_of):
    budget = budget_of()
    began = time.monotonic()
    budget.throttle((PATIENTS,), 0.3)
    budget.throttle((PATIENTS,), 0.01)
    budget.acquire((PATIENTS,))
    assert time.monotonic() - began > 0.29


def test_the_longest_throttle_of_a_client_is_heeded(budget_of):
    """Risk: held for that of a clock that was put back, it would stop nobody."""
    stop = threading.Event()
    budget = budget_of(stop=stop)
    told = told_by(budget)
    policy = RetryPolicy(random=lambda: 1.0)
    budget.throttle((PATIENTS,), policy.bounded(86_400.0, throttled=True))
    stop.set()
    with pytest.raises(Cancelled):
        budget.acquire((PATIENTS,))
    assert told[0] > policy.longest_block - 30


def test_keys_do_not_share_a_budget(budget_of):
    budget_of(limits=only(1, 60.0), key="a").acquire((PATIENTS,))
    assert budget_of(limits=only(1, 60.0), key="b").acquire((PATIENTS,)) == 0.0


def test_a_changed_share_remembers_what_was_granted(budget_of):
    """A restart with another share must not begin with an empty window."""
    large, small = budget_of(1.0, only(10, 0.4)), budget_of(0.5, only(10, 0.4))
    for _ in range(3):
        large.acquire((PATIENTS,))
    began = time.monotonic()
    for _ in range(5):
        large.acquire((PATIENTS,))
    small.acquire((PATIENTS,))
    assert time.monotonic() - began > 0.4, "with five a window, the fourth of the eight has to leave it first"


def test_another_window_length_counts_old_grants_as_new(budget_of):
    """A release with other limits reads rows of the one before."""
    budget_of(limits=only(3, 60.0)).acquire((PATIENTS,))
    budget = budget_of(limits=only(2, 0.2))
    began = time.monotonic()
    assert budget.acquire((PATIENTS,)) == 0.0
    budget.acquire((PATIENTS,))
    assert time.monotonic() - began > 0.2


def test_a_server_clock_put_back_neither_forgets_nor_blocks_for_long(budget_of, url):
    """After an NTP step of an hour the row's newest bucket lies in the future."""
    budget = budget_of(limits=only(1, 0.2))
    budget.acquire((PATIENTS,))
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(
            "UPDATE nexhealth_rate_budget SET last_bucket = last_bucket + 900000, blocked_until = 1e11, next_at = 1e11"
        )
    assert 0.1 < budget.acquire((PATIENTS,)) < 30


def test_a_429_after_the_servers_clock_was_put_back_is_heeded(budget_of, url):
    """The block of before, which nobody heeds any more, must not stand in the way of the next ones until its time."""
    budget = budget_of()
    budget.throttle((PATIENTS,), 60.0)
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("UPDATE nexhealth_rate_budget SET blocked_until = blocked_until + 3600")
    assert budget.acquire((PATIENTS,)) == 0.0
    began = time.monotonic()
    budget.throttle((PATIENTS,), 0.3)
    budget.acquire((PATIENTS,))
    assert 0.29 < time.monotonic() - began < 30


def test_a_share_below_one_request_still_grants_one(budget_of):
    assert budget_of(0.001, only(10, 60.0)).acquire((PATIENTS,)) == 0.0


def test_stopping_ends_the_wait_of_every_thread_in_line(budget_of):
    stop = threading.Event()
    budget = budget_of(limits=only(1, 60.0), stop=stop)
    budget.acquire((PATIENTS,))
    threads = [threading.Thread(target=_until_cancelled, args=(budget, (PATIENTS,))) for _ in range(4)]
    for thread in threads:
        thread.start()
    stop.set()
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)


def test_threads_are_served_in_the_order_they_came(budget_of):
    budget = budget_of(limits=only(1, 0.1))
    budget.acquire((PATIENTS,))
    ask, order = budget._connection.ask, []

    def noting(*question) -> float:
        if not (wait := ask(*question)):
            order.append(threading.current_thread())
        return wait

    budget._connection.ask = noting
    threads = [threading.Thread(target=budget.acquire, args=((PATIENTS,),)) for _ in range(4)]
    line = budget._line((PATIENTS,))
    with line.turn(None):
        for came, thread in enumerate(threads, 1):
            thread.start()
            while len(line._waiting) < came:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == threads


def test_a_lost_connection_is_replaced_once(budget_of, url):
    budget = budget_of()
    budget.acquire((PATIENTS,))
    with psycopg.connect(url, autocommit=True) as db:
        mine = "datname = current_database() AND application_name LIKE '%rate budget'"
        db.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {mine}")
    assert budget.acquire((PATIENTS,)) == 0.0


def test_a_question_that_a_standstill_cut_off_is_asked_again(budget_of, url, monkeypatch: pytest.MonkeyPatch):
    """A server that stood still for a minute first ends what was on its way (57014, 55P03), and then answers."""
    monkeypatch.setattr(budget_module, "_SESSION", "SELECT set_config('lock_timeout', '300ms', false)")
    monkeypatch.setattr(budget_module, "_PATIENCE_SECONDS", 0.1)
    budget = budget_of(limits=only(9, 0.001))
    budget.acquire((PATIENTS,))
    connected, tries = budget._connection._connected, []

    def try_again() -> psycopg.Connection:
        tries.append(1)
        if len(tries) == 2:
            db.rollback()
        return connected()

    monkeypatch.setattr(budget._connection, "_connected", try_again)
    with psycopg.connect(url) as db:
        db.execute("SELECT FROM nexhealth_rate_budget FOR UPDATE")
        budget.acquire((PATIENTS,))
        assert len(tries) == 2
        db.execute("SELECT FROM nexhealth_rate_budget FOR UPDATE")
        with pytest.raises(BudgetUnavailable):
            budget.acquire((PATIENTS,))


def test_an_unreachable_database_lets_nothing_through(monkeypatch: pytest.MonkeyPatch):
    """Fail closed: without the shared count the limit cannot be kept."""
    monkeypatch.setattr(budget_module, "_AWAY_SECONDS", 0.0)
    budget = PostgresBudget(BudgetConnection("postgresql://someone:hunter2@127.0.0.1:9/none"), "k", 1.0)
    with pytest.raises(BudgetUnavailable) as caught:
        budget.acquire((PATIENTS,))
    assert "hunter2" not in str(caught.value) + repr(budget)
    assert caught.value.__context__ is None


@pytest.fixture
def narrow(url: str) -> Iterator[str]:
    """The address of the same database by which a role comes that may have two connections."""
    name = f"narrow_{os.getpid()}"
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(f"CREATE ROLE {name} LOGIN CONNECTION LIMIT 2; GRANT ALL ON nexhealth_rate_budget TO {name}")
        yield url.replace("postgres@", f"{name}@")
        db.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_that_no_connection_is_left_is_told_and_not_as_a_database_that_does_not_answer(
    narrow: str, monkeypatch: pytest.MonkeyPatch
):
    """Whoever reads "check DATABASE_URL" looks for hours at an address that is right. Threads in line do not each wait anew."""
    monkeypatch.setattr(budget_module, "_AWAY_SECONDS", 0.15)
    monkeypatch.setattr(budget_module, "_TRY_AGAIN_SECONDS", 0.05)
    budget, tries = PostgresBudget(BudgetConnection(narrow), "k", 1.0), []
    monkeypatch.setattr(budget_module, "connect", lambda *given, **named: tries.append(1) or connect(*given, **named))
    with psycopg.connect(narrow), psycopg.connect(narrow):
        left = f"has no connection left for role narrow_{os.getpid()}: raise its CONNECTION LIMIT"
        with pytest.raises(BudgetUnavailable, match=left) as caught:
            budget.acquire((PATIENTS,))
        assert caught.value.__context__ is None
        assert len(tries) > 2
        tries.clear()
        with pytest.raises(BudgetUnavailable, match=left):
            budget.throttle((PATIENTS,), 1.0)
        assert len(tries) == 1


def test_a_connection_that_is_missing_for_a_moment_is_waited_for(narrow: str, monkeypatch: pytest.MonkeyPatch):
    """Others' tools come and go, and the pool of the same run waits as well."""
    budget = PostgresBudget(BudgetConnection(narrow), "k", 1.0)
    with psycopg.connect(narrow), psycopg.connect(narrow) as last:
        monkeypatch.setattr(budget._connection, "pause", lambda _: last.close())
        assert budget.acquire((PATIENTS,)) == 0.0
    budget._connection.close()


def test_whoever_waits_for_a_connection_can_be_stopped():
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        PostgresBudget(BudgetConnection("postgresql://127.0.0.1:9/none", stop=stop), "k", 1.0).acquire((PATIENTS,))


def test_a_full_disk_is_called_that(budget_of, monkeypatch: pytest.MonkeyPatch):
    def full() -> psycopg.Connection:
        raise psycopg.errors.DiskFull("could not extend file")

    budget = budget_of()
    monkeypatch.setattr(budget._connection, "_connected", full)
    with pytest.raises(BudgetUnavailable, match="no room left: make room on its disk"):
        budget.acquire((PATIENTS,))


def test_a_missing_table_names_the_command(server_url):
    budget = PostgresBudget(BudgetConnection(server_url), "k", 1.0)
    with pytest.raises(BudgetUnavailable, match="nexhealth db upgrade"):
        budget.acquire((PATIENTS,))
    budget._connection.close()


def test_the_definition_may_run_again(url, budget_of):
    budget_of(limits=only(1, 60.0)).acquire((PATIENTS,))
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(BUDGET_DDL)
        assert db.execute("SELECT count(*) FROM nexhealth_rate_budget").fetchone() == (1,)


def test_a_second_is_filled_evenly_so_that_late_arrivals_do_not_meet_the_next_ones(budget_of):
    """Eight grants at once, arriving 0.3 s late, and the next eight would be 16 in one second of the API."""
    budget = budget_of(0.8, LIMITS)
    told = told_by(budget)
    began = time.monotonic()
    for _ in range(5):
        budget.acquire(rate_classes("/appointments"))
    assert time.monotonic() - began >= 4 / 8 - 0.06
    assert sum(told) < 4 / 8


def test_the_second_half_of_a_long_window_is_filled_evenly(budget_of):
    """A large job must not stand still for most of each minute, nor crowd out those whose limit is a second's."""
    budget = budget_of(1.0, {**WIDE, PATIENTS: Limit(40, 4.0)})
    assert sum(budget.acquire((GENERAL, PATIENTS)) for _ in range(20)) == 0.0
    told = told_by(budget)
    began = time.monotonic()
    for _ in range(20):
        budget.acquire((GENERAL, PATIENTS))
    assert time.monotonic() - began >= 20 * 0.1 - 2 * 4.0 * PACE_SLACK
    assert sum(told) < 20 * 0.1
    assert max(told) < 0.1 + 0.01


def test_the_first_half_of_a_minute_is_not_paced(budget_of):
    """A small practice should not wait for a rate it never comes near."""
    budget = budget_of(0.8, {**WIDE, PATIENTS: LIMITS[PATIENTS]})
    assert sum(budget.acquire((GENERAL, PATIENTS)) for _ in range(50)) == 0.0
