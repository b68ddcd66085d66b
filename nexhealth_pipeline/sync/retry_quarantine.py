"""Loading what once could not be loaded: stored records through today's rules and the same merge as any read.

A record is loaded as of the time it was last read, so that a newer one is never replaced. What a later whole
read no longer met, what was found absent since, or what stood in a list of a row that is gone, is out of date: its
note is closed and nothing is loaded. Asks NexHealth nothing.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection, Scope
from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.client.account import id_of
from nexhealth_pipeline.client.page import kept_page
from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.sync.loader import Loader
from nexhealth_pipeline.sync.months import CHANGES
from nexhealth_pipeline.sync.practice import Institution, Location, load_practices
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.warehouse.child_reads import record_child_reads
from nexhealth_pipeline.warehouse.connect import connect, driver_errors
from nexhealth_pipeline.warehouse.encode import RecordEncoder
from nexhealth_pipeline.warehouse.knowledge import record_membership
from nexhealth_pipeline.warehouse.migrate import check
from nexhealth_pipeline.warehouse.repeats import repeated
from nexhealth_pipeline.warehouse.runs import RunLock
from nexhealth_pipeline.warehouse.sessions import require_sessions
from nexhealth_pipeline.warehouse.sync_log import Counts, SyncLog

__all__ = ["Retried", "retry_quarantine"]

_AT_ONCE = 200
"""Notes of one transaction; each holds a record of up to a megabyte."""
_DIGITS = 18
"""Of the longest number that an id is taken for."""
_MODE = "retry"
"""What its rows in `nexhealth_sync_logs` say."""


@dataclass(slots=True)
class Retried:
    """What became of the notes that were tried, in notes; and of their rows."""

    tried: int = 0
    loaded: int = 0
    outdated: int = 0
    """Closed, because a later read no longer met the record as it was."""
    still_open: int = 0
    rows: Counts = field(default_factory=Counts)

    def add(self, other: "Retried") -> None:
        """Add `other` to this."""
        self.tried += other.tried
        self.loaded += other.loaded
        self.outdated += other.outdated
        self.still_open += other.still_open
        self.rows.add(other.rows)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where notes come from: one slice, but for its window."""

    collection: Collection
    institution_id: int
    location_id: int

    @property
    def slice(self) -> Slice:
        """What a loader needs to know; names do not matter to it."""
        if not self.institution_id:
            return Slice(self.collection)
        institution = Institution(self.institution_id, "", "", frozenset())
        location = Location(self.location_id, "", institution, False, self.location_id, False)
        return Slice(self.collection, institution, location if self.location_id else None)


@dataclass(slots=True)
class _Record:
    """A stored record, and its notes: id and field of each."""

    raw: bytes = field(repr=False)
    request: Mapping[str, int]
    read_at: datetime
    notes: list[tuple[int, str]] = field(default_factory=list)


def retry_quarantine(url: str, *, ids: Sequence[int] = (), collection: str | None = None) -> Retried:
    """Try open notes again: those with `ids`, or of `collection`, or all.

    Raises InvalidSetting for an id that no note has, WarehouseError.
    """
    check(url)
    total = Retried()
    with driver_errors("retrying quarantine"), connect(url, autocommit=True) as connection:
        require_sessions(url, connection)
        places = _places(connection, ids, collection)
        if not places:
            return total
        with RunLock(url, str(uuid.uuid4())) as lock:
            for place, notes in places:
                total.add(_retry_place(connection, place, notes, lock.run_id))
            lock.finish("succeeded")
    return total


def _places(
    connection: psycopg.Connection, ids: Sequence[int], collection: str | None
) -> list[tuple[_Place, list[int]]]:
    """Open notes' ids by where they come from, in the catalog's order: records before what is inside them."""
    rows = connection.execute("SELECT id FROM nexhealth_quarantine WHERE id = ANY(%s)", (list(ids),)).fetchall()
    unknown = set(ids) - {row[0] for row in rows}
    if unknown:
        raise InvalidSetting(f"note {min(unknown)}: there is none; `nexhealth quarantine list --all` shows them")
    found = connection.execute(
        "SELECT collection, institution_id, location_id, array_agg(id ORDER BY read_at, id) FROM nexhealth_quarantine"
        " WHERE resolved_at IS NULL AND (%(all)s OR id = ANY(%(ids)s))"
        " AND (%(collection)s::text IS NULL OR collection = %(collection)s)"
        " AND collection = ANY(%(known)s) GROUP BY 1, 2, 3",
        {"all": not ids, "ids": list(ids), "collection": collection, "known": list(COLLECTIONS)},
    ).fetchall()
    order = list(COLLECTIONS)
    found.sort(key=lambda row: (order.index(row[0]), *row[1:3]))
    return [(_Place(COLLECTIONS[name], *where), notes) for name, *where, notes in found]


