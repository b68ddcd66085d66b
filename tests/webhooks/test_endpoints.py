"""What is remembered of endpoints: which secrets live, and when a hole opens, grows and closes."""

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import psycopg
import pytest

from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.webhooks.endpoints import (
    OVERLAP,
    Endpoint,
    LiveSecret,
    Subscription,
    filled,
    known_endpoints,
    live_secrets,
    note_secret,
    record_active,
    record_inactive,
    record_removed,
    record_subscriptions,
    reseal,
    retire,
    store,
)
from nexhealth_pipeline.webhooks.sealing import Sealer

SEALER = Sealer(["a-key-of-the-tests-" + "x" * 32])
URL = "https://hooks.example.com/api/nexhealth-webhook"
DAY = timedelta(days=1)


def stored(db: psycopg.Connection, number: int = 1, *, secret: str = "first", key: str = "k") -> Endpoint:
    store(db, key, number, target_url=URL, active=True, secret=SEALER.seal(secret))
    return found(db, number)


def found(db: psycopg.Connection, number: int = 1) -> Endpoint:
    return next(one for one in known_endpoints(db) if one.endpoint_id == number)


def age(db: psycopg.Connection, **columns: timedelta) -> None:
    """Put times of all endpoints back."""
    for name, span in columns.items():
        db.execute(f"UPDATE nexhealth_webhooks SET {name} = {name} - %s", (span,))


def secrets(db: psycopg.Connection) -> list[tuple[int | None, str]]:
    return [(one.endpoint_id, one.secret) for one in live_secrets(db, SEALER)]


def test_an_old_secret_lives_for_49_hours_beside_the_new_one(db: psycopg.Connection) -> None:
    """NexHealth repeats for 48 hours what it has signed before."""
    note_secret(db, stored(db), SEALER.seal("second"), keep_old=True)
    assert secrets(db) == [(1, "second"), (1, "first")]
    age(db, old_secret_until=OVERLAP)
    assert secrets(db) == [(1, "second")]


def test_a_retiring_endpoints_secret_lives_until_it_is_removed(db: psycopg.Connection) -> None:
    old, new = stored(db, 1), stored(db, 2, secret="second")
    retire(db, old, heir=new)
    assert secrets(db) == [(2, "second"), (1, "first")]
    assert not found(db).due
    age(db, retire_at=OVERLAP)
    assert found(db).due
    record_removed(db, old)
    assert secrets(db) == [(2, "second")]
    assert [one.endpoint_id for one in known_endpoints(db)] == [2]


