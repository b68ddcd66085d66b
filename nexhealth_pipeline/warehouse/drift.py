"""Schema drift: fields that NexHealth begins, ceases or changes to deliver, seen while records are encoded.

Only names of fields and ids of records are kept, never a value. The database is written to once per slice and field.

- new: a key, at the top or in an object whose fields are columns, that no column holds (it is in `raw`);
- retyped: a value of another type than the column's (a day with a time, an object in a text column);
- missing: a declared key that no record of any complete read of the institution had.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import psycopg

from nexhealth_pipeline.catalog.collection import Collection, Column, SqlType
from nexhealth_pipeline.catalog.collections import nested_in
from nexhealth_pipeline.errors import RecordRefused
from nexhealth_pipeline.warehouse.runs import lock_key

__all__ = ["Drift", "DriftWatch", "field_of", "is_plain_name", "known_keys", "record_drift", "record_missing"]

Kind = Literal["new", "retyped"]

_NAME = re.compile(r"[A-Za-z0-9_\-]{1,63}", re.ASCII)
_ODD_NAME = "(a key that is no plain name)"
_MOST = 200
"""Most drifts one slice tells: an object keyed by anything would otherwise fill the table."""
_MET = (
    "collection = %(collection)s AND institution_id = %(institution)s AND kind = 'missing'"
    " AND field <> ALL(%(fields)s::text[])"
)
"""Fields noted as missing that are not among those a read lacked."""
_DAY = len("YYYY-MM-DD")
_TYPE_RULES = ("not ", "the object around")
"""How rules begin that a value of another type breaks; the others are about its content."""


@dataclass(frozen=True, slots=True)
class Drift:
    """A field that came otherwise than declared. `sample_id` is the id of a record, None where it has none."""

    kind: Kind
    institution_id: int
    field: str
    sample_id: int | None


def field_of(column: Column) -> str:
    """The API's name of a column's field, with dots: `bio.city`."""
    return ".".join(column.path)


def is_plain_name(key: str) -> bool:
    """Whether a key names a field; any other may be somebody's data."""
    return _NAME.fullmatch(key) is not None


class DriftWatch:
    """Looks at the records of one collection as they are encoded; made once per slice."""

    def __init__(self, collection: Collection) -> None:
        self._known = known_keys(collection)
        self._fields = {column.name: field_of(column) for column in collection.columns}
        self._texts = _of_type(collection, SqlType.TEXT)
        self._days = _of_type(collection, SqlType.DATE)
        self._found: list[Drift] = []
        self._told: set[tuple[Kind, int, str]] = set()
        self._absent: set[str] | None = None
        self._last_absent: list[str] | None = None
        self._curious = True

    def see(
        self, record: dict[str, object], institution: str, absent: list[str], faults: Sequence[RecordRefused]
    ) -> None:
        """Look at one record: its keys, the columns whose key is absent, and what was wrong with its values."""
        for path, known in self._known.items():
            inner = _at(record, path)
            if isinstance(inner, dict) and not known.issuperset(inner):
                self._note_new(record, inner, institution, path, known)
        self._see_texts(record, institution)
        self._see_days(record, institution)
        self.see_absent(absent)
        if faults:
            self._note_faults(record, institution, faults)

    def see_absent(self, absent: list[str]) -> None:
        """Look at one record of which all that can be said is which columns' keys it has not."""
        # Asked only until it is answered: the keys that no record had yet. Most records lack what the one before did.
        if self._curious and absent != self._last_absent:
            self._last_absent = absent
            self._absent = set(absent) if self._absent is None else self._absent.intersection(absent)
            self._curious = bool(self._absent)

    def drain(self) -> list[Drift]:
        """What was found since the last call, each drift once in the life of this watch."""
        found, self._found = self._found, []
        return found

    def drain_absent(self) -> set[str] | None:
        """Fields that none of the records since the last call had; None = there was no record."""
        absent, self._absent, self._last_absent = self._absent, None, None
        self._curious = True
        return None if absent is None else {self._fields[name] for name in absent}

    def _see_texts(self, record: dict[str, object], institution: str) -> None:
        """Text columns take any type, so nothing else notices that a field is no text any more."""
        for path, field in self._texts:
            value = _at(record, path)
            if value is not None and not isinstance(value, str):
                self._note("retyped", record, institution, field)

    def _see_days(self, record: dict[str, object], institution: str) -> None:
        """Day columns take times, of which each record may hold some: told here, and in quarantine not one of them."""
        for path, field in self._days:
            value = _at(record, path)
            if isinstance(value, str) and len(value) > _DAY:
                self._note("retyped", record, institution, field)

    def _note_new(
        self,
        record: dict[str, object],
        inner: dict[str, object],
        institution: str,
        path: tuple[str, ...],
        known: frozenset[str],
    ) -> None:
        for key in inner.keys() - known:
            self._note("new", record, institution, ".".join((*path, key if is_plain_name(key) else _ODD_NAME)))

    def _note_faults(self, record: dict[str, object], institution: str, faults: Sequence[RecordRefused]) -> None:
        for fault in faults:
            if fault.rule.startswith(_TYPE_RULES):
                self._note("retyped", record, institution, self._fields.get(fault.field, fault.field))

    def _note(self, kind: Kind, record: dict[str, object], institution: str, field: str) -> None:
        drift = (kind, int(institution), field)
        if drift in self._told or len(self._told) >= _MOST:
            return
        self._told.add(drift)
        self._found.append(Drift(*drift, _sample_id(record)))


