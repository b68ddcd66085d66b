"""An account at the vendor of the tests: set-ups run against it, and what became of them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.client.client import NexHealthClient
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.webhooks.endpoints import Endpoint, known_endpoints, live_secrets
from nexhealth_pipeline.webhooks.registering.checking import CheckedEndpoint, check_endpoints
from nexhealth_pipeline.webhooks.registering.registration import Removal, SetUp, remove, set_up
from nexhealth_pipeline.webhooks.registering.subscribing import declared_topics
from nexhealth_pipeline.webhooks.sealing import Sealer
from tests.client.stub import Seen

from .vendor import HARBOR, SEALING_KEY, WILLOW, Vendor

Opened = Callable[..., AbstractContextManager[SyncSession]]
URL = "https://hooks.example.com/api/nexhealth-webhook"
TOPICS = tuple(one for one in declared_topics() if one.resource_type in {"Patient", "Charge"})
"""Those that the tests subscribe to: the code is the same for all, only faster."""
EVENTS = sorted(one.event for one in TOPICS)
EVERYTHING = sorted((number, event) for number, _ in (WILLOW, HARBOR) for event in EVENTS)
SEALER = Sealer([SEALING_KEY])


class Account:
    """Runs set-ups against the vendor and looks what became of it."""

    def __init__(self, vendor: Vendor, opened: Opened, db: psycopg.Connection) -> None:
        self.vendor, self.opened, self.db = vendor, opened, db

    def set_up(self, url: str = URL, settings: dict[str, str] | None = None, **options: Any) -> SetUp:
        with self.opened(**(settings or {})) as session:
            return set_up(session, url, **options)

    def remove(self, url: str | None, *, forget: bool = False) -> Removal:
        with self.opened() as session:
            return remove(session, url, forget=forget)

    def lose_key(self) -> None:
        """Let every endpoint, also one that is being made, be one of a key that is not set any more."""
        self.db.execute(
            "UPDATE nexhealth_webhooks SET key_hash = 'of a key that is not set';"
            " UPDATE nexhealth_webhook_attempts SET key_hash = 'of a key that is not set'"
        )

    @property
    def rows(self) -> list[Endpoint]:
        return known_endpoints(self.db)

    def secrets(self) -> list[tuple[int | None, str]]:
        return [(one.endpoint_id, one.secret) for one in live_secrets(self.db, SEALER)]

    def true_secrets(self) -> list[tuple[int | None, str]]:
        return [(number, one.secret_key) for number, one in sorted(self.vendor.endpoints().items(), reverse=True)]

    def know(self, *institutions: tuple[int, str]) -> None:
        """Put institutions into the warehouse."""
        for number, subdomain in institutions:
            self.db.execute(
                "INSERT INTO nexhealth_institutions (institution_id, id, name, subdomain, synced_at, source_read_at,"
                " row_hash) VALUES (%(id)s, %(id)s, 'A', %(name)s, now(), now(), '')",
                {"id": number, "name": subdomain},
            )

    def is_right(self, topics: Sequence[tuple[int, str]] = EVERYTHING) -> bool:
        """One endpoint with exactly these subscriptions, known with its true secret."""
        [row] = self.rows
        subscribed = sorted((one.subdomain, one.event) for one in row.subscribed)
        names = dict((WILLOW, HARBOR))
        return (
            self.vendor.topics(row.endpoint_id) == list(topics)
            and subscribed == sorted((names[number], event) for number, event in topics)
            and self.secrets() == self.true_secrets()
        )


def looked_at(account: Account) -> list[CheckedEndpoint]:
    """What the watchdog finds."""
    with account.opened() as session:
        return check_endpoints(session, SEALER)


def subscribing(seen: Seen) -> bool:
    return seen.method == "POST" and seen.path.endswith("/webhook_subscriptions")


def creating(seen: Seen) -> bool:
    return seen.method == "POST" and seen.path == "/webhook_endpoints"


class Killed(BaseException):
    """As if the process had gone."""


def killed_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the set-up right after its change number `count` was answered."""
    call, left = NexHealthClient.call, [count]

    def dying(self: NexHealthClient, *args: Any) -> list[bytes]:
        answer = call(self, *args)
        left[0] -= 1
        if left[0] <= 0:
            raise Killed
        return answer

    monkeypatch.setattr(NexHealthClient, "call", dying)
