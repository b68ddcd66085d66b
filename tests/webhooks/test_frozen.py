"""PostgreSQL that stands still: it keeps every connection and answers nothing. A Unix socket has no keepalive either."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
import pytest

from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.webhooks.receiving.serving import Plan
from nexhealth_pipeline.webhooks.receiving.warehouse_watch import WarehouseWatch
from nexhealth_pipeline.webhooks.sealing import Sealer
from tests.servers import Server
from tests.waiting import until
from tests.webhooks.receiving import Running, event, events, receiver, settings, signed

HURRIED = Plan(statement_seconds=1.0, answer_seconds=1.5, secrets_seconds=0.2)


@pytest.fixture
def warehouse(server: Server) -> str:
    return server.database()


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """These processes stand still, whatever comes of the test."""
    try:
        send(signal.SIGSTOP, pids)
        yield
    finally:
        send(signal.SIGCONT, pids)


def send(what: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # some come and go by themselves
            os.kill(pid, what)


def backend(url: str) -> int:
    """The server's process that answers the look for secrets."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT pid FROM pg_stat_activity"
            " WHERE application_name = 'nexhealth-receiver-secrets' AND datname = current_database()"
        ).fetchone()
    assert found
    return int(found[0])


def sealed() -> tuple[Settings, Sealer]:
    given = settings(NEXHEALTH_WEBHOOK_KEY="k" * 32)
    return given, Sealer.of(given)


def register(url: str, sealer: Sealer, secret: str) -> None:
    """A new secret, without a word to those that listen."""
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO nexhealth_webhooks (key_hash, endpoint_id, target_url, active, secret)"
            " VALUES ('k', 77, 'https://x', true, %s)",
            (sealer.seal(secret),),
        )


def readiness(running: Running) -> tuple[int, dict[str, object]]:
    answer = running.ask(method="GET", path="/health/ready", headers={})
    return answer.status, json.loads(answer.word)


def test_a_look_at_a_frozen_server_ends_and_what_was_known_stays(warehouse: str, server: Server) -> None:
    given, sealer = sealed()
    register(warehouse, sealer, "another secret")
    with WarehouseWatch(warehouse, given, sealer, every_seconds=600, seconds=2.0) as live:
        before = live.known
        assert (before.schema_fits, len(before.secrets)) == (True, 2)
        with frozen(server.tree()):
            looks = threading.Thread(target=lambda: [live.look() for _ in range(2)], daemon=True)
            looks.start()  # one on the open connection, one that finds no other
            looks.join(10)
            assert not looks.is_alive()
            assert live.known == before
        live.look()
        assert live.known == before


def test_new_secrets_are_learnt_although_the_connection_for_them_is_frozen(warehouse: str) -> None:
    """As after a move to another server: the old connection stays open, and nothing ever comes on it."""
    given, sealer = sealed()
    with receiver(warehouse, given, HURRIED, sealer) as one:
        with frozen([backend(warehouse)]):
            register(warehouse, sealer, "another secret")
            new = signed(event(1), secret="another secret")
            until(lambda: one.ask(event(1), new).status == 200, seconds=15)
        assert readiness(one) == (200, {"ready": True, "database": True, "schema": True, "secrets": 2})
    assert len(events(warehouse, "status = 'pending'")) == 1


def test_a_receiver_starts_before_a_frozen_server_and_takes_events_once_it_moves(
    warehouse: str, server: Server
) -> None:
    """What is not listened to gives no 503, and nobody sees that it is the database."""
    given, sealer = sealed()
    began = time.monotonic()
    with frozen(server.tree()), receiver(warehouse, given, HURRIED, sealer) as one:
        assert time.monotonic() - began < 12
        assert readiness(one) == (503, {"ready": False, "database": False, "schema": False, "secrets": 1})
        assert one.ask(event(1)).status == 503
        send(signal.SIGCONT, server.tree())
        until(lambda: readiness(one)[0] == 200)
        until(lambda: one.ask(event(1)).status == 200)  # a first statement may take its second
    assert "pending" in {row["status"] for row in events(warehouse, "payload IS NOT NULL")}


def test_looks_that_a_lock_holds_up_do_not_collect_at_the_server(warehouse: str) -> None:
    """The server would wait on for each look that was cut, until it has no connection left."""
    given, sealer = sealed()
    with (
        WarehouseWatch(warehouse, given, sealer, every_seconds=600, seconds=2.0) as live,
        psycopg.connect(warehouse) as holding,
    ):
        before = live.known
        holding.execute("LOCK TABLE nexhealth_webhooks")
        for _ in range(2):
            live.look()
        assert live.known == before
        until(lambda: _busy(holding) == 0)
        holding.rollback()
        live.look()
        assert live.known == before


def _busy(connection: psycopg.Connection) -> int:
    """Looks that the server is still at."""
    connection.execute("SELECT pg_stat_clear_snapshot()")  # else a transaction sees what it saw first
    row = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'nexhealth-receiver-secrets'"
        " AND datname = current_database() AND state = 'active'"
    ).fetchone()
    assert row
    return int(row[0])
