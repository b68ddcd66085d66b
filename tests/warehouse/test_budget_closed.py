"""The rate budget of a run that is over."""

import pytest

from nexhealth_pipeline.catalog.limits import RateClass
from nexhealth_pipeline.errors import Cancelled
from nexhealth_pipeline.warehouse.budget import PostgresBudget


def test_who_asks_after_the_end_gets_nothing_and_opens_no_connection(database_url: str) -> None:
    """A fetch ahead that was given up would go on asking NexHealth, and keep a connection that nobody closes."""
    budget = PostgresBudget(database_url, "k", 1.0)
    classes = tuple(RateClass)[:1]
    assert budget.acquire(classes) == 0.0
    budget.close()
    for ask in (lambda: budget.acquire(classes), lambda: budget.throttle(classes, 1.0)):
        with pytest.raises(Cancelled):
            ask()
    assert budget._connection is None
