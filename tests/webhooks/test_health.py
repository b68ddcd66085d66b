"""What the receiver tells monitors and balancers of itself."""

import json
from collections.abc import Iterator
from functools import partial

import psycopg
import pytest

from nexhealth_pipeline.warehouse.migrate import HEAD
from nexhealth_pipeline.webhooks.endpoints import SECRETS_CHANNEL
from tests.waiting import until
from tests.webhooks.receiving import Running, event, events, receiver


@pytest.fixture
def running(no_events: str) -> Iterator[Running]:
    with receiver(no_events) as one:
        yield one


def test_health_and_metrics_are_told(running: Running) -> None:
    assert json.loads(running.ask(method="GET", path="/health/live", headers={}).word) == {"live": True}
    assert ready(running) == (200, {"ready": True, "database": True, "schema": True, "secrets": 1})
    running.ask(event(8))
    running.ask(event(8))
    found = running.lines("/metrics")
    assert found['nexhealth_webhook_requests_total{outcome="stored",status="200"}'] >= 1
    assert found["nexhealth_webhook_duplicates_total"] >= 1
    assert found['nexhealth_webhook_base64_total{alphabet="standard"}'] >= 2
    assert found["nexhealth_webhook_database_up"] == 1
    assert running.ask(method="GET", path="/else", headers={}).status == 404


def test_who_is_older_than_the_warehouse_stays_in_service_and_who_is_newer_leaves_it(
    running: Running, no_events: str
) -> None:
    """A release migrates first; were the old receivers not ready then, nobody would take events until the new ones are."""
    with psycopg.connect(no_events, autocommit=True) as warehouse:
        try:
            for revision, status in (("0000", 503), ("9999", 200)):
                warehouse.execute("UPDATE nexhealth_alembic_version SET version_num = %s", (revision,))
                warehouse.execute(f"NOTIFY {SECRETS_CHANNEL}")
                until(partial(tells, running, status))
            assert running.ask(event(1)).status == 200
            assert len(events(no_events)) == 1
        finally:
            warehouse.execute("UPDATE nexhealth_alembic_version SET version_num = %s", (HEAD,))


def tells(running: Running, status: int) -> bool:
    return ready(running)[0] == status


def ready(running: Running) -> tuple[int, dict[str, object]]:
    answer = running.ask(method="GET", path="/health/ready", headers={})
    return answer.status, json.loads(answer.word)