def test_one_secret_that_no_key_opens_stops_only_itself(
    db: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The receiver goes on with the others and says it once, though it asks every few seconds."""
    stored(db)
    store(db, "k", 2, target_url=URL, active=True, secret=Sealer(["lost" * 8]).seal("lost"))
    sealer = Sealer(["a-key-of-the-tests-" + "x" * 32])
    with caplog.at_level(logging.ERROR):
        assert live_secrets(db, sealer) == live_secrets(db, sealer) == [LiveSecret(1, "first")]
    assert [record.__dict__["nexhealth"] for record in caplog.records] == [{"endpoint_id": 2}]
    with pytest.raises(InvalidSetting, match="NEXHEALTH_WEBHOOK_KEY does not open the secret of endpoint 1"):
        live_secrets(db, Sealer(["other" * 8]))


def test_without_an_endpoint_there_are_no_secrets(db: psycopg.Connection) -> None:
    assert live_secrets(db, SEALER) == []


def test_no_secret_shows_in_a_repr(db: psycopg.Connection) -> None:
    endpoint = stored(db)
    assert "first" not in repr(live_secrets(db, SEALER))
    assert repr(endpoint.secret) not in repr(endpoint)


def test_a_change_of_the_sealing_key_is_finished_by_sealing_anew(db: psycopg.Connection) -> None:
    note_secret(db, stored(db), SEALER.seal("second"), keep_old=True)
    changed = Sealer(["the-next-key-of-the-tests-0123456789", "a-key-of-the-tests-" + "x" * 32])
    assert (reseal(db, changed), reseal(db, changed)) == (1, 0)
    alone = Sealer(["the-next-key-of-the-tests-0123456789"])
    assert [one.secret for one in live_secrets(db, alone)] == ["second", "first"]
    assert reseal(db, SEALER) == 0  # what it cannot open stays


def test_subscriptions_are_remembered_as_they_are(db: psycopg.Connection) -> None:
    told = Subscription(5, "acme", "Patient", "patient_updated", active=True)
    record_subscriptions(db, stored(db), [told])
    (noted,) = found(db).subscribed
    assert noted.since is not None
    assert msgspec.structs.replace(noted, since=None) == told
    row = db.execute("SELECT (subscriptions -> 0) - 'since' FROM nexhealth_webhooks").fetchone()
    assert row == (
        {"id": 5, "subdomain": "acme", "resource_type": "Patient", "event": "patient_updated", "active": True},
    )


def test_a_subscription_that_is_noted_again_keeps_its_time(db: psycopg.Connection) -> None:
    """Each set-up notes all of them anew; of those that an earlier release noted it is not known since when."""
    old, first, joined = (
        Subscription(number, f"s{number}", "Patient", "patient_updated", active=True) for number in (1, 2, 3)
    )
    endpoint = stored(db)
    record_subscriptions(db, endpoint, [old, first])
    db.execute("UPDATE nexhealth_webhooks SET subscriptions = subscriptions #- '{0,since}'")
    record_subscriptions(db, endpoint, [old, first])
    _, before = found(db).subscribed
    record_subscriptions(db, endpoint, [old, first, joined])
    times = [one.since for one in found(db).subscribed]
    assert times[:2] == [None, before.since]
    assert before.since is not None
    assert times[2] is not None
    assert times[2] > before.since


def test_a_hole_begins_before_the_endpoint_was_last_seen_active(db: psycopg.Connection) -> None:
    """What failed in the 48 hours before it was switched off was to be repeated, and may never be."""
    endpoint = stored(db)
    age(db, registered_at=30 * DAY, seen_active_at=DAY)
    record_inactive(db, endpoint)
    row = found(db)
    assert row.seen_active_at is not None
    assert row.hole_since == row.seen_active_at - OVERLAP
    assert not row.active


def test_a_hole_is_no_older_than_the_endpoint(db: psycopg.Connection) -> None:
    assert record_inactive(db, stored(db)) == found(db).registered_at


def test_a_hole_that_was_filled_is_closed(db: psycopg.Connection) -> None:
    endpoint = stored(db)
    record_inactive(db, endpoint)
    record_active(db, endpoint)
    assert filled(db, found(db))
    assert found(db).hole_since is None
    assert not filled(db, found(db))


def test_an_outage_while_a_hole_is_filled_keeps_it_open(db: psycopg.Connection) -> None:
    """The read began before the second outage, so it cannot have seen what that one lost."""
    endpoint = stored(db)
    record_inactive(db, endpoint)
    record_active(db, endpoint)
    being_filled = found(db)
    record_inactive(db, endpoint)
    assert not filled(db, being_filled)
    assert found(db).hole_since is not None
    again = found(db)
    record_inactive(db, endpoint)  # still the same outage
    assert found(db).hole_since == again.hole_since


def test_the_hole_of_an_endpoint_that_is_gone_passes_to_the_keys_others(db: psycopg.Connection) -> None:
    """Or nobody would fill it."""
    for number, key in ((1, "k"), (2, "k"), (3, "other")):
        stored(db, number, key=key)
    hole = record_inactive(db, found(db, 1))
    record_removed(db, found(db, 1))
    assert [(one.endpoint_id, one.hole_since) for one in known_endpoints(db)] == [(2, hole), (3, None)]
    record_removed(db, found(db, 3))  # without a hole
    assert [one.hole_since for one in known_endpoints(db)] == [hole]


def test_a_hole_passes_to_endpoints_with_subscriptions_and_to_the_one_that_is_being_made(
    db: psycopg.Connection,
) -> None:
    """It was never closed at one that a killed set-up had made, and that nobody went on with."""
    old, _begun, other, made = (stored(db, number) for number in (1, 2, 3, 4))
    record_subscriptions(db, other, [Subscription(5, "acme", "Patient", "patient_updated", active=True)])
    hole = record_inactive(db, old)
    retire(db, old, heir=made)
    assert {one.endpoint_id: one.hole_since for one in known_endpoints(db)} == {1: None, 2: None, 3: hole, 4: hole}
    db.execute("UPDATE nexhealth_webhooks SET hole_since = NULL WHERE endpoint_id <> 4")
    record_removed(db, made)
    assert {one.endpoint_id: one.hole_since for one in known_endpoints(db)} == {1: None, 2: None, 3: hole}


def test_a_hole_that_comes_while_another_is_filled_keeps_that_open(db: psycopg.Connection) -> None:
    """The read began before, perhaps without the institutions that came with it; it may be the younger of the two."""
    gone, heir = stored(db, 1), stored(db, 2)
    age(db, registered_at=DAY, seen_active_at=DAY)
    record_inactive(db, heir)
    record_active(db, heir)
    being_filled = found(db, 2)
    db.execute("UPDATE nexhealth_webhooks SET registered_at = now() WHERE endpoint_id = 1")
    record_inactive(db, gone)
    record_removed(db, gone)
    assert not filled(db, being_filled)
    assert filled(db, found(db, 2))


def test_while_a_hole_is_open_it_is_known_since_when_the_endpoint_is_active_again(db: psycopg.Connection) -> None:
    """What was read since then need not be read again; what was read before says nothing of the hole."""
    endpoint = stored(db)
    record_inactive(db, endpoint)
    record_active(db, endpoint)
    again = found(db).seen_active_at
    record_active(db, endpoint)
    assert found(db).seen_active_at == again
    record_inactive(db, endpoint)
    record_active(db, endpoint)
    assert again is not None
    later = found(db).seen_active_at
    assert later is not None
    assert later > again
    assert filled(db, found(db))
    record_active(db, endpoint)
    last = found(db).seen_active_at
    assert last is not None
    assert last > later


def test_a_hole_that_passes_to_an_endpoint_that_was_active_all_the_time_ends_when_it_does(
    db: psycopg.Connection,
) -> None:
    """Else what was read before the other one went off would pass for what it has lost."""
    stored(db, 1), stored(db, 2), stored(db, 3)
    age(db, seen_active_at=DAY)
    hole = record_inactive(db, found(db, 1))
    record_inactive(db, found(db, 3))
    inactive = found(db, 3).seen_active_at
    record_removed(db, found(db, 1))
    heir = found(db, 2)
    assert heir.seen_active_at is not None
    assert heir.seen_active_at > hole
    assert found(db, 3).seen_active_at == inactive


def test_an_endpoint_that_comes_back_is_as_new(db: psycopg.Connection) -> None:
    record_removed(db, stored(db))
    stored(db, secret="second")
    assert secrets(db) == [(1, "second")]


def test_endpoints_of_other_keys_are_left_out_where_keys_are_named(db: psycopg.Connection) -> None:
    stored(db, 1, key="a"), stored(db, 2, key="b")
    assert [one.endpoint_id for one in known_endpoints(db, ["b"])] == [2]
    assert known_endpoints(db, []) == []
    assert replace(found(db), due=True).due
    assert found(db).checked_at <= datetime.now(UTC) + timedelta(seconds=5)