def record_drift(connection: psycopg.Connection, collection: str, drifts: Iterable[Drift]) -> None:
    """Note drifts, or that they were met again. The caller commits."""
    # In one order for all, so that two slices of a collection wait for each other in no circle.
    for one in sorted(drifts, key=lambda one: (one.institution_id, one.field, one.kind)):
        connection.execute(
            "INSERT INTO nexhealth_schema_drift AS d (collection, institution_id, field, kind, sample_id)"
            " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (collection, institution_id, field, kind) DO UPDATE"
            " SET last_seen_at = clock_timestamp(), sample_id = coalesce(excluded.sample_id, d.sample_id)",
            (collection, one.institution_id, one.field, one.kind, one.sample_id),
        )


def record_missing(
    connection: psycopg.Connection, collection: Collection, institution_id: int, absent: Iterable[str]
) -> list[str]:
    """After a complete read: note fields that no read of the institution met, forget those that one did.

    The fields that were not noted before.

    `absent` are the fields that no record of this read had; other passes and locations are asked for in
    `nexhealth_sync_state`, where each keeps its own. The caller commits.
    """
    key = {
        "collection": collection.name,
        "institution": institution_id,
        "fields": sorted(absent),
        "seconds": collection.second_looks,
    }
    if not any(_lacking_and_met(connection, key)):
        return []
    # What one slice forgets another may be noting, and the other way round: whoever came second to the one and first to
    # the other would wait in a circle.
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (lock_key("missing", collection.name, institution_id),))
    # Asked once more: whoever held the lock may have met one of the fields.
    lacking, _ = _lacking_and_met(connection, key)
    connection.execute(f"DELETE FROM nexhealth_schema_drift WHERE {_MET}", key)  # noqa: S608 - a constant
    noted = connection.execute(
        "INSERT INTO nexhealth_schema_drift (collection, institution_id, field, kind)"
        " SELECT %(collection)s, %(institution)s, field, 'missing' FROM unnest(%(lacking)s::text[]) field"
        " ON CONFLICT (collection, institution_id, field, kind) DO UPDATE SET last_seen_at = clock_timestamp()"
        " RETURNING field, xmax = 0",
        key | {"lacking": lacking},
    )
    return [field for field, new in noted if new]


def _lacking_and_met(connection: psycopg.Connection, key: Mapping[str, object]) -> tuple[list[str], bool]:
    """Which of the fields no read of the institution met, and whether one noted as missing is not among them."""
    row = connection.execute(
        "SELECT ARRAY(SELECT field FROM unnest(%(fields)s::text[]) field"  # noqa: S608 - a constant
        " WHERE NOT EXISTS (SELECT FROM nexhealth_sync_state s WHERE s.collection = %(collection)s"
        " AND s.institution_id = %(institution)s AND s.pass <> ALL(%(seconds)s::text[])"
        " AND field <> ALL(s.absent_fields)) ORDER BY field), EXISTS (SELECT FROM nexhealth_schema_drift"
        f" WHERE {_MET})",
        key,
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def known_keys(collection: Collection) -> dict[tuple[str, ...], frozenset[str]]:
    """Declared keys: those that may stand at the top (path `()`) and in each object whose fields are columns."""
    paths = [column.path for column in (*collection.columns, *collection.from_request)]
    paths += [path for path in (*collection.sensitive, collection.institution_at, ("institution_id",)) if path]
    paths += [child.records_at for child in nested_in(collection)]
    paths += [(collection.deleted_if,)] if collection.deleted_if else []
    objects = {path[:depth] for path in paths for depth in range(len(path))}
    # An object that is one jsonb column may hold anything.
    opaque = {column.path for column in collection.columns} | {child.records_at for child in nested_in(collection)}
    return {
        place: frozenset(path[len(place)] for path in paths if len(path) > len(place) and path[: len(place)] == place)
        for place in sorted({(), *objects} - opaque, key=len)
    }


def _of_type(collection: Collection, type_: SqlType) -> tuple[tuple[tuple[str, ...], str], ...]:
    """Path and field of each column of a type."""
    return tuple((column.path, field_of(column)) for column in collection.columns if column.type is type_)


def _at(record: dict[str, object], path: tuple[str, ...]) -> object:
    value: object = record
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _sample_id(record: dict[str, object]) -> int | None:
    identifier = record.get("id")
    # Where the id is no key nothing has looked at it before: true is an int as well, and no bigint.
    return identifier if type(identifier) is int and abs(identifier) < 2**63 else None
