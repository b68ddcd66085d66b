"""Institutions and locations put straight into a warehouse, as many as a test wants."""

from collections.abc import Iterable, Sequence

import psycopg

from nexhealth_pipeline.catalog.collections import COLLECTIONS


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
    """Note that all passes of these windows of appointments have been complete."""
    db.execute(
        "INSERT INTO nexhealth_sync_state (collection, institution_id, location_id, window_key, pass, watermark,"
        " pass_started_at, mode, filter_hash, cursor, page, records, run_id)"
        " SELECT 'appointments', %s, l, w, p, now(), now(), 'full', '', '', 0, 0, ''"
        " FROM unnest(%s::bigint[]) l, unnest(%s::text[]) w, unnest(%s::text[]) p",
        (institution, list(locations), list(windows), [one.name for one in COLLECTIONS["appointments"].passes]),
    )
