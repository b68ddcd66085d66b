"""Replays: which events are chosen, what they may change, and what a rehearsal leaves behind."""

from datetime import timedelta
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.webhooks.applying import replaying
from nexhealth_pipeline.webhooks.applying.batches import Batch
from nexhealth_pipeline.webhooks.applying.replaying import Rehearsal, Selection, rehearse, replay
from tests.sync.kit import open_session

from .kit import MINUTE, T0, apply_all, body, due_again, patient, settings_for, store, updated


@pytest.fixture
def stored(practice: psycopg.Connection) -> dict[str, int]:
    """Events that are said to have been applied, superseded and parked, one of them of another collection."""
    bodies = {
        "new": updated(patient(1, 9)),
        "old": updated(patient(1, 5)),
        "other": updated(patient(2, 5)),
        "unknown": updated(patient(3, 5), subdomain="unknown"),
        "charge": body("charge_created", {"charge": {"id": 4, "updated_at": T0.isoformat()}}),
    }
    ids = dict(zip(bodies, store(practice, *bodies.values()), strict=True))
    said = ("applied", "superseded", "applied", "parked", "applied")
    for number, (event, status) in enumerate(zip(ids.values(), said, strict=True)):
        practice.execute(
            "UPDATE nexhealth_webhook_events SET received_at = %s, status = %s WHERE id = %s",
            (T0 + number * MINUTE, status, event),
        )
    return ids


@pytest.fixture
def ids(stored: dict[str, int], practice: psycopg.Connection, practice_url: str) -> dict[str, int]:
    """The same, and they were."""
    practice.execute("UPDATE nexhealth_webhook_events SET status = 'pending'")
    apply_all(settings_for(practice_url, NEXHEALTH_WEBHOOK_ATTEMPTS="1"))
    assert [one[1] for one in rows(practice)] == ["applied", "superseded", "applied", "parked", "applied"]
    return stored


def rows(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    return connection.execute("SELECT id, status, replays FROM nexhealth_webhook_events ORDER BY id").fetchall()


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (Selection(since=T0 + 2 * MINUTE), {"other", "unknown", "charge"}),
        (Selection(until=T0 + 2 * MINUTE), {"new", "old"}),
        (Selection(resources=("charges",)), {"charge"}),
        (Selection(statuses=("parked",)), {"unknown"}),
        (Selection(statuses=("applied", "superseded"), resources=("patients",)), {"new", "old", "other"}),
        (Selection(since=T0, until=T0 + timedelta(days=7)), {"new", "old", "other", "unknown", "charge"}),
    ],
)
def test_events_are_chosen_by_everything_given(
    selection: Selection, chosen: set[str], stored: dict[str, int], practice: psycopg.Connection
) -> None:
    """Filters add up."""
    assert replay(practice, selection) == len(chosen)
    found = {number for number, status, replays in rows(practice) if (status, replays) == ("pending", 1)}
    assert found == {stored[name] for name in chosen}


def test_events_are_chosen_by_id_where_their_payload_is_left(
    stored: dict[str, int], practice: psycopg.Connection
) -> None:
    """What was removed for good cannot come back."""
    practice.execute("UPDATE nexhealth_webhook_events SET payload = NULL WHERE id = %s", (stored["new"],))
    assert replay(practice, Selection(ids=(stored["new"], stored["other"], 10**9))) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"statuses": ("pending",)},
        {"resources": ("locations",)},
        {"since": T0, "until": T0},
    ],
)
def test_a_choice_that_fits_nothing_is_refused(wrong: dict[str, Any]) -> None:
    """All events by mistake would be a long run."""
    with pytest.raises(InvalidSetting):
        Selection(**wrong)


