"""Lists inside records, as tables of their own: replaced together with the record that holds them.

The record is the authority: rows from an older version of it than the table holds change nothing. What a
newer list lacks is marked as gone (`deleted_by = 'absence'`), because the list is complete; a record without
the list, or with one that could not be read, says nothing about the rows it had.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache

import msgspec
import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection, SqlType
from nexhealth_pipeline.errors import RecordRefused
from nexhealth_pipeline.warehouse.drift import Drift, record_drift
from nexhealth_pipeline.warehouse.encode import Note, RecordEncoder
from nexhealth_pipeline.warehouse.merge import Merged, Stage
from nexhealth_pipeline.warehouse.values import CONVERTERS

__all__ = ["EncodedLists", "NestedStage"]

_COPY_ROWS = 500

_record = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_list = msgspec.json.Decoder(list[msgspec.Raw] | None).decode
_value = msgspec.json.Decoder().decode

_NEVER = datetime.min.replace(tzinfo=UTC)
_Found = tuple[Mapping[str, int], str | None, list[bytes] | bytes]
"""Of one record: its key, its version, and the list in it, or the JSON that stands in the list's place."""


@dataclass(frozen=True, slots=True)
class EncodedLists:
    """The lists inside one answer's records, as the stages take them."""

    records: list[tuple[object, ...]] = field(repr=False)
    """Rows of the stage of records that have a list."""
    owners: list[int]
    """Ids of these records: nothing is known anew of the lists of others."""
    lines: list[str] = field(repr=False)
    """The lists' rows, as staged."""
    notes: list[Note]
    """What could not be loaded."""
    drifts: list[Drift]


class NestedStage:
    """The stage of one nested collection, and of the records its rows come from, on one connection."""

    def __init__(
        self, connection: psycopg.Connection, collection: Collection, parent: Collection, institution_id: int | None
    ) -> None:
        self.collection = collection
        self._connection = connection
        self._parent = parent
        self._institution = institution_id
        self._encoder = RecordEncoder(collection, institution_id)
        self._stage = Stage(connection, collection, self._encoder)
        self._sql = _sql_of(collection, parent)
        self._parents = 0
        """Records staged, or about to be."""
        self._drifts: list[Drift] = []
        self._copied = False
        """Whether the stages hold anything yet."""
        self._rows: list[tuple[object, ...]] = []
        """Records not copied yet."""
        self._lines: list[str] = []
        """Their lists' rows."""

    def open(self) -> None:
        """Begin with empty stages."""
        self._stage.open()
        self._parents, self._copied = 0, False
        self._rows, self._lines, self._drifts = [], [], []

    def encode(self, records: Iterable[bytes], read_at: datetime) -> EncodedLists:
        """Encode the lists of one answer's records; shares nothing with the rest, as another thread may call it."""
        # The same record twice in one answer: the newest counts, and of the same version the last, as for the record.
        found: dict[tuple[int, ...], _Found] = {}
        for one in filter(None, map(self._of_record, records)):
            key = tuple(one[0].values())
            if key not in found or _moment(one[1]) >= _moment(found[key][1]):
                found[key] = one
        lists = EncodedLists([], [], [], [], [])
        for known, version, rows in found.values():
            if isinstance(rows, bytes):
                lists.notes.append(self._no_list(known, rows, read_at))
                continue
            encoded = self._encoder.encode(rows, read_at, known)
            lists.lines.extend(encoded.staged())
            lists.notes.extend(encoded.notes)
            whole = all(note.loaded for note in encoded.notes)
            lists.records.append((self._institution, *known.values(), version, read_at, whole))
            lists.owners.append(_owner(known))
        lists.drifts.extend(self._encoder.drift.drain())
        return lists

    def add(self, lists: EncodedLists) -> None:
        """Stage the lists of one answer's records."""
        self._rows += lists.records
        self._lines += lists.lines
        self._drifts += lists.drifts
        # Answers of one record each share a COPY.
        if len(self._rows) >= _COPY_ROWS or len(self._lines) >= _COPY_ROWS:
            self._copy()
        self._parents += len(lists.records)

    def _copy(self) -> None:
        """Stage what was added since the last time."""
        if not self._rows:
            return
        self._prepare()
        with self._connection.cursor() as cursor, cursor.copy(self._sql.add) as copy:
            for row in self._rows:
                copy.write_row(row)
        self._stage.copy(self._lines)
        self._copied = True
        self._rows, self._lines = [], []

    def merge(self) -> Merged:
        """Write what changed, after the records themselves were merged, and empty the stages; the caller commits."""
        if not self._parents:
            return Merged()
        self._copy()
        self._connection.execute(self._sql.drop_older)
        gone = self._connection.execute(self._sql.mark_gone).rowcount
        merged = self._stage.merge(None)
        self._connection.execute(self._sql.empty)
        record_drift(self._connection, self.collection.name, self._drifts)
        self._parents, self._copied, self._drifts = 0, False, []
        merged.updated += gone
        return merged

    def _prepare(self) -> None:
        if not self._copied:
            self._connection.execute(self._sql.create)
            self._connection.execute(self._sql.empty)
        self._stage.prepare()

    def _of_record(self, raw: bytes) -> _Found | None:
        """What the record says: its key, its version and its list; None where it has none."""
        try:
            record = _record(raw)
            known = {one.name: self._number(record, one.path[0]) for one in self.collection.from_request}
            version = self._version(record)
            rows = self._rows_in(record)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecordRefused, RecursionError):
            return None  # the whole record is in quarantine
        return None if rows is None else (known, version, rows)

    def _rows_in(self, record: Mapping[str, msgspec.Raw]) -> list[bytes] | bytes | None:
        """The list in a record, or what stands in its place; None for nothing."""
        value = record.get(self.collection.records_at[0], msgspec.Raw(b"null"))
        try:
            rows = _list(value)
        except msgspec.ValidationError:
            # Some practice systems write an empty text for nothing.
            return bytes(value) if bytes(value) != b'""' else None
        return None if rows is None else [bytes(row) for row in rows]

    def _no_list(self, known: Mapping[str, int], value: bytes, read_at: datetime) -> Note:
        """That the record is there, and its list cannot be read: unsaid, all its new rows would be missing."""
        owner = str(_owner(known))
        return Note(
            record_id=owner,
            field=self.collection.records_at[0],
            rule="not a list",
            loaded=False,
            raw=self._encoder.blotted(value),
            request=known,
            owner=owner,
            read_at=read_at,
        )

    @staticmethod
    def _number(record: Mapping[str, msgspec.Raw], name: str) -> int:
        text = CONVERTERS[SqlType.BIGINT](_value(record.get(name, msgspec.Raw(b"null"))))
        if text is None:
            raise RecordRefused(name, "missing, and it is part of the key")
        return int(text)

    def _version(self, record: Mapping[str, msgspec.Raw]) -> str | None:
        if (name := self._parent.version) is None:
            return None
        try:
            return CONVERTERS[SqlType.TIMESTAMPTZ](_value(record.get(name, msgspec.Raw(b"null"))))
        except RecordRefused:
            return None  # as the record's own row has it: a fault of this field costs no other


