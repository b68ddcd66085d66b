"""Whether continuous sync works: asked every quarter of an hour of events that are kept for years."""

import re
from typing import Any, LiteralString

import psycopg
import pytest

from nexhealth_pipeline.warehouse import webhook_health
from nexhealth_pipeline.warehouse.webhook_health import HEALTH_RULES, HealthRule

VALUES = {"asked_hours": 2, "silence_seconds": 86_400.0, "waiting_minutes": 15}


def rule(name: str) -> HealthRule:
    (found,) = (one for one in HEALTH_RULES if one.name == name)
    return found


def found_by_age(connection: psycopg.Connection, query: LiteralString, values: dict[str, Any] | None = None) -> int:
    """How often a query looks for events by their age in an index, instead of at all of them."""
    connection.execute("SET enable_seqscan = off")
    plan = "\n".join(line for (line,) in connection.execute("EXPLAIN " + query, values))
    return len(re.findall(r"Index Cond: \((?:\w+\.)?received_at [<>]", plan))


@pytest.mark.parametrize(
    ("query", "values", "times"),
    [
        pytest.param(rule("events_arrive").faults, VALUES, 1, id="whether events arrive"),
        pytest.param(webhook_health._ENDPOINTS, None, 1, id="an endpoint's last one"),
        pytest.param(webhook_health._EVENTS, None, 2, id="the last one, and refusals of a day"),
    ],
)
def test_events_of_the_last_days_are_found_without_reading_those_of_years(
    connection: psycopg.Connection, query: LiteralString, values: dict[str, Any] | None, times: int
) -> None:
    """PostgreSQL asks no index by a clock that may go on while it does."""
    assert found_by_age(connection, query, values) == times


def test_no_condition_goes_by_a_clock_that_no_index_is_asked_by() -> None:
    queries = [one.faults for one in HEALTH_RULES] + [webhook_health._ENDPOINTS, webhook_health._EVENTS]
    assert not [one for one in queries if "clock_timestamp" in one]
