"""`nexhealth_quarantine`: records, and fields of records, that could not be loaded.

A note is open until its record is read later without the fault, or the row's own list that it stood in without the
record (of one without an id: all of the place), until that row is found to be gone, or until a retry loads it or finds
it out of date. The same fault of the same record is one note, however often it is read; one that comes back after it
was resolved is open, and new, again. A record that could not be read at all may have been spoilt on its way, so what met
one for the first time is asked once more by the next sync: its pass begins where that one began (:func:`met_unread`),
and a row's own list is due again (`warehouse.child_reads`).
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import psycopg
from psycopg.types.json import Jsonb

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.warehouse.encode import Note

__all__ = ["OpenNotes", "close_unnamed", "met_unread", "quarantine"]


def quarantine(
    connection: psycopg.Connection,
    notes: Iterable[Note],
    *,
    collection: str,
    institution_id: int,
    location_id: int,
    run_id: str,
) -> list[Note]:
    """Store notes; returns those that were not there, or were resolved. The caller commits."""
    new: list[Note] = []
    # In one order, so that two runs that meet the same faults wait for each other in no circle.
    for note in sorted(notes, key=lambda note: note.fingerprint):
        row = connection.execute(
            "WITH old AS (SELECT resolved_at FROM nexhealth_quarantine"
            " WHERE collection = %(collection)s AND institution_id = %(institution)s AND fingerprint = %(fingerprint)s)"
            " INSERT INTO nexhealth_quarantine AS q (collection, institution_id, location_id, record_id, field, rule,"
            " loaded, raw, fingerprint, run_id, request, read_at) VALUES (%(collection)s, %(institution)s, %(location)s,"
            " %(record)s, %(field)s, %(rule)s, %(loaded)s, %(raw)s, %(fingerprint)s, %(run)s, %(request)s,"
            " coalesce(%(read_at)s, clock_timestamp()))"
            " ON CONFLICT (collection, institution_id, fingerprint) DO UPDATE"
            " SET read_at = greatest(q.read_at, excluded.read_at),"
            # The old datum where it is the same: else a megabyte is written anew at each read.
            " raw = CASE WHEN excluded.read_at < q.read_at OR excluded.raw = q.raw THEN q.raw ELSE excluded.raw END,"
            # A document in another patient's list is that patient's now, by a retry as well; unless it was read earlier.
            " request = CASE WHEN excluded.read_at < q.read_at THEN q.request ELSE excluded.request END,"
            " location_id = CASE WHEN excluded.read_at < q.read_at THEN q.location_id ELSE excluded.location_id END,"
            " first_seen_at = CASE WHEN q.resolved_at IS NULL THEN q.first_seen_at ELSE excluded.first_seen_at END,"
            " resolved_at = NULL"
            " RETURNING coalesce((SELECT resolved_at IS NOT NULL FROM old), true)",
            {
                "collection": collection,
                "institution": institution_id,
                "location": location_id,
                "record": note.record_id,
                "field": note.field,
                "rule": note.rule,
                "loaded": note.loaded,
                "raw": note.raw,
                "fingerprint": note.fingerprint,
                "run": run_id,
                "request": Jsonb(dict(note.request)),
                "read_at": note.read_at,
            },
        ).fetchone()
        if row and row[0] and not (note.record_id and _took_over(connection, note, collection, institution_id)):
            new.append(note)
    return new


def _took_over(connection: psycopg.Connection, note: Note, collection: str, institution_id: int) -> bool:
    """Close what an earlier release, which went by all of a record's bytes, noted of the same fault; whether it had."""
    return bool(
        connection.execute(
            "UPDATE nexhealth_quarantine SET resolved_at = clock_timestamp()"
            " WHERE collection = %s AND institution_id = %s AND record_id = %s AND resolved_at IS NULL"
            " AND field = %s AND rule = %s AND request = %s AND fingerprint <> %s",
            (
                *(collection, institution_id, note.record_id),
                *(note.field, note.rule, Jsonb(dict(note.request)), note.fingerprint),
            ),
        ).rowcount
    )


_OPEN = " WHERE collection = %s AND institution_id = %s AND location_id = %s AND resolved_at IS NULL"


def met_unread(
    connection: psycopg.Connection, collection: str, institution_id: int, location_id: int, since: datetime | None
) -> bool:
    """Whether a record that could not be read was met there for the first time after `since` (database time)."""
    row = connection.execute(
        f"SELECT EXISTS (SELECT FROM nexhealth_quarantine{_OPEN} AND NOT loaded"  # noqa: S608 - a constant
        " AND (%s::timestamptz IS NULL OR first_seen_at >= %s))",
        (collection, institution_id, location_id, since, since),
    ).fetchone()
    return bool(row and row[0])


def close_unnamed(
    connection: psycopg.Connection,
    collection: str,
    institution_id: int,
    location_id: int,
    before: datetime,
    met_since: datetime | None,
) -> None:
    """Close notes of records without an id that can be read that a read begun at `before` no longer met.

    Only those first met after `met_since` (database time; None: all), which is what that read asked for. Nothing else
    could: such a record, of which a field may have been loaded as null, cannot be recognized when it comes well. The
    caller commits.
    """
    connection.execute(
        f"UPDATE nexhealth_quarantine SET resolved_at = clock_timestamp(){_OPEN}"  # noqa: S608 - a constant
        " AND record_id = '' AND read_at < %s AND first_seen_at >= coalesce(%s::timestamptz, '-infinity')",
        (collection, institution_id, location_id, before, met_since),
    )


class OpenNotes:
    """Resolves the open notes of one collection and institution as their records come without the fault."""

    def __init__(self, connection: psycopg.Connection, collection: Collection, institution_id: int) -> None:
        self._connection = connection
        self._name, self._institution = collection.name, institution_id
        keyed = next((one.name for one in collection.from_request if one.name in collection.key), None)
        self._keyed = keyed is not None
        self._owner = keyed or next(iter(collection.parent_columns), None)
        self.any = False
        """Whether there are any, as far as :meth:`look` knows."""

    def look(self) -> None:
        """Find out once whether there are any: nearly always there are none, and nothing more is asked."""
        row = self._connection.execute(
            "SELECT EXISTS (SELECT FROM nexhealth_quarantine"
            " WHERE collection = %s AND institution_id = %s AND resolved_at IS NULL)",
            (self._name, self._institution),
        ).fetchone()
        self.any = bool(row and row[0])

    def owners(self, request: Mapping[str, int]) -> list[int]:
        """The id in what a request knew that notes are found by: the patient whose address, or documents, they are."""
        return [request[self._owner]] if self._owner is not None and self._owner in request else []

    def resolve(self, ids: Sequence[int], owners: Sequence[int], read_at: datetime) -> None:
        """Close notes of records read before `read_at`. The caller commits, after the new notes.

        Records are found by `owners` where the key holds what the request knew, else by their `ids`; and by their owner
        where its whole list was read: what that still holds has been noted again by then.
        """
        if not self.any or not (ids or owners):
            return
        self._connection.execute(
            "UPDATE nexhealth_quarantine SET resolved_at = clock_timestamp()"
            " WHERE collection = %(collection)s AND institution_id = %(institution)s AND resolved_at IS NULL"
            " AND read_at < %(read_at)s AND (record_id = ANY(%(ids)s)"
            " OR request ->> %(owner)s::text = ANY(%(owners)s))",
            {
                "collection": self._name,
                "institution": self._institution,
                "owner": self._owner,
                "read_at": read_at,
                "ids": [] if self._keyed else [str(one) for one in ids],
                "owners": [str(one) for one in owners],
            },
        )
