"""A warehouse that knows a practice, events stored in it as the receiver stores them, and a run that applies them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.client.page import Page
from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.sync.loader import Loader
from nexhealth_pipeline.sync.practice import load_practices
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.warehouse.runs import lock_key
from nexhealth_pipeline.warehouse.state import PassKey, PassState, save_state
from nexhealth_pipeline.webhooks.applying.apply import AppliedSlice, Batch, apply_pending
from nexhealth_pipeline.webhooks.events import EventMalformed, dedup_hash, parse
from tests.sync.kit import open_session

INSTITUTION, SUBDOMAIN, LOCATION = 7, "smile", 70
T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def moment(minutes: float) -> str:
    """So many minutes after T0, as the API writes times."""
    return (T0 + minutes * MINUTE).isoformat()


def patient(number: int = 1, at: float = 0, **fields: Any) -> dict[str, Any]:
    """Version `at` (minutes) of a patient, as the list gives it; a field given as `...` is left out."""
    record = {
        "id": number,
        "first_name": "Ann",
        "last_name": f"v{at}",
        "email": None,
        "inactive": False,
        "bio": {"city": "Malmö", "date_of_birth": "1980-02-03"},
        "updated_at": moment(at),
    }
    return {name: value for name, value in (record | fields).items() if value is not ...}


def body(name: str, data: object, *, at: float = 0, subdomain: str = SUBDOMAIN, **more: object) -> bytes:
    """A delivered event's body."""
    declared = next(
        one.events for one in COLLECTIONS.values() if one.events and name.partition(".")[0] in one.events.names
    )
    wire = {
        "resource_type": declared.resource_type,
        "event_name": name,
        "event_time": moment(at),
        "subdomain": subdomain,
        "data": data,
        **more,
    }
    return json.dumps(wire).encode()


def updated(record: dict[str, Any], **more: Any) -> bytes:
    """An event that a patient has changed."""
    return body("patient_updated", {"patients": [record]}, **more)


def store(connection: psycopg.Connection, *bodies: bytes) -> list[int]:
    """Store bodies as pending events (or duplicates); ids in order."""
    return [_store(connection, one) for one in bodies]


def _store(connection: psycopg.Connection, one: bytes) -> int:
    try:
        event = parse(one)
    except EventMalformed:
        event = None
    row = connection.execute(
        "INSERT INTO nexhealth_webhook_events (event_name, resource_type, subdomain, resource_ids, event_time, payload,"
        " dedup_hash, verdict, status) VALUES (%s, %s, %s, %s, %s, %s, %s, 'valid', 'pending')"
        " ON CONFLICT (dedup_hash) WHERE status NOT IN ('duplicate', 'rejected') DO NOTHING RETURNING id",
        (
            event and event.event_name,
            event and event.resource_type,
            event and event.subdomain,
            list(event.resource_ids) if event else [],
            event and event.event_time,
            one.decode("utf-8", "replace"),
            dedup_hash(event, one),
        ),
    ).fetchone()
    return row[0] if row else 0


_EMPTY = """
DO $block$
DECLARE name text;
BEGIN
    FOR name IN SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
        AND c.relname LIKE 'nexhealth\\_%' AND c.relname NOT IN ('nexhealth_alembic_version', 'nexhealth_schema_changes')
    LOOP
        EXECUTE format('DELETE FROM %I', name);
    END LOOP;
END
$block$
"""


def empty(connection: psycopg.Connection) -> None:
    """Delete all rows. Not TRUNCATE: that makes new files for each table."""
    connection.execute(_EMPTY)


def know_practice(connection: psycopg.Connection) -> None:
    """One institution with one location, as discovery leaves them."""
    for name, record in (
        ("institutions", {"id": INSTITUTION, "subdomain": SUBDOMAIN, "name": "Smile"}),
        ("locations", {"id": LOCATION, "institution_id": INSTITUTION, "name": "Main", "inactive": False}),
    ):
        load_page(connection, name, [record], institution=False)


def load_page(
    connection: psycopg.Connection,
    name: str,
    records: Iterable[Mapping[str, Any]],
    *,
    read_at: float = 0,
    institution: bool = True,
) -> None:
    """Load an answer of the API, read so many minutes after T0."""
    practice = next((one for one in load_practices(connection).institutions), None) if institution else None
    loader = Loader(connection, Slice(COLLECTIONS[name], practice), run_id="page", dry_run=False)
    with connection.transaction():
        loader.open()
        loader.encode_and_load([(page([dict(one) for one in records], T0 + read_at * MINUTE), {})])


def page(records: list[dict[str, Any]], read_at: datetime) -> Page:
    """An answer of the API."""
    raw = [json.dumps(one).encode() for one in records]
    return Page(1, raw, "", False, read_at, 1, 0, 0.0, sum(map(len, raw)), None, None)


def mark_complete(connection: psycopg.Connection, name: str, window: str = "", location: int = LOCATION) -> None:
    """Note that a slice has been read completely at T0."""
    for one in COLLECTIONS[name].regular_passes:
        state = PassState(PassKey(name, INSTITUTION, location, window, one.name), run_id="page")
        save_state(connection, replace(state, watermark=T0, pass_started_at=T0, complete_at=T0, mode="full"))


def complete_elsewhere(connection: psycopg.Connection, name: str, slices: int) -> None:
    """Note so many slices of another institution, one a location, as read completely at T0."""
    connection.execute(
        "INSERT INTO nexhealth_sync_state (collection, institution_id, location_id, window_key, pass, watermark, mode,"
        " filter_hash, cursor, page, records, run_id)"
        " SELECT %s, %s, l, '', 'all', %s, 'full', '', '', 1, 1, 'page' FROM generate_series(1, %s) l",
        (name, INSTITUTION + 1, T0, slices),
    )


def settings_for(database_url: str, **more: str) -> Settings:
    """Settings whose API does not answer."""
    given = {"NEXHEALTH_API_URL": "http://127.0.0.1:9", "NEXHEALTH_API_KEY": "none", "DATABASE_URL": database_url}
    return load_settings(given | more, environ={}, env_file=None)


def apply_all(settings: Settings, *, limit: int | None = None) -> tuple[list[AppliedSlice], Batch]:
    """One run; the slices it reports, and the sum of its batches."""
    total = Batch()
    with open_session(settings, retry=RetryPolicy(sleep=lambda _: None)) as session:
        return list(apply_pending(session, limit=limit, on_batch=total.add)), total


def due_again(connection: psycopg.Connection) -> None:
    """Let the time until the next tries pass."""
    connection.execute("UPDATE nexhealth_webhook_events SET next_attempt_at = NULL WHERE status = 'pending'")


def free_locks(connection: psycopg.Connection) -> None:
    """Wait until the server has noticed that the sockets of killed runs are closed, which takes milliseconds."""
    runs = connection.execute("SELECT run_id FROM nexhealth_runs WHERE finished_at IS NULL").fetchall()
    for (run_id,) in runs:
        connection.execute("SELECT pg_advisory_lock(%s)", (lock_key("run", run_id),))
        connection.execute("SELECT pg_advisory_unlock(%s)", (lock_key("run", run_id),))