def _retry_place(connection: psycopg.Connection, place: _Place, notes: list[int], run_id: str) -> Retried:
    """Try the notes of one place, a transaction for some of them, under one row of the log."""
    log = SyncLog.open(
        connection,
        run_id=run_id,
        asset=place.collection.table,
        collection=place.collection.name,
        institution_id=place.institution_id or None,
        location_id=place.location_id or None,
        partition_key=None,
        mode=_MODE,
    )
    total = Retried()
    for first in range(0, len(notes), _AT_ONCE):
        total = repeated(partial(_retry_some, connection, place, notes[first : first + _AT_ONCE], log, run_id, total))
    log.finish(connection, "succeeded", total.rows)
    return total


def _retry_some(
    connection: psycopg.Connection, place: _Place, notes: list[int], log: SyncLog, run_id: str, before: Retried
) -> Retried:
    """Try some notes in one transaction; what became of them and of those before."""
    with connection.transaction():
        # One of its own: where this was rolled back, the one before has told its drifts, and holds what was staged.
        loader = Loader(connection, place.slice, run_id=run_id, dry_run=False)
        loader.open()
        done = _retry_records(connection, place, loader, _records(connection, notes))
        done.add(before)
        log.progress(connection, done.rows)
    return done


def _records(connection: psycopg.Connection, ids: list[int]) -> list[_Record]:
    records: dict[tuple[bytes, str], _Record] = {}
    rows = connection.execute(
        "SELECT id, field, raw, request, read_at FROM nexhealth_quarantine"
        " WHERE id = ANY(%s) AND resolved_at IS NULL ORDER BY read_at, id",
        (ids,),
    )
    for note_id, name, raw, request, read_at in rows:
        record = records.setdefault((raw, str(request)), _Record(raw, request, read_at))
        record.read_at = max(record.read_at, read_at)
        record.notes.append((note_id, name))
    return list(records.values())


def _retry_records(connection: psycopg.Connection, place: _Place, loader: Loader, records: list[_Record]) -> Retried:
    """Load what passes today's rules and close its notes, in the caller's transaction."""
    done = Retried(tried=sum(len(record.notes) for record in records))
    outdated = [record for record in records if _outdated(connection, place, record)]
    encoder = RecordEncoder(place.collection, place.institution_id or None)
    loadable: list[_Record] = []
    closed: list[tuple[int, datetime]] = []
    for record in records:
        if record in outdated:
            continue
        faults = _faults(encoder, record)
        mended = [] if faults is None else [(one, record.read_at) for one, name in record.notes if name not in faults]
        if mended:
            loadable.append(record)
            closed += mended
    loaded = loader.encode_and_load([(kept_page(record.raw, record.read_at), record.request) for record in loadable])
    if loaded.left:
        record_child_reads(
            connection, collection=place.collection, institution_id=place.institution_id, left=loaded.left
        )
    _remember_members(connection, place, loadable, loaded.ids)
    done.rows.inserted, done.rows.updated = loaded.counts.inserted, loaded.counts.updated
    done.rows.unchanged, done.rows.records_read = loaded.counts.unchanged, len(loadable)
    old = [(one, record.read_at) for record in outdated for one, _ in record.notes]
    _close(connection, [*closed, *old])
    done.loaded, done.outdated = len(closed), len(old)
    done.still_open = done.tried - done.loaded - done.outdated
    return done


def _remember_members(
    connection: psycopg.Connection, place: _Place, records: Sequence[_Record], ids: Sequence[int]
) -> None:
    """Note that the location listed these patients, where its lists alone say so, as a sync does that loads them.

    But not of whom it was found to list no more since.
    """
    if not ids or not any(one.membership for one in place.collection.passes):
        return
    alone = {one.id for one in load_practices(connection).active(place.institution_id) if not one.shared}
    if place.location_id not in alone:
        return
    listed: dict[datetime, list[int]] = {}
    for record, id_ in zip(records, ids, strict=True):
        listed.setdefault(record.read_at, []).append(id_)
    for read_at, theirs in listed.items():
        left = connection.execute(
            "SELECT patient_id FROM nexhealth_patient_locations"
            " WHERE institution_id = %s AND location_id = %s AND patient_id = ANY(%s) AND gone_at > %s",
            (place.institution_id, place.location_id, theirs, read_at),
        ).fetchall()
        record_membership(
            connection,
            institution_id=place.institution_id,
            location_id=place.location_id,
            patient_ids={*theirs} - {id_ for (id_,) in left},
            seen_at=read_at,
        )


