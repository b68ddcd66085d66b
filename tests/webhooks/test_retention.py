"""Payloads go after their time, and only those that nobody needs any more."""

import psycopg
import pytest

from nexhealth_pipeline.webhooks import applying, retention
from nexhealth_pipeline.webhooks.retention import expunge

from .kit import apply_all, patient, settings_for, store, updated


def age(connection: psycopg.Connection, status: str, days: float) -> int:
    """An event of that status, received so many days ago."""
    number = len(connection.execute("SELECT 1 FROM nexhealth_webhook_events").fetchall())
    (event,) = store(connection, updated(patient(number + 1, 1)))
    connection.execute(
        "UPDATE nexhealth_webhook_events SET status = %s, received_at = clock_timestamp() - %s * interval '1 day'"
        " WHERE id = %s",
        (status, days, event),
    )
    return event


def test_payloads_go_and_their_audit_rows_stay(practice: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patient's data must not outlive its purpose in a log; that something came may be asked for years."""
    monkeypatch.setattr(retention, "_BATCH", 2)
    gone = [age(practice, status, days) for status in ("applied", "superseded") for days in (31, 40)]
    gone.append(age(practice, "parked", 301))
    kept = [age(practice, "applied", 29), age(practice, "parked", 299), age(practice, "pending", 400)]
    assert expunge(practice, 30) == len(gone)
    found = dict(
        practice.execute(
            "SELECT id, payload IS NULL AND expunged_at IS NOT NULL FROM nexhealth_webhook_events"
        ).fetchall()
    )
    assert found == dict.fromkeys(gone, True) | dict.fromkeys(kept, False)
    assert expunge(practice, 30) == 0


def test_a_run_that_applies_events_removes_old_payloads_a_bounded_number(
    practice: psycopg.Connection, practice_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Dagster's daemon there is no watchdog to do so, and fresh events must not wait for years of them."""
    monkeypatch.setattr(retention, "_BATCH", 2)
    monkeypatch.setattr(applying, "_MOST_EXPUNGED", 2)
    for days in (31, 32, 33):
        age(practice, "applied", days)
    left = "SELECT count(payload) FROM nexhealth_webhook_events"
    for expected in (1, 0):
        apply_all(settings_for(practice_url))
        assert practice.execute(left).fetchall() == [(expected,)]


def test_old_payloads_are_found_without_passing_over_rows_that_have_lost_theirs(practice: psycopg.Connection) -> None:
    """Audit rows stay for years, and every run looks."""
    practice.execute("SET enable_seqscan = off")
    plan = practice.execute(
        "EXPLAIN " + retention._OLD, {"days": 30, "parked": 300, "received": None, "id": None, "batch": 9}
    ).fetchall()
    assert "nexhealth_webhook_events_payloads" in "\n".join(line for (line,) in plan)
