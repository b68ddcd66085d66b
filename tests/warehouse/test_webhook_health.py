"""Whether continuous sync works: asked every quarter of an hour of events that are kept for years."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.types.json import Jsonb

from nexhealth_pipeline.warehouse import webhook_health
from nexhealth_pipeline.warehouse.webhook_health import HEALTH_RULES, HealthRule, examine, webhook_state
from tests.effort import pages_looked_at

OFFLINE_OFFICE = """
INSERT INTO nexhealth_institutions (institution_id, id, subdomain, synced_at, source_read_at, row_hash)
VALUES (7, 7, 'acme', now(), now(), '');
INSERT INTO nexhealth_locations (institution_id, id, synced_at, source_read_at, row_hash)
VALUES (7, 70, now(), now(), '');
INSERT INTO nexhealth_sync_status (institution_id, sync_source_type, sync_source_name, read_status, locations,
                                   synced_at, source_read_at, row_hash)
VALUES (7, 'a', 'b', 'red', '[{"id": 70}]', now(), now(), '')
"""
SUBSCRIBED = (
    "DELETE FROM nexhealth_webhook_events; DELETE FROM nexhealth_webhooks;"
    f" {OFFLINE_OFFICE};"
    " INSERT INTO nexhealth_webhooks (key_hash, endpoint_id, target_url, active, secret, subscriptions, registered_at)"
    """ VALUES ('k', 12, 'https://a.example', true, '', '[{"subdomain": "acme", "active": true}]', '2026-01-01')"""
)
"""That office, one endpoint that hears of it, and no event."""
VALUES = {"asked_hours": 2, "silence_seconds": 86_400.0, "waiting_minutes": 15}


def rule(name: str) -> HealthRule:
    (found,) = (one for one in HEALTH_RULES if one.name == name)
    return found


def found_by_age(connection: psycopg.Connection, query: LiteralString, values: dict[str, Any] | None = None) -> int:
    """How often a query looks for events by their age in an index, instead of at all of them."""
    connection.execute("SET enable_seqscan = off")
    plan = "\n".join(line for (line,) in connection.execute("EXPLAIN " + query, values))
    return len(re.findall(r"Index Cond: \(+(?:\w+\.)?received_at [<>]", plan))


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


def test_what_waits_is_counted_without_a_look_at_all_events(connection: psycopg.Connection) -> None:
    """After a busy hour the statistics say that many wait, long after all of them were applied."""
    begun = datetime.now(UTC) - timedelta(days=30)
    connection.execute("DELETE FROM nexhealth_webhook_events")
    for status in ("applied", "pending"):
        connection.execute(
            "INSERT INTO nexhealth_webhook_events (received_at, verdict, status, payload) SELECT"
            " %s + n * interval '1 minute', 'valid', %s, repeat('x', 500) FROM generate_series(1, 4000) n",
            (begun, status),
        )
    connection.execute("VACUUM ANALYZE nexhealth_webhook_events")
    connection.execute(
        "UPDATE nexhealth_webhook_events SET status = 'applied' WHERE status = 'pending' AND id NOT IN ("
        " SELECT id FROM nexhealth_webhook_events WHERE status = 'pending' ORDER BY received_at DESC LIMIT 2)"
    )
    connection.execute("VACUUM nexhealth_webhook_events")
    assert 0 < pages_looked_at(connection, webhook_health._EVENTS) < 100
    found = webhook_state(connection)
    assert (found.pending, found.oldest_pending_at) == (2, begun + timedelta(minutes=3999))


def test_an_event_that_could_not_be_kept_is_told_of_for_a_week(connection: psycopg.Connection) -> None:
    """Risk: a signed body that is no text is stored without it, as one is whose payload has had its time."""
    connection.execute("DELETE FROM nexhealth_webhook_events")
    connection.execute(
        "INSERT INTO nexhealth_webhook_events (received_at, institution_id, verdict, status, payload, expunged_at) VALUES"
        " (now() - interval '6 days', NULL, 'valid', 'parked', NULL, NULL),"
        " (now() - interval '8 days', NULL, 'valid', 'parked', NULL, NULL),"
        " (now() - interval '1 year', 7, 'valid', 'parked', '{}', NULL),"
        " (now() - interval '1 day', 7, 'valid', 'parked', NULL, now()),"
        " (now(), 7, 'valid', 'duplicate', NULL, NULL), (now(), NULL, 'signature', 'rejected', NULL, NULL)"
    )
    (found,) = (one for one in examine(connection, silence_hours=24) if one.rule.name == "nothing_parked")
    assert found.institutions == {0: 1, 7: 1}
    assert webhook_state(connection).parked == 2


def test_an_event_by_a_clock_that_was_ahead_does_not_pass_for_the_last_one(connection: psycopg.Connection) -> None:
    """Risk: events come no more, and nobody is told before the time at which that one seems to have come."""

    def silent() -> dict[int, int]:
        return {one.rule.name: one.institutions for one in examine(connection, silence_hours=24)}["events_arrive"]

    store = "INSERT INTO nexhealth_webhook_events (received_at, subdomain, verdict, status) VALUES "
    with connection.transaction(force_rollback=True):
        connection.execute(SUBSCRIBED)
        connection.execute(store + "(now() + interval '60 days', 'acme', 'valid', 'applied')")
        assert silent() == {7: 1}
        connection.execute(store + "(clock_timestamp(), 'acme', 'valid', 'applied')")
        assert silent() == {}, "one of this very moment counts"


def test_who_was_renamed_is_told_until_a_set_up_has_noted_the_new_name(connection: psycopg.Connection) -> None:
    """Risk: subscriptions by a name that no institution has are nobody's silence, for ever."""

    def silent() -> tuple[dict[int, int], dict[int, tuple[str, ...]]]:
        (found,) = (one for one in examine(connection, silence_hours=24) if one.rule.name == "events_arrive")
        return found.institutions, found.sample_ids

    with connection.transaction(force_rollback=True):
        connection.execute(SUBSCRIBED)
        connection.execute(
            "INSERT INTO nexhealth_webhook_events (received_at, subdomain, verdict, status) VALUES"
            " (now(), 'acme', 'valid', 'applied')"
        )
        assert silent() == ({}, {})
        connection.execute("UPDATE nexhealth_institutions SET subdomain = 'apex'")
        assert silent() == ({0: 1}, {0: ("acme",)})
        connection.execute("UPDATE nexhealth_institutions SET subdomain = 'acme', deleted_at = now()")
        assert silent() == ({}, {}), "it has left, as somebody has said"


