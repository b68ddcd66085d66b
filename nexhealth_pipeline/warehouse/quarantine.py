"""`nexhealth_quarantine`: records, and fields of records, that could not be loaded."""

from collections.abc import Iterable

import psycopg

from nexhealth_pipeline.warehouse.encode import Note

__all__ = ["quarantine"]


def quarantine(
    connection: psycopg.Connection,
    notes: Iterable[Note],
    *,
    collection: str,
    institution_id: int,
    location_id: int,
    run_id: str,
) -> int:
    """Store notes that are not there yet; returns how many were new. The caller commits."""
    new = 0
    for note in notes:
        done = connection.execute(
            "INSERT INTO nexhealth_quarantine"
            " (collection, institution_id, location_id, record_id, field, rule, loaded, raw, fingerprint, run_id)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            (
                collection,
                institution_id,
                location_id,
                note.record_id,
                note.field,
                note.rule,
                note.loaded,
                note.raw,
                note.fingerprint,
                run_id,
            ),
        )
        new += done.rowcount
    return new
