"""Warehouses that have read a sandbox, and what is asked of it because of events."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.sync import months
from tests.conftest import _fresh
from tests.sync.kit import sync_all

from .kit import apply_all, body, store

READ = {"patients", "documents", "patient_addresses", "appointments", "payment_types", "insurance_coverages"}
Told = Callable[..., list[tuple[str, str | None]]]


@contextmanager
def sandbox(patients: int = 5) -> Iterator[SandboxServer]:
    """Everything is enabled everywhere."""
    with SandboxServer(patients=patients, appointments_per_patient=2, limits=False) as server:
        for location in server.state.ids("locations"):
            server.state.enable(location, "finance")
        yield server


def having_read(box: SandboxServer, server_url: str, template: str) -> Iterator[Settings]:
    """A warehouse that has read what the events are about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(months, "FIRST_MONTH", datetime.now(UTC).date().replace(day=1))
        patch.setattr(months, "MONTHS_AHEAD", 1)
        for url in _fresh(server_url, template):
            given = {"NEXHEALTH_API_URL": box.url, "NEXHEALTH_API_KEY": box.api_key, "DATABASE_URL": url}
            settings = load_settings(given, environ={}, env_file=None)
            assert {result.status for result in sync_all(settings, only=READ)} == {"succeeded"}
            yield settings


@contextmanager
def without_events(settings: Settings) -> Iterator[psycopg.Connection]:
    """It, without events."""
    assert settings.database_url
    with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as connection:
        connection.execute("DELETE FROM nexhealth_webhook_events; DELETE FROM nexhealth_sync_logs")
        yield connection


def telling(db: psycopg.Connection, settings: Settings) -> Told:
    """Stores events, applies them, and says what became of each."""

    def tell(*bodies: bytes, **more: object) -> list[tuple[str, str | None]]:
        store(db, *bodies)
        apply_all(settings.model_copy(update=more))
        return db.execute("SELECT status, error FROM nexhealth_webhook_events ORDER BY id").fetchall()

    return tell


def home(db: psycopg.Connection) -> tuple[int, str, int]:
    """An institution, its subdomain, and a location."""
    row = db.execute(
        "SELECT i.id, i.subdomain, min(l.id) FROM nexhealth_institutions i JOIN nexhealth_locations l"
        " ON l.institution_id = i.id WHERE NOT l.inactive GROUP BY 1, 2 ORDER BY 1 LIMIT 1"
    ).fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def snapshot(box: SandboxServer, number: int, subdomain: str) -> bytes:
    """The event that a patient has changed, as the API lists it."""
    record = {**box.state.row("patients", number).record()}
    return body("patient_created", {"patients": [json.loads(json.dumps(record))]}, subdomain=subdomain)


def asked(box: SandboxServer, path: str, since: int) -> list[Any]:
    return box.requests.matching(path, since=since)


def last(box: SandboxServer) -> int:
    return max((one.number for one in box.requests), default=0)
