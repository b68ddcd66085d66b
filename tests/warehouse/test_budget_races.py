"""The shared budget from several real processes at once: no window ever holds more than its limit (promise 8)."""

import multiprocessing
import threading
import time

import psycopg
import pytest

from nexhealth_pipeline.catalog.limits import Limit, RateClass
from nexhealth_pipeline.errors import Cancelled
from nexhealth_pipeline.warehouse.budget import BUDGET_DDL, BudgetConnection, PostgresBudget

from .test_budget import GENERAL, PATIENTS, only

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def url(database_url: str) -> str:
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(BUDGET_DDL)
    return database_url


def most_in_any_window(moments: list[float], seconds: float) -> int:
    moments = sorted(moments)
    first = worst = 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - seconds:
            first += 1
        worst = max(worst, last - first + 1)
    return worst


def _work(url: str, limits: dict[RateClass, Limit], share: float, begin, seconds: float, out) -> None:
    """One process with three threads that take all they get.

    Puts the moments of its grants, and the seconds for which it was not let run.
    """
    stop = threading.Event()
    budget = PostgresBudget(BudgetConnection(url, stop=stop), "k", share, limits=limits)
    moments: list[float] = []
    ask = budget._connection.ask

    def noting(query: str, parameters: tuple[object, ...]) -> float:
        # Noted in the line: once out of it, each thread could hold a grant back while others go on.
        if not (wait := ask(query, parameters)):
            moments.append(time.time())
        return wait

    def take() -> None:
        try:
            while True:
                budget.acquire((GENERAL, PATIENTS))
        except Cancelled:
            return

    budget._connection.ask = noting  # type: ignore[method-assign]
    threads = [threading.Thread(target=take) for _ in range(3)]
    begin.wait(120)
    for thread in threads:
        thread.start()
    began = now = time.monotonic()
    lost = 0.0
    while now < began + seconds:
        time.sleep(0.01)
        lost += max(0.0, time.monotonic() - now - 0.015)
        now = time.monotonic()
    stop.set()
    for thread in threads:
        thread.join()
    budget._connection.close()
    out.put((moments, lost))


def test_four_processes_never_exceed_a_window_and_use_the_share(url):
    """Promise 8. Windows of 0.5 s, so that ten of them fit into the test."""
    limits, seconds = only(50, 0.5), 5.0  # of which 40 are used; what is left free is for wake-ups on a busy machine
    results = _raced(url, limits, 0.8, seconds)
    moments = [moment for result, _ in results for moment in result]
    assert most_in_any_window(moments, 0.5) <= 50
    running = seconds - max(lost for _, lost in results)  # while the machine stands still nobody takes anything
    assert len(moments) >= 0.85 * 40 * running / 0.5
    grants = [len(result) for result, _ in results]
    assert min(grants) * 10 >= max(grants), "on a busy machine one gets four times as much as another"


def _raced(url: str, limits: dict[RateClass, Limit], share: float, seconds: float) -> list[tuple[list[float], float]]:
    """What four processes put that take all they get."""
    out, begin = SPAWN.Queue(), SPAWN.Barrier(4)
    workers = [SPAWN.Process(target=_work, args=(url, limits, share, begin, seconds, out)) for _ in range(4)]
    for worker in workers:
        worker.start()
    results = [out.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    return results


_NOTING_GRANTS = """
CREATE TABLE grants (at double precision);
ALTER FUNCTION nexhealth_rate_lock RENAME TO nexhealth_rate_lock_itself;
CREATE FUNCTION nexhealth_rate_lock(key text, classes text[], seconds double precision[], buckets integer)
RETURNS double precision LANGUAGE plpgsql AS $$
BEGIN
    RETURN set_config('test.moment', nexhealth_rate_lock_itself(key, classes, seconds, buckets)::text, false);
END $$;
CREATE FUNCTION note_grant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO grants VALUES (current_setting('test.moment')::double precision);
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER UPDATE ON nexhealth_rate_budget FOR EACH ROW
    WHEN (NEW.rate_class = 'patients') EXECUTE FUNCTION note_grant();
"""
"""Each grant by the clock that it was decided by: a process that must wait for its turn notes it later."""


def test_four_processes_never_exceed_a_window_that_is_paced_from_its_half_on(url):
    """As the API's minutes are: the half of it at once, the rest evenly. With all of the limit, so that one more shows."""
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(_NOTING_GRANTS)
        stood_still = max(lost for _, lost in _raced(url, only(400, 4.0), 1.0, 6.0))
        moments = [at for (at,) in db.execute("SELECT at FROM grants ORDER BY at")]
    assert most_in_any_window(moments, 4.0) <= 400
    assert len(moments) > 400 * (1 - stood_still / 4.0), "nothing was granted once the first ones had left the window"
    assert len(moments) > 399, f"the machine stood still for {stood_still:.1f} s"
    assert moments[199] - moments[0] < 1.7 + stood_still, "the first half came evenly as well"
    assert moments[399] - moments[200] > 1.7, "the other half came at once as well"
