"""The in-process budget: the same promise as the shared one, for threads."""

import threading

import pytest

from nexhealth_pipeline.catalog.limits import Limit, RateClass
from nexhealth_pipeline.client.budget import LocalBudget
from nexhealth_pipeline.errors import Cancelled

GENERAL, PATIENTS = RateClass.GENERAL, RateClass.PATIENTS
LIMITS = {GENERAL: Limit(10, 1.0), PATIENTS: Limit(20, 60.0)}


class Time:
    now = 1000.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def budget(clock: Time) -> LocalBudget:
    return LocalBudget(0.8, limits=LIMITS, clock=lambda: clock.now, sleep=clock.sleep)


def test_no_window_ever_holds_more_than_the_share(budget, clock):
    moments = []
    for _ in range(40):
        budget.acquire((GENERAL, PATIENTS))
        moments.append(clock.now)
    for moment in moments:
        assert sum(moment - 1.0 < other <= moment for other in moments) <= 8
        assert sum(moment - 60.0 < other <= moment for other in moments) <= 16


def test_a_throttle_holds_everyone_for_its_time(budget, clock):
    budget.throttle((GENERAL,), 7.0)
    assert budget.acquire((PATIENTS,)) == 0.0
    assert budget.acquire((GENERAL, PATIENTS)) == 7.0


def test_stopping_ends_the_wait(clock):
    stop = threading.Event()
    budget = LocalBudget(limits=LIMITS, clock=lambda: clock.now, sleep=clock.sleep, stop=stop)
    budget.throttle((GENERAL,), 60.0)
    stop.set()
    with pytest.raises(Cancelled):
        budget.acquire((GENERAL,))