def places(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    return connection.execute("SELECT ctid, xmin, xmax FROM nexhealth_patients ORDER BY id").fetchall()


def test_a_replay_of_everything_on_a_current_table_changes_nothing(
    ids: dict[str, int], practice: psycopg.Connection, practice_url: str
) -> None:
    """No row version, no history: it may be run at any time."""
    before, said = places(practice), "SELECT id, status, run_id, applied_at FROM nexhealth_webhook_events ORDER BY id"
    audit = practice.execute(said).fetchall()
    assert replay(practice, Selection(since=T0)) == len(ids)
    _, total = apply_all(settings_for(practice_url))
    assert (total.applied, total.rows) == (0, 0)
    assert places(practice) == before
    kept = [one for one in audit if one[1] == "applied"]
    assert kept
    assert [one for one in practice.execute(said).fetchall() if one in audit and one[1] == "applied"] == kept
    assert practice.execute("SELECT count(*) FROM nexhealth_history").fetchall() == [(0,)]


REPEATED = """
INSERT INTO nexhealth_webhook_events (payload, dedup_hash, verdict, status)
SELECT payload, dedup_hash, 'valid', 'pending' FROM nexhealth_webhook_events
ON CONFLICT (dedup_hash) WHERE status NOT IN ('duplicate', 'rejected') DO NOTHING
"""
"""All deliveries come once more."""


def test_a_long_rehearsal_does_not_hold_up_the_receiver(
    ids: dict[str, int], practice: psycopg.Connection, practice_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeated delivery waits for who changes its event, and with it all that is stored together with it."""
    monkeypatch.setattr(replaying, "BATCH", 3)
    store(practice, updated(patient(2, 3)))
    apply_all(settings_for(practice_url))
    practice.execute("DELETE FROM nexhealth_patients")
    rehearsed, seen = replaying._rehearsed, []

    def and_repeat(*given: Any) -> list[Batch]:
        done = rehearsed(*given)
        practice.execute("SET statement_timeout = '1s'")
        seen.append(practice.execute(REPEATED).rowcount)
        return done

    monkeypatch.setattr(replaying, "_rehearsed", and_repeat)
    with open_session(settings_for(practice_url)) as session:
        found = rehearse(session, Selection(since=T0))
    assert seen == [0, 0]
    assert found == Rehearsal(events=6, hints=0, applied=2, failed=1, rows=2), "events of one record are seen together"


def test_a_replay_marks_few_events_at_a_time(
    stored: dict[str, int], practice: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the same reason."""
    monkeypatch.setattr(replaying, "_MARKED", 2)
    assert replay(practice, Selection(since=T0)) == len(stored)
    marks = "SELECT count(*) FROM nexhealth_webhook_events WHERE status = 'pending' GROUP BY xmin::text ORDER BY 1"
    assert practice.execute(marks).fetchall() == [(1,), (2,), (2,)]


def test_a_replay_mends_what_is_missing_and_says_so(
    ids: dict[str, int], practice: psycopg.Connection, practice_url: str
) -> None:
    """After a restore of an old backup, or a mistake by hand."""
    practice.execute(
        "UPDATE nexhealth_patients SET last_name = 'wrong', row_hash = '', updated_at = %s WHERE id = 1", (T0 - MINUTE,)
    )
    practice.execute("DELETE FROM nexhealth_patients WHERE id = 2")
    replay(practice, Selection(since=T0))
    _, total = apply_all(settings_for(practice_url))
    assert (total.applied, total.rows) == (2, 2)
    assert practice.execute("SELECT last_name FROM nexhealth_patients ORDER BY id").fetchall() == [("v9",), ("v5",)]
    history = practice.execute("SELECT cause, event_id FROM nexhealth_history ORDER BY version").fetchall()
    assert history[-1] == ("replay", str(ids["new"]))
    modes = practice.execute(
        "SELECT DISTINCT collection, mode FROM nexhealth_sync_logs WHERE mode = 'replay'"
    ).fetchall()
    assert set(modes) == {("patients", "replay"), ("charges", "replay")}


def test_a_parked_event_is_applied_once_its_reason_is_gone(
    ids: dict[str, int], practice: psycopg.Connection, practice_url: str
) -> None:
    """It begins anew: all its tries are before it."""
    practice.execute("UPDATE nexhealth_institutions SET subdomain = 'unknown'")
    replay(practice, Selection(statuses=("parked",)))
    assert practice.execute(
        "SELECT attempts, error FROM nexhealth_webhook_events WHERE id = %s", (ids["unknown"],)
    ).fetchall() == [(0, None)]
    due_again(practice)
    _, total = apply_all(settings_for(practice_url))
    assert total.applied == 1


def test_a_rehearsal_says_what_would_change_and_leaves_nothing(
    ids: dict[str, int], practice: psycopg.Connection, practice_url: str
) -> None:
    """Looked at before it is done: the events, too, are as they were."""
    store(practice, body("payment_type_updated", {"payment_type": {"id": 1}}))
    apply_all(settings_for(practice_url))
    practice.execute("DELETE FROM nexhealth_patients WHERE id = 2")
    before = places(practice), rows(practice), practice.execute("SELECT count(*) FROM nexhealth_sync_logs").fetchall()
    with open_session(settings_for(practice_url)) as session:
        found = rehearse(session, Selection(since=T0))
    assert found == Rehearsal(events=6, hints=1, applied=1, failed=1, rows=1)
    assert (
        places(practice),
        rows(practice),
        practice.execute("SELECT count(*) FROM nexhealth_sync_logs").fetchall(),
    ) == before