def _owner(known: Mapping[str, int]) -> int:
    """The id of the record that the list is in."""
    return next(iter(known.values()))


def _moment(version: str | None) -> datetime:
    """When a version was made; one without a time is older than all others."""
    return _NEVER if version is None else datetime.fromisoformat(version)


@cache
def _sql_of(collection: Collection, parent: Collection) -> "_Sql":
    return _Sql(collection, parent)


class _Sql:
    """The statements of one nested collection. Table `p` holds the records read, `s` their rows, `t` the target."""

    def __init__(self, collection: Collection, parent: Collection) -> None:
        stage = sql.Identifier(f"stage_{collection.name}")
        parents = sql.Identifier(f"stage_{collection.name}_in")
        key = ("institution_id", *(one.name for one in collection.from_request))
        names = sql.SQL(", ").join(map(sql.Identifier, key))
        in_parent = {one.name: one.path[0] for one in collection.from_request}
        self.create = sql.SQL(
            "CREATE TEMP TABLE IF NOT EXISTS {} ({}, version timestamptz, read_at timestamptz, whole boolean)"
        ).format(parents, sql.SQL(", ").join(sql.SQL("{} bigint").format(sql.Identifier(name)) for name in key))
        self.empty = sql.SQL("TRUNCATE {}").format(parents)
        self.add = sql.SQL("COPY {} FROM STDIN").format(parents)
        newer: sql.Composable = sql.SQL("false")
        if parent.version is not None:
            newer = sql.SQL("r.{} > p.version").format(sql.Identifier(parent.version))
        self.drop_older = sql.SQL(
            # A record read twice in one batch counts as read last.
            "WITH older AS (DELETE FROM {parents} p WHERE EXISTS (SELECT FROM {parents} q WHERE {same_q}"
            # Without a version, older than any with one: compared with null, neither of two would be older.
            " AND (coalesce(q.version, '-infinity'), q.read_at) > (coalesce(p.version, '-infinity'), p.read_at))"
            " OR EXISTS (SELECT FROM {parent_table} r WHERE {same_r} AND {newer}) RETURNING {key}, read_at)"
            " DELETE FROM {stage} s USING older p WHERE {same_s} AND s.source_read_at = p.read_at"
        ).format(
            parents=parents,
            parent_table=sql.Identifier(parent.table),
            stage=stage,
            key=names,
            newer=newer,
            same_q=_same("q", key),
            same_r=_same("r", key, {**in_parent, "institution_id": "institution_id"}),
            same_s=_same("s", key),
        )
        self.mark_gone = sql.SQL(
            "UPDATE {target} t SET deleted_at = p.read_at, deleted_by = 'absence', synced_at = clock_timestamp()"
            " FROM {parents} p WHERE {same_t} AND p.whole AND t.deleted_at IS NULL AND t.source_read_at <= p.read_at"
            " AND NOT EXISTS (SELECT FROM {stage} s WHERE {same_row})"
        ).format(
            target=sql.Identifier(collection.table),
            parents=parents,
            stage=stage,
            same_t=_same("t", key),
            same_row=sql.SQL(" AND ").join(
                sql.SQL("s.{0} = t.{0}").format(sql.Identifier(name)) for name in collection.key
            ),
        )


def _same(alias: str, key: tuple[str, ...], names: Mapping[str, str] | None = None) -> sql.Composed:
    """Rows of `alias` and of `p` that belong to the same record."""
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(
            sql.Identifier(alias, name if names is None else names[name]), sql.Identifier("p", name)
        )
        for name in key
    )
