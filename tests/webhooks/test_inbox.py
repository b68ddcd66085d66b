"""Storing many requests with few commits, without ever mixing up what became of each."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from hashlib import sha256
from typing import Any

import psycopg
import pytest
from psycopg import conninfo

from nexhealth_pipeline.webhooks.receiving import link
from nexhealth_pipeline.webhooks.receiving.audit import Audit
from nexhealth_pipeline.webhooks.receiving.event_rows import EventRow, array_of
from nexhealth_pipeline.webhooks.receiving.inbox import Inbox, Outcome
from nexhealth_pipeline.webhooks.receiving.link import Link
from nexhealth_pipeline.webhooks.receiving.metrics import Metrics
from tests.webhooks.receiving import Detour, events


def row(number: int, **changes: Any) -> EventRow:
    key = sha256(str(number).encode()).digest()
    made = EventRow("valid", "pending", source="203.0.113.1", event_name="patient_updated", payload=f"payload {number}")
    return replace(made, resource_ids=f"{{{number}}}", body_hash=key, dedup_hash=key, **changes)


def inbox(url: str, answered_within: float = 4.0, **given: Any) -> Inbox:
    """An inbox that gives a statement as long as the receiver does; less only for a way to the server that is frozen."""
    link = Link(url, seconds=answered_within, on_change=lambda up: None)
    return Inbox(link, Audit(), Metrics(), **{"seconds": 5.0, "audit_seconds": 1.0} | given)


def run(story: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(story)


async def all_of(box: Inbox, rows: list[EventRow]) -> list[Outcome]:
    return list(await asyncio.gather(*(box.store(one, 10) for one in rows)))


def test_those_that_wait_together_are_stored_together(no_events: str) -> None:
    """A commit each would be the end of 500 events a second."""

    async def story() -> list[Outcome]:
        async with inbox(no_events) as box:
            return await all_of(box, [row(k % 400) for k in range(500)])

    found = run(story())
    assert Counter(found) == {Outcome.STORED: 400, Outcome.DUPLICATE: 100}
    assert found[:400] == [Outcome.STORED] * 400
    rows = events(no_events)
    assert [one["resource_ids"] for one in rows if one["status"] == "pending"] == [[k] for k in range(400)]
    ids = {one["resource_ids"][0]: one["id"] for one in rows if one["status"] == "pending"}
    assert all(one["duplicate_of"] == ids[one["resource_ids"][0]] for one in rows if one["status"] == "duplicate")
    with psycopg.connect(no_events) as connection:
        commits = connection.execute("SELECT count(DISTINCT xmin::text) FROM nexhealth_webhook_events").fetchone()
    assert commits is not None
    assert commits[0] <= 6


def test_two_receivers_never_both_store_an_event(no_events: str) -> None:
    """Behind a balancer the repeat of a slow request may arrive at the other one."""

    async def story() -> list[Outcome]:
        async with inbox(no_events, rows=7) as one, inbox(no_events, rows=7) as other:
            rows = [row(k) for k in range(60)]
            found = await asyncio.gather(all_of(one, rows), all_of(other, list(reversed(rows))))
            return found[0] + found[1]

    found = Counter(run(story()))
    assert found[Outcome.STORED] <= 60
    pending = events(no_events, "status = 'pending'")
    assert len({one["dedup_hash"] for one in pending}) == len(pending) >= found[Outcome.STORED]


def test_a_row_that_the_server_refuses_does_not_cost_the_others(no_events: str) -> None:
    """Whatever slips through the checks; the sender's repeats would meet new companions each time."""

    async def story() -> list[Outcome]:
        async with inbox(no_events) as box:
            return await all_of(box, [row(1), row(2, subdomain="a\0b"), row(3, institution_id="x"), row(4)])

    assert run(story()) == [Outcome.STORED, Outcome.AWAY, Outcome.AWAY, Outcome.STORED]
    assert len(events(no_events)) == 2


