"""Which slices (partitions of the assets) a run of events has touched, and whether each is complete."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime

import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection, Scope
from nexhealth_pipeline.sync.months import CHANGES, month_keys, utc_today
from nexhealth_pipeline.sync.plan import owner_keys, passes_of, slices_of
from nexhealth_pipeline.sync.practice import Institution, Practices
from nexhealth_pipeline.sync.slices import Slice, SliceResult, place_of
from nexhealth_pipeline.warehouse.knowledge import record_change
from nexhealth_pipeline.warehouse.state import PassKey, load_watermarks
from nexhealth_pipeline.webhooks.applying.batches import Loaded

__all__ = ["AppliedSlice", "Touched"]

_WIDE = (Scope.PRACTICE, Scope.INSTITUTION)
"""Scopes whose freshness is no location's."""


@dataclass(frozen=True, slots=True)
class AppliedSlice:
    """One slice whose rows events have changed: what a run reports."""

    collection: Collection
    institution: Institution | None
    """None for key-wide collections."""
    partition_key: str | None
    """Key of its Dagster partition; None where the rows belong to no known location."""
    rows: int
    """Rows changed; a moved appointment counts where it was and where it is."""
    events: int
    """Events because of which they did."""
    complete: bool
    """The slice was read completely before."""
    as_of: datetime | None
    """Every change up to here is in the warehouse, where complete."""


@dataclass(slots=True)
class _Figures:
    collection: Collection
    institution: Institution | None
    rows: int = 0
    events: set[int] = field(default_factory=set)


class Touched:
    """Adds up, over a run, what its batches changed where."""

    def __init__(self, practices: Practices) -> None:
        self._practices = practices
        self._keys = {location.id: location.key for location in practices.active()}
        self._ids = {key: id_ for id_, key in self._keys.items()}
        self._found: dict[tuple[str, int, str | None], _Figures] = {}

    def add(self, connection: psycopg.Connection, loaded: Loaded) -> None:
        """Note what a committed batch changed in one collection of one institution."""
        collection, holders = loaded.collection, loaded.done.holders
        if not holders:
            return
        for location, month, ids in _places(connection, collection, loaded.institution.id, list(holders)):
            key = self._partition(collection, loaded.institution, location, month)
            # Months count the place a row has left as well.
            rows = 0 if collection.window else len(ids)
            self.note(collection, loaded.institution, key, rows, {holders[one] for one in ids})
        for change in loaded.done.changes:
            key = self._partition(collection, loaded.institution, change.location_id, change.month)
            self.note(collection, loaded.institution, key, change.rows, ())

    def note(
        self,
        collection: Collection,
        institution: Institution | None,
        partition_key: str | None,
        rows: int,
        events: Iterable[int],
    ) -> None:
        """Note changed rows of one slice."""
        key = collection.name, institution.id if institution else 0, partition_key
        figures = self._found.setdefault(key, _Figures(collection, institution))
        figures.rows += rows
        figures.events.update(events)

    def add_read(self, result: SliceResult, events: Iterable[int]) -> None:
        """Note what reading a slice again has changed."""
        piece = result.slice
        if piece.collection.window is None or piece.institution is None:
            rows = result.counts.inserted + result.counts.updated
            self.note(piece.collection, piece.institution, piece.partition_key, rows, events)
            return
        for change in result.changes:
            key = self._partition(piece.collection, piece.institution, change.location_id, change.month)
            self.note(piece.collection, piece.institution, key, change.rows, events)

    def record(self, connection: psycopg.Connection) -> None:
        """Note in the warehouse when the slices changed last."""
        places: dict[tuple[int, str], set[int]] = {}
        for (name, institution_id, key), figures in self._found.items():
            location = self._location(key)
            if figures.rows and (location or figures.collection.scope in _WIDE):
                places.setdefault((institution_id, name), set()).add(location)
        for (institution_id, name), locations in sorted(places.items()):
            record_change(connection, institution_id=institution_id, location_ids=locations, collection=name)

    def slices(self, connection: psycopg.Connection) -> list[AppliedSlice]:
        """Everything noted, with what is known of each slice now."""
        today = utc_today()
        known = {
            (piece.collection.name, piece.partition_key): piece
            for collection, practices in self._concerned()
            for piece in slices_of(collection, practices, today)
        }
        # No others' watermarks: a run for a single event would read those of all months of everybody.
        institutions = {piece.institution_id for piece in known.values()}
        watermarks = load_watermarks(connection, sorted({name for name, _, _ in self._found}), institutions)
        return [
            self._slice(one, key, watermarks, known.get((name, key)))
            for (name, _, key), one in sorted(self._found.items(), key=lambda item: (item[0][0], str(item[0][2])))
        ]

    def _concerned(self) -> Iterator[tuple[Collection, Practices]]:
        """So much of the practices as was touched, by collection: a thousand locations have 53,000 months."""
        places: dict[str, tuple[Collection, set[int], set[int]]] = {}
        for (name, institution_id, key), one in self._found.items():
            _, institutions, locations = places.setdefault(name, (one.collection, set(), set()))
            if one.collection.scope in _WIDE:
                institutions.add(institution_id)
            else:
                locations.add(self._location(key))
        for collection, institutions, locations in places.values():
            yield collection, self._practices.part(institutions, locations)

    def _location(self, key: str | None) -> int:
        """Id of the location that a partition is of; 0 where it is of none that is active."""
        return self._ids.get(place_of(key or ""), 0)

    def _slice(
        self, one: _Figures, key: str | None, watermarks: Mapping[PassKey, datetime], piece: Slice | None
    ) -> AppliedSlice:
        as_of = None if piece is None else _complete_through(piece, watermarks)
        return AppliedSlice(one.collection, one.institution, key, one.rows, len(one.events), as_of is not None, as_of)

    def _partition(
        self, collection: Collection, institution: Institution, location: int | None, month: str | None
    ) -> str | None:
        """The partition's key; the first and last months own what lies beyond them."""
        if collection.scope is Scope.INSTITUTION:
            return institution.subdomain
        place = None if location is None else self._keys.get(location)
        if place is None or collection.scope is Scope.LOCATION:
            return place
        if month is None:
            return None
        months = month_keys(utc_today())
        return f"{place}|{min(max(month, months[0]), months[-1])}"