def _faults(encoder: RecordEncoder, record: _Record) -> set[str] | None:
    """Fields that still cannot be read; None where the record as a whole cannot be loaded."""
    try:
        notes = encoder.encode([record.raw], record.read_at, record.request).notes
    except KeyError:
        return None  # a column that the request filled was declared after the note was made
    return None if any(not note.loaded for note in notes) else {note.field for note in notes}


def _outdated(connection: psycopg.Connection, place: _Place, record: _Record) -> bool:
    """Whether a whole read begun later did not meet it any more, or what it stood in or under is gone, or has changed."""
    collection = place.collection
    held_in = COLLECTIONS[collection.inside or collection.name]
    if held_in.per is not None:
        # A list under one row says so itself when it is read, and a read of the slice is one of some lists. Under a row
        # that is gone no list is read any more.
        return _is_gone(connection, COLLECTIONS[held_in.per], place, record.request.get(held_in.parent_columns[0]))
    row = connection.execute(
        "SELECT bool_and(last_full_at IS NOT NULL AND last_full_at > %s) FROM nexhealth_sync_state"
        # Changes are never read whole: months are. An institution's list may be read at each of its locations, and its
        # record have been met in a patient's, which is filed under the patient's location.
        " WHERE collection = %s AND institution_id = %s AND (location_id = %s OR %s) AND window_key <> %s"
        " AND pass <> ALL(%s)",
        (
            record.read_at,
            held_in.name,
            place.institution_id,
            place.location_id,
            held_in.scope is Scope.INSTITUTION,
            CHANGES,
            # Who is listed says nothing of what is in a record, and is asked no more once nobody shares the database.
            [*held_in.second_looks, *(one.name for one in held_in.passes if one.membership)],
        ),
    ).fetchone()
    if (row and row[0]) or _gone_since(connection, place, record):
        return True
    return collection.inside is not None and _changed(connection, COLLECTIONS[collection.inside], place, record)


def _is_gone(connection: psycopg.Connection, parent: Collection, place: _Place, row_id: int | None) -> bool:
    """Whether that row is there as a deleted one."""
    query = sql.SQL("SELECT 1 FROM {} WHERE institution_id = %s AND id = %s AND deleted_at IS NOT NULL")
    values = (place.institution_id, row_id)
    return connection.execute(query.format(sql.Identifier(parent.table)), values).fetchone() is not None


def _gone_since(connection: psycopg.Connection, place: _Place, record: _Record) -> bool:
    """Whether its row was found absent after it was read: it may be newer than that row all the same, and bring it back."""
    number = id_of(record.raw)
    if place.collection.key != ("institution_id", "id") or not (
        number.isascii() and number.isdigit() and len(number) <= _DIGITS
    ):
        return False
    query = sql.SQL(
        "SELECT 1 FROM {} WHERE institution_id = %s AND id = %s AND deleted_by = 'absence' AND deleted_at > %s"
    )
    values = (place.institution_id, int(number), record.read_at)
    return connection.execute(query.format(sql.Identifier(place.collection.table)), values).fetchone() is not None


def _changed(connection: psycopg.Connection, parent: Collection, place: _Place, record: _Record) -> bool:
    """Whether the record that holds it was read later, or is gone."""
    keys = [(one.path[0], record.request.get(one.name)) for one in place.collection.from_request]
    same = sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name, _ in keys)
    query = sql.SQL(
        "SELECT 1 FROM {} WHERE institution_id = %s AND (source_read_at > %s OR deleted_by = 'absence') AND {}"
    ).format(sql.Identifier(parent.table), same)
    values = (place.institution_id, record.read_at, *(value for _, value in keys))
    return connection.execute(query, values).fetchone() is not None


def _close(connection: psycopg.Connection, notes: Sequence[tuple[int, datetime]]) -> None:
    """Close these notes, but for those of which the record was read once more since."""
    connection.execute(
        "UPDATE nexhealth_quarantine SET resolved_at = clock_timestamp() WHERE id IN"
        " (SELECT q.id FROM nexhealth_quarantine q JOIN unnest(%s::bigint[], %s::timestamptz[]) tried (id, read_at)"
        " ON q.id = tried.id WHERE q.resolved_at IS NULL AND q.read_at <= tried.read_at ORDER BY q.fingerprint FOR UPDATE OF q)",
        ([one for one, _ in notes], [read_at for _, read_at in notes]),
    )
