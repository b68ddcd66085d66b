"""Fixtures of the receiver's tests, of those of registration, and of those whose events have the API asked."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial

import psycopg
import pytest

from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.webhooks.receiving import receiver
from nexhealth_pipeline.webhooks.receiving.sources import Buckets
from nexhealth_pipeline.webhooks.registering import registration
from tests.sync.kit import open_session

from .account import TOPICS, Account, Opened
from .asking import Told, having_read, sandbox, telling
from .kit import empty, know_practice
from .vendor import HARBOR, KEY, SEALING_KEY, WILLOW, Vendor, vendor


@pytest.fixture
def no_events(shared_url: str) -> str:
    """The module's database, without events and endpoints."""
    with psycopg.connect(shared_url, autocommit=True) as connection:
        connection.execute("TRUNCATE nexhealth_webhook_events, nexhealth_webhooks, nexhealth_webhook_attempts")
    return shared_url


@pytest.fixture
def db(no_events: str) -> Iterator[psycopg.Connection]:
    """The module's database, which knows no institution either."""
    with psycopg.connect(no_events, autocommit=True) as connection:
        connection.execute("TRUNCATE nexhealth_institutions")
        yield connection


@pytest.fixture
def no_refill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has used up what he may send at once gets no more, however long a test takes."""
    monkeypatch.setattr(receiver, "Buckets", partial(Buckets, clock=lambda: 0.0))


@pytest.fixture(scope="module")
def shared_vendor() -> Iterator[Vendor]:
    """One sandbox for a module's tests."""
    with vendor() as made:
        yield made


@pytest.fixture
def nexhealth_account(shared_vendor: Vendor) -> Vendor:
    """A vendor to register with, where nothing is registered yet."""
    shared_vendor.forget()
    return shared_vendor


@pytest.fixture
def opened(nexhealth_account: Vendor, no_events: str, db: psycopg.Connection) -> Opened:
    """Opens a session with more settings by name; it never really waits."""

    def make(**more: str) -> AbstractContextManager[SyncSession]:
        given = {
            "NEXHEALTH_API_URL": nexhealth_account.url,
            "NEXHEALTH_API_KEY": KEY,
            "DATABASE_URL": no_events,
            "NEXHEALTH_WEBHOOK_KEY": SEALING_KEY,
        }
        settings = load_settings(given | more, environ={}, env_file=None)
        return open_session(settings, retry=RetryPolicy(sleep=lambda seconds: None))

    return make


@pytest.fixture
def practice(shared_url: str) -> Iterator[psycopg.Connection]:
    """The module's database, empty but for one institution with one location."""
    with psycopg.connect(shared_url, autocommit=True) as connection:
        empty(connection)
        know_practice(connection)
        yield connection


@pytest.fixture
def practice_url(shared_url: str, practice: psycopg.Connection) -> str:
    """Its address."""
    return shared_url


@pytest.fixture
def account(
    nexhealth_account: Vendor, opened: Opened, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> Account:
    """The account of two known institutions, with a few of the events; nothing is registered yet."""
    monkeypatch.setattr(registration, "declared_topics", lambda: TOPICS)
    account = Account(nexhealth_account, opened, db)
    account.know(WILLOW, HARBOR)
    return account


@pytest.fixture(scope="module")
def box() -> Iterator[SandboxServer]:
    """One sandbox for a module's tests, to be asked what events only hint at."""
    with sandbox() as box:
        yield box


@pytest.fixture(scope="module")
def settings(box: SandboxServer, server_url: str, template: str) -> Iterator[Settings]:
    """Those of a warehouse of the module's own that has read it."""
    yield from having_read(box, server_url, template)


@pytest.fixture
def told(db: psycopg.Connection, settings: Settings) -> Told:
    """Applies events in the warehouse of `settings`; the module's `db` is a connection to it."""
    return telling(db, settings)