def _places(
    connection: psycopg.Connection, collection: Collection, institution_id: int, ids: list[int]
) -> list[tuple[int | None, str | None, list[int]]]:
    """(location, month, ids) of rows, as far as the collection has them."""
    if collection.scope is Scope.INSTITUTION:
        return [(None, None, ids)]
    if not any(column.name == "location_id" for column in collection.columns):
        return connection.execute(
            "SELECT location_id, NULL, array_agg(u.id) FROM unnest(%s::bigint[]) u(id)"
            " LEFT JOIN nexhealth_patient_locations l"
            " ON l.institution_id = %s AND l.patient_id = u.id AND l.gone_at IS NULL GROUP BY 1",
            (ids, institution_id),
        ).fetchall()
    month: sql.Composable = sql.SQL("NULL::text")
    if collection.window is not None:
        column = sql.Identifier(collection.window.column)
        month = sql.SQL("to_char({} AT TIME ZONE 'UTC', 'YYYY-MM')").format(column)
    return connection.execute(
        sql.SQL(
            "SELECT location_id, {} AS month, array_agg(id) FROM {} WHERE institution_id = %s AND id = ANY(%s)"
            " GROUP BY 1, 2"
        ).format(month, sql.Identifier(collection.table)),
        (institution_id, ids),
    ).fetchall()


def _complete_through(piece: Slice, watermarks: Mapping[PassKey, datetime]) -> datetime | None:
    """Up to when a slice is complete; None where it never was. A month is as its location's changes are."""
    today = utc_today()
    through = _least(piece, watermarks, today)
    if through is None or piece.collection.window is None:
        return through
    changes = Slice(piece.collection, piece.institution, piece.location, CHANGES)
    return max(through, _least(changes, watermarks, today) or through)


def _least(piece: Slice, watermarks: Mapping[PassKey, datetime], today: date) -> datetime | None:
    marks = [watermarks.get(key) for key in (*owner_keys(piece), *(plan.key for plan in passes_of(piece, today)))]
    known = [mark for mark in marks if mark is not None]
    return min(known) if known and len(known) == len(marks) else None
