"""Promise 9: what applying events holds does not grow with how many are waiting."""

import gc
from itertools import count
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.orchestration import webhook_apply
from nexhealth_pipeline.webhooks.applying import replaying
from nexhealth_pipeline.webhooks.applying.batches import Batch
from nexhealth_pipeline.webhooks.applying.pending import Backlog
from nexhealth_pipeline.webhooks.applying.replaying import Selection
from tests.effort import peak
from tests.sync.kit import open_session

from .kit import patient, settings_for, store, updated

NUMBERS = count(1)


def waiting(practice: psycopg.Connection, events: int) -> None:
    """Store so many events, each of another patient."""
    with practice.transaction():
        store(practice, *(updated(patient(next(NUMBERS), 5)) for _ in range(events)))


def apply(practice: psycopg.Connection, practice_url: str, events: int) -> int:
    """Bytes that were held at once while so many events were applied."""
    waiting(practice, events)
    applied = 0

    def told(batch: Batch) -> None:
        nonlocal applied
        applied += batch.applied
        gc.collect()  # when the collector would come by itself is chance, and what it takes is not held

    def work() -> None:
        with open_session(settings_for(practice_url), retry=RetryPolicy(sleep=lambda _: None)) as session:
            for _ in webhook_apply._until_tried(session, told, Backlog.now(practice)):
                pass

    held, _ = peak(work)
    assert applied == events
    return held


def test_four_times_as_many_events_hold_no_more_at_once(
    practice: psycopg.Connection, practice_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A practice that was offline for a week sends a week's events within an hour."""
    monkeypatch.setattr(webhook_apply, "_EVENTS_A_CALL", 500)
    apply(practice, practice_url, 20)  # what is imported, compiled and cached by the first run stays
    few, many = apply(practice, practice_url, 500), apply(practice, practice_url, 2000)
    if many >= 1.03 * few:  # once more: what else the process did meanwhile was counted as well
        many = min(many, apply(practice, practice_url, 2000))
    assert many < 1.03 * few, f"{few:,} bytes for 500 events, {many:,} for 2,000"


def rehearsed(practice: psycopg.Connection, practice_url: str, events: int) -> int:
    """Bytes that were held at once while it was said what so many events would do."""
    practice.execute("DELETE FROM nexhealth_webhook_events")
    waiting(practice, events)
    practice.execute("UPDATE nexhealth_webhook_events SET status = 'applied'")
    with open_session(settings_for(practice_url)) as session:
        held, found = peak(lambda: replaying.rehearse(session, Selection(statuses=("applied",))))
    assert (found.events, found.applied, found.rows) == (events, events, events)
    return held


def test_what_six_times_as_many_events_would_do_is_said_holding_no_more_at_once(
    practice: psycopg.Connection, practice_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each no more than its number is kept, by which a month of them is chosen."""

    def collected(*given: Any) -> list[Batch]:
        done = one_batch(*given)
        gc.collect()
        return done

    one_batch = replaying._rehearsed
    monkeypatch.setattr(replaying, "_rehearsed", collected)
    rehearsed(practice, practice_url, 20)
    few, many = rehearsed(practice, practice_url, 500), rehearsed(practice, practice_url, 3000)
    if many >= 1.08 * few:
        many = min(many, rehearsed(practice, practice_url, 3000))
    assert many < 1.08 * few, f"{few:,} bytes for 500 events, {many:,} for 3,000"
