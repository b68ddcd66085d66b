"""Institutions and locations put straight into a warehouse, as many as a test wants."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import psycopg

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.warehouse.state import PassKey, PassState, save_state


def add_locations(
    db: psycopg.Connection, institution: int, subdomain: str, ids: Iterable[int], *, inactive: bool = False
) -> None:
    db.execute(
        "INSERT INTO nexhealth_institutions (institution_id, id, subdomain, name, raw, synced_at, source_read_at,"
        " row_hash) VALUES (%s, %s, %s, %s, '{}', now(), now(), '') ON CONFLICT DO NOTHING",
        (institution, institution, subdomain, subdomain.title()),
    )
    db.execute(
        "INSERT INTO nexhealth_locations (institution_id, id, name, inactive, raw, synced_at, source_read_at, row_hash)"
        " SELECT %s, i, 'Office ' || i, %s, '{}', now(), now(), '' FROM unnest(%s::bigint[]) i",
        (institution, inactive, list(ids)),
    )


def complete_months(db: psycopg.Connection, institution: int, locations: Iterable[int], windows: Sequence[str]) -> None:
    """Note that all passes of these windows of appointments have been complete: copies of one state."""
    now = datetime.now(UTC)
    save_state(db, PassState(PassKey("appointments", institution, 0, "", ""), watermark=now, pass_started_at=now))
    db.execute(
        "INSERT INTO nexhealth_sync_state SELECT r.* FROM nexhealth_sync_state s,"
        " unnest(%s::bigint[]) l, unnest(%s::text[]) w, unnest(%s::text[]) p, LATERAL jsonb_populate_record("
        " s, jsonb_build_object('location_id', l, 'window_key', w, 'pass', p)) r WHERE s.location_id = 0",
        (list(locations), list(windows), [one.name for one in COLLECTIONS["appointments"].passes]),
    )
    db.execute("DELETE FROM nexhealth_sync_state WHERE location_id = 0")
