"""The rate budget of a run that is over."""

import psycopg
import pytest

from nexhealth_pipeline.catalog.limits import RateClass
from nexhealth_pipeline.errors import Cancelled
from nexhealth_pipeline.warehouse.budget import BudgetConnection, PostgresBudget


def test_who_asks_after_the_end_gets_nothing_and_opens_no_connection(database_url: str) -> None:
    """A fetch ahead that was given up would go on asking NexHealth, and keep a connection that nobody closes."""
    connection = BudgetConnection(database_url)
    budget = PostgresBudget(connection, "k", 1.0)
    classes = tuple(RateClass)[:1]
    assert budget.acquire(classes) == 0.0
    connection.close()
    for ask in (lambda: budget.acquire(classes), lambda: budget.throttle(classes, 1.0)):
        with pytest.raises(Cancelled):
            ask()
    assert connection._connection is None


def test_all_keys_of_a_process_are_asked_for_by_one_connection(database_url: str) -> None:
    """A hundred institutions with keys of their own took a hundred connections a run, and the server has no more."""
    connection = BudgetConnection(database_url)
    for number in range(5):
        assert PostgresBudget(connection, f"key {number}", 1.0).acquire(tuple(RateClass)[:1]) == 0.0
    with psycopg.connect(database_url) as looking:
        found = looking.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'nexhealth rate budget'"
        ).fetchone()
    connection.close()
    assert found == (1,)