def test_what_waits_for_a_lock_does_not_cost_those_behind_it(no_events: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated delivery of an event that somebody is changing just now; the server gives its statement up in time."""
    monkeypatch.setattr(link, "SERVERS_PART", 200)  # a second for each statement, and our own four are not over then

    async def story() -> list[Outcome]:
        async with inbox(no_events, answered_within=5.0, rows=1) as box:
            await box.store(row(1), 10)
            with psycopg.connect(no_events) as holding:
                holding.execute("UPDATE nexhealth_webhook_events SET status = 'parked'")
                return await all_of(box, [row(1), row(2), row(3)])

    assert run(story()) == [Outcome.AWAY, Outcome.STORED, Outcome.STORED]


def test_the_queue_has_an_end(no_events: str) -> None:
    """While the table is locked events pile up; memory must not."""

    async def story() -> list[Outcome]:
        async with inbox(no_events, most_waiting=5, seconds=0.2) as box:
            with psycopg.connect(no_events) as holding:
                holding.execute("LOCK TABLE nexhealth_webhook_events IN SHARE MODE")
                found = await all_of(box, [row(k) for k in range(9)])
                holding.execute(  # else it would store them for the next test, once the lock is gone
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE application_name = 'nexhealth-receiver' AND datname = current_database()"
                )
                return found

    assert Counter(run(story())) == {Outcome.AWAY: 5, Outcome.FULL: 4}


def test_an_unknown_outcome_is_told_as_not_stored_and_the_repeat_is_right(no_events: str) -> None:
    """The answer of the server to the commit is lost: it may or may not be in the table."""

    async def story(detour: Detour) -> list[Outcome]:
        found = []
        async with inbox(detour.way, answered_within=1.0) as box:
            detour.frozen = True
            found.append(await box.store(row(1), 10))
            detour.mend()
            while not box.is_up:
                await asyncio.sleep(0.02)
            found.append(await box.store(row(1), 10))
        return found

    with Detour(no_events) as detour:
        first, second = run(story(detour))
    assert first is Outcome.AWAY
    assert second in {Outcome.STORED, Outcome.DUPLICATE}
    assert len(events(no_events, "status = 'pending'")) == 1


def test_it_starts_while_the_database_is_away_and_stores_once_it_is_there(no_events: str) -> None:
    async def story(detour: Detour) -> list[Outcome]:
        detour.cut()
        async with inbox(detour.way) as box:
            found = [await box.store(row(1), 10)]
            detour.mend()
            while not box.is_up:
                await asyncio.sleep(0.02)
            return [*found, await box.store(row(1), 10)]

    with Detour(no_events) as detour:
        assert run(story(detour)) == [Outcome.AWAY, Outcome.STORED]


def test_what_is_told_as_stored_is_on_disk_even_if_the_server_says_otherwise(no_events: str) -> None:
    """With synchronous_commit = off a crash of the server takes the last commits with it."""

    async def story() -> str:
        link = Link(no_events, on_change=lambda up: None)
        await link.open()
        found = await link.execute("SHOW synchronous_commit", {})
        await link.close()
        return str(found[0][0])

    with psycopg.connect(no_events, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        assert run(story()) == "on"
        connection.execute(f'ALTER DATABASE "{name}" RESET synchronous_commit')


def test_settings_that_a_role_has_for_other_work_are_not_the_receivers(no_events: str) -> None:
    """What waits a moment for a row, or comes again while it is stored, would cost the connection and be told as not stored."""

    async def story(url: str) -> tuple[object, ...]:
        link = Link(url, on_change=lambda up: None)
        await link.open()
        names = ("default_transaction_isolation", "lock_timeout", "search_path", "statement_timeout")
        asked = ", ".join(f"current_setting('{name}')" for name in names)
        found = await link.execute(f"SELECT {asked}", {})
        await link.close()
        return found[0]

    with psycopg.connect(no_events, autocommit=True) as connection:
        base = f'ALTER DATABASE "{connection.info.dbname}"'
        connection.execute(f"{base} SET default_transaction_isolation = 'repeatable read'")
        connection.execute(f"{base} SET lock_timeout = '10ms'")
        connection.execute(f"{base} SET search_path = elsewhere")
        try:
            assert run(story(no_events)) == ("read committed", "0", "public", "3600ms")
            chosen = conninfo.make_conninfo(no_events, options="-c lock_timeout=7s -c statement_timeout=9s")
            assert run(story(chosen)) == ("read committed", "7s", "public", "3600ms")
        finally:
            connection.execute(f"{base} RESET ALL")


def test_arrays_hold_their_names() -> None:
    assert array_of([]) == "{}"
    assert array_of(["null", "a,b", "{c}"]) == '{"null","a,b","{c}"}'