def test_an_institution_that_joined_is_told_until_somebody_subscribes_to_it(connection: psycopg.Connection) -> None:
    """Set up for the others alone, it sent nothing, and nobody's silence was missed."""

    def unsubscribed(*subdomains: str) -> dict[int, tuple[str, ...]]:
        found = examine(connection, silence_hours=24, subdomains=subdomains)
        return next(one.sample_ids for one in found if one.rule.name == "all_subscribed")

    def subscribed(*told: str, active: bool = True) -> None:
        noted = [{"subdomain": one, "active": active} for one in told]
        connection.execute("UPDATE nexhealth_webhooks SET subscriptions = %s", (Jsonb(noted),))

    with connection.transaction(force_rollback=True):
        connection.execute(SUBSCRIBED)
        connection.execute(
            "INSERT INTO nexhealth_institutions (institution_id, id, subdomain, synced_at, source_read_at, row_hash)"
            " VALUES (8, 8, 'apex', now(), now(), ''), (9, 9, 'shut', now(), now(), '')"
        )
        offices = "INSERT INTO nexhealth_locations (institution_id, id, inactive, synced_at, source_read_at, row_hash) VALUES "
        connection.execute(offices + "(9, 90, true, now(), now(), '')")
        assert unsubscribed() == {}, "where nobody is read, nothing is missed"
        connection.execute(offices + "(8, 80, NULL, now(), now(), '')")
        assert unsubscribed() == {8: ("8",)}
        assert unsubscribed("acme") == {}, "nobody wants it"
        assert unsubscribed("acme", "apex") == {8: ("8",)}
        subscribed("acme", "apex")
        assert unsubscribed() == {}
        subscribed("acme", "apex", active=False)
        assert unsubscribed() == {7: ("7",), 8: ("8",)}
        subscribed()
        assert unsubscribed() == {}, "a set-up has not noted anything yet"
        subscribed("acme")
        connection.execute("UPDATE nexhealth_institutions SET deleted_at = now() WHERE id = 8")
        assert unsubscribed() == {}, "it has left"
        connection.execute("UPDATE nexhealth_institutions SET deleted_at = NULL")
        connection.execute("UPDATE nexhealth_webhooks SET removed_at = now()")
        assert unsubscribed() == {}, "webhooks are not in use"


def test_no_condition_goes_by_a_clock_that_no_index_is_asked_by() -> None:
    queries = [one.faults for one in HEALTH_RULES] + [webhook_health._ENDPOINTS, webhook_health._EVENTS]
    assert not [one for one in queries if "clock_timestamp" in one]


@pytest.mark.parametrize("table", ["nexhealth_institutions", "nexhealth_locations", "nexhealth_sync_status"])
def test_what_somebody_has_said_is_gone_is_not_offline(connection: psycopg.Connection, table: LiteralString) -> None:
    """An institution that left takes its offices with it; the check failed for them every quarter of an hour."""

    def offline(*subdomains: str) -> dict[int, int]:
        found = examine(connection, silence_hours=24, subdomains=subdomains)
        return {health.rule.name: health.institutions for health in found}["source_online"]

    with connection.transaction(force_rollback=True):
        connection.execute(OFFLINE_OFFICE)
        assert offline() == offline("acme", "apex") == {7: 1}
        assert offline("apex") == {}, "nobody wants it"
        connection.execute("UPDATE " + table + " SET deleted_at = now(), deleted_by = 'absence'")
        assert offline() == {}
