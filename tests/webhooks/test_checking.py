"""The watchdog's look at endpoints: what it finds, what it mends, and from when on events may be missing."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta

import psycopg
import pytest

from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.webhooks.endpoints import OVERLAP, filled, known_endpoints, live_secrets
from nexhealth_pipeline.webhooks.registering import registration
from nexhealth_pipeline.webhooks.registering.checking import CheckedEndpoint, EndpointVerdict, check_endpoints
from nexhealth_pipeline.webhooks.registering.registration import set_up
from nexhealth_pipeline.webhooks.registering.subscribing import declared_topics
from nexhealth_pipeline.webhooks.sealing import Sealer
from tests.client.stub import refusal

from .vendor import SEALING_KEY, Vendor

Opened = Callable[..., AbstractContextManager[SyncSession]]
URL = "https://hooks.example.com/api/nexhealth-webhook"
SEALER = Sealer([SEALING_KEY])
DAY = timedelta(days=1)


class Watch:
    """A registered pipeline and its watchdog."""

    def __init__(self, vendor: Vendor, opened: Opened, db: psycopg.Connection) -> None:
        self.vendor, self.opened, self.db = vendor, opened, db
        self.registry = vendor.box.webhooks.registry
        self.set_up()

    def set_up(self, *, rotate: bool = False) -> None:
        with self.opened() as session:
            set_up(session, URL, rotate=rotate)
        self.vendor.stub.seen.clear()

    def look(self, **settings: str) -> list[CheckedEndpoint]:
        with self.opened(**settings) as session:
            return check_endpoints(session, SEALER)

    def verdicts(self) -> list[tuple[int, EndpointVerdict]]:
        return [(one.endpoint_id, one.verdict) for one in self.look()]

    def age(self, **columns: timedelta) -> None:
        for name, span in columns.items():
            self.db.execute(f"UPDATE nexhealth_webhooks SET {name} = {name} - %s", (span,))


@pytest.fixture
def watch(nexhealth_account: Vendor, opened: Opened, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> Watch:
    topics = tuple(one for one in declared_topics() if one.resource_type == "Patient")
    monkeypatch.setattr(registration, "declared_topics", lambda: topics)
    return Watch(nexhealth_account, opened, db)


def test_an_active_endpoint_is_noted_with_one_request(watch: Watch) -> None:
    """It runs every quarter of an hour."""
    watch.age(seen_active_at=DAY, checked_at=DAY)
    [state] = watch.look()
    assert (state.verdict, state.hole_since, state.fine) == (EndpointVerdict.OK, None, True)
    assert watch.vendor.asked == ["GET /webhook_endpoints"]
    [row] = known_endpoints(watch.db)
    assert row.seen_active_at is not None
    assert min(row.seen_active_at, row.checked_at) > row.registered_at


def test_where_nothing_is_registered_nothing_is_asked(watch: Watch) -> None:
    watch.db.execute("TRUNCATE nexhealth_webhooks")
    assert watch.look() == []
    assert watch.vendor.asked == []


def test_an_inactive_endpoint_is_activated_and_its_hole_reported_until_it_is_filled(watch: Watch) -> None:
    """NexHealth switches it off after 48 hours of errors, and what it did not post is lost (API.md F.5)."""
    watch.age(registered_at=30 * DAY, seen_active_at=3 * DAY)
    [before] = known_endpoints(watch.db)
    assert before.seen_active_at is not None
    watch.registry.change_endpoint(16001, active=False)
    [state] = watch.look()
    assert (state.verdict, state.fine) == (EndpointVerdict.REACTIVATED, True)
    assert state.hole_since == before.seen_active_at - OVERLAP
    assert watch.vendor.endpoints()[16001].active
    [later] = watch.look()
    assert (later.verdict, later.hole_since) == (EndpointVerdict.OK, state.hole_since)
    assert filled(watch.db, known_endpoints(watch.db)[0])
    assert watch.look()[0].hole_since is None


def test_a_hole_that_grows_while_it_is_filled_stays_open(watch: Watch) -> None:
    watch.registry.change_endpoint(16001, active=False)
    watch.look()
    [being_filled] = known_endpoints(watch.db)
    watch.registry.change_endpoint(16001, active=False)
    watch.look()
    assert not filled(watch.db, being_filled)
    watch.look()
    assert filled(watch.db, known_endpoints(watch.db)[0])


def test_one_that_cannot_be_activated_says_why(watch: Watch) -> None:
    watch.registry.change_endpoint(16001, active=False)
    watch.vendor.meddle = lambda seen: refusal(403) if seen.method == "PATCH" else None
    [state] = watch.look()
    assert (state.verdict, state.fine) == (EndpointVerdict.INACTIVE, False)
    assert "PATCH /webhook_endpoints/16001: no access" in state.reason
    assert not known_endpoints(watch.db)[0].active


def test_one_that_somebody_deleted_is_missing_until_it_is_set_up(watch: Watch) -> None:
    watch.registry.remove_endpoint(16001)
    [state] = watch.look()
    assert (state.verdict, state.fine) == (EndpointVerdict.MISSING, False)
    assert "nexhealth webhooks setup" in state.reason
    assert state.hole_since is not None
    assert watch.look() == [state]
    watch.set_up()
    assert watch.verdicts() == [(16002, EndpointVerdict.OK)]
    assert known_endpoints(watch.db)[0].hole_since == state.hole_since


def test_a_retired_one_is_deleted_when_its_time_is_over(watch: Watch) -> None:
    watch.set_up(rotate=True)
    assert watch.verdicts() == [(16001, EndpointVerdict.RETIRING), (16002, EndpointVerdict.OK)]
    watch.registry.change_endpoint(16001, active=False)  # nobody minds
    watch.age(retire_at=OVERLAP)
    assert watch.verdicts() == [(16001, EndpointVerdict.REMOVED), (16002, EndpointVerdict.OK)]
    assert list(watch.vendor.endpoints()) == [16002]
    assert watch.verdicts() == [(16002, EndpointVerdict.OK)]


def test_a_retired_one_that_still_has_subscriptions_stays(watch: Watch) -> None:
    """Its set-up was killed: deleting it would end those events."""
    watch.set_up(rotate=True)
    watch.db.execute(
        "UPDATE nexhealth_webhooks SET subscriptions = (SELECT subscriptions FROM nexhealth_webhooks"
        " WHERE endpoint_id = 16002) WHERE endpoint_id = 16001"
    )
    assert watch.verdicts() == [(16001, EndpointVerdict.RETIRING), (16002, EndpointVerdict.OK)]
    watch.age(retire_at=OVERLAP)
    assert watch.verdicts() == [(16001, EndpointVerdict.OVERDUE), (16002, EndpointVerdict.OK)]
    assert set(watch.vendor.endpoints()) == {16001, 16002}


def test_a_secret_that_changed_at_the_api_is_learnt(watch: Watch) -> None:
    watch.registry.change_endpoint(16001, secret_key="changed-there-to-this")
    watch.look()
    assert next(one.secret for one in live_secrets(watch.db, SEALER)) == "changed-there-to-this"
    assert len(live_secrets(watch.db, SEALER)) == 2


def test_an_api_that_cannot_be_asked_changes_nothing(watch: Watch) -> None:
    """A failed look is no outage of the endpoint."""
    [before] = known_endpoints(watch.db)
    watch.vendor.meddle = lambda seen: refusal(500) if seen.path == "/webhook_endpoints" else None
    [state] = watch.look()
    assert (state.verdict, state.fine) == (EndpointVerdict.UNKNOWN, False)
    assert "/webhook_endpoints" in state.reason
    assert known_endpoints(watch.db) == [before]


def test_an_endpoint_of_a_key_that_is_not_set_is_named(watch: Watch) -> None:
    watch.db.execute("UPDATE nexhealth_webhooks SET key_hash = 'another'")
    [state] = watch.look()
    assert (state.verdict, watch.vendor.asked) == (EndpointVerdict.UNKNOWN, [])
    assert "API key" in state.reason
