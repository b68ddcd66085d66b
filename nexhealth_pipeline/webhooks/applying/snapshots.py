"""Records that events hold: which are newer than the table's rows, loaded the way a page is.

A record is loaded as a page read at its own `updated_at`. So a page that has the same version and was read
since wins. What is not newer than the row is left out before it costs anything: replaying events of a current
table writes nothing. Nor is what happened before a row was found absent, which leaves the row's version as it was:
deliveries are repeated for two days, so a change often comes after the deletion that followed it. A row that is there
all the same comes back by the next read.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.catalog.collections import nested_in
from nexhealth_pipeline.client.page import kept_page
from nexhealth_pipeline.errors import RecordRefused
from nexhealth_pipeline.sync.loader import Loader
from nexhealth_pipeline.sync.practice import Institution
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.warehouse.history import Cause, state_cause
from nexhealth_pipeline.warehouse.merge import Change
from nexhealth_pipeline.warehouse.state import database_time
from nexhealth_pipeline.warehouse.sync_log import Counts

__all__ = ["Deletion", "Group", "GroupLoaded", "Snapshot", "SnapshotLoader"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of one record, as an event brought it."""

    event_id: int
    id: int
    version: datetime
    read_at: datetime
    """Where it stands among reads: its version, or when it was deleted; not later than the event came."""
    deleted: bool
    """Whether it tells that the record was deleted, in a collection whose records can say so."""
    raw: bytes = field(repr=False)
    keys: frozenset[str] = field(repr=False)
    """Its top-level keys."""

    @property
    def order(self) -> tuple[datetime, bool, int]:
        """Of two of one record the greater one holds; among equal versions a deletion, then what came last."""
        return self.version, self.deleted, self.event_id


@dataclass(frozen=True, slots=True)
class Deletion:
    """An event that a record is gone, in a collection whose records do not say so."""

    event_id: int
    id: int
    at: datetime
    version: datetime
    """A row newer than this is there again."""
    raw: bytes = field(repr=False)
    """What it says of the record, perhaps no more than the id."""


@dataclass(slots=True)
class Group:
    """What the events of a batch tell about one collection of one institution."""

    collection: Collection
    institution: Institution
    cause: Cause
    snapshots: list[Snapshot] = field(default_factory=list)
    deletions: list[Deletion] = field(default_factory=list)


@dataclass(slots=True)
class GroupLoaded:
    """What loading a group did."""

    holders: dict[int, int] = field(default_factory=dict)
    """Rows that changed, and the event because of which each is as it is now."""
    counts: Counts = field(default_factory=Counts)
    changes: list[Change] = field(default_factory=list)
    """Months that changed, for windowed collections."""


@dataclass(frozen=True, slots=True)
class _Held:
    """What the table has of a record."""

    version: datetime | None
    deleted: bool
    absent_at: datetime | None
    """When it was found absent."""


class SnapshotLoader:
    """Loads groups of one collection and institution on one connection, batch after batch."""

    def __init__(
        self,
        connection: psycopg.Connection,
        collection: Collection,
        institution: Institution,
        cause: Cause,
        run_id: str,
    ) -> None:
        assert collection.version is not None
        self._connection = connection
        self._collection = collection
        self._institution = institution.id
        self._run_id, self._cause = run_id, cause
        self._loader = Loader(connection, Slice(collection, institution), run_id=run_id, dry_run=False, cause=cause)
        self._loader.before_merge = self._keep_keys
        self._table = sql.Identifier(collection.table)
        self._version = sql.Identifier(collection.version)

    def load(self, group: Group) -> GroupLoaded:
        """Write what is newer than the table; the caller commits. Raises RecordRefused where a record cannot be."""
        done = GroupLoaded()
        held = self._held([*(one.id for one in group.snapshots), *(one.id for one in group.deletions)])
        snapshots = [*group.snapshots, *_never_seen(group, held)]
        newer = [one for one in snapshots if _is_newer(one, held.get(one.id))]
        # Once more, locked: what a record lacks is taken from the rows just now, and one may have been found absent since.
        held = self._held([one.id for one in newer if one.id in held], lock=True)
        newer = [one for one in newer if _is_newer(one, held.get(one.id))]
        began = database_time(self._connection)
        for layer in _layers(newer):
            done.holders |= self._load(layer, began, done)
        done.holders |= self._mark_gone(group.deletions, began, done)
        done.counts.records_read = len(snapshots)
        done.counts.unchanged = max(len(snapshots) - done.counts.inserted - done.counts.updated, 0)
        return done

    def _held(self, ids: Sequence[int], *, lock: bool = False) -> dict[int, _Held]:
        """What the table has of these; locked in the order of all merges where they are about to change."""
        rows = self._connection.execute(
            sql.SQL(
                "SELECT id, {}, deleted_at IS NOT NULL, CASE WHEN deleted_by = 'absence' THEN deleted_at END FROM {}"
                " WHERE institution_id = %s AND id = ANY(%s) ORDER BY id {}"
            ).format(self._version, self._table, sql.SQL("FOR NO KEY UPDATE" if lock else "")),
            (self._institution, sorted(set(ids))),
        )
        return {id_: _Held(version, deleted, absent_at) for id_, version, deleted, absent_at in rows}

    def _load(self, snapshots: Sequence[Snapshot], began: datetime, done: GroupLoaded) -> dict[int, int]:
        """Merge one version of each record; returns which event each changed row is of."""
        self._loader.open()
        self._loader.changes = []
        loaded = self._loader.encode_and_load([(kept_page(one.raw, one.read_at), {}) for one in snapshots])
        if loaded.refused:
            note = loaded.refused[0]
            raise RecordRefused(".".join(filter(None, (self._collection.name, note.field))), note.rule)
        done.counts.inserted += loaded.counts.inserted
        done.counts.updated += loaded.counts.updated
        done.changes += self._loader.changes
        written = self._written(snapshots, began)
        if loaded.counts.updated:
            self._sign_history(written, began)
        return {one.id: one.event_id for one in written}

    def _written(self, snapshots: Sequence[Snapshot], began: datetime) -> list[Snapshot]:
        """The snapshots that the table holds now because they were merged."""
        rows = self._connection.execute(
            sql.SQL(
                "SELECT id, source_read_at FROM {} WHERE institution_id = %s AND id = ANY(%s) AND synced_at >= %s"
            ).format(self._table),
            (self._institution, [one.id for one in snapshots], began),
        )
        held = {(id_, read_at) for id_, read_at in rows}
        return [one for one in snapshots if (one.id, one.read_at) in held]

    def _keep_keys(self, stage: str) -> None:
        """Events may lack keys that lists have: `raw` keeps those of the row that is about to change.

        But not a flag that it is deleted, which no longer is where a record comes without it, nor what lists lack and
        an earlier release kept.
        """
        flag = self._collection.deleted_if
        dropped = [*self._collection.single_only, *([flag] if flag else [])]
        self._connection.execute(
            sql.SQL(
                "UPDATE {} s SET raw = (t.raw - %s::text[]) || s.raw FROM {} t"
                " WHERE t.institution_id = s.institution_id AND t.id = s.id AND s.row_hash <> t.row_hash"
            ).format(sql.Identifier(stage), self._table),
            (dropped,),
        )

    def _mark_gone(self, deletions: Sequence[Deletion], began: datetime, done: GroupLoaded) -> dict[int, int]:
        """Mark rows that no read or newer version has shown since their deletion; returns the event of each."""
        if not deletions:
            return {}
        state_cause(self._connection, self._cause, run_id=self._run_id)
        latest = {one.id: one for one in sorted(deletions, key=lambda one: (one.version, one.at, one.event_id))}
        rows = self._connection.execute(
            sql.SQL(
                "UPDATE {} t SET deleted_at = v.at, deleted_by = 'absence', synced_at = clock_timestamp()"
                " FROM unnest(%s::bigint[], %s::timestamptz[], %s::timestamptz[]) v(id, at, version)"
                " WHERE t.institution_id = %s AND t.id = v.id AND t.deleted_at IS NULL AND t.source_read_at <= v.at"
                " AND coalesce(t.{} <= v.version, true) RETURNING t.id"
            ).format(self._table, self._version),
            (
                list(latest),
                [one.at for one in latest.values()],
                [one.version for one in latest.values()],
                self._institution,
            ),
        ).fetchall()
        gone = [latest[id_] for (id_,) in rows]
        done.counts.tombstoned += len(gone)
        self._mark_lists_gone([one.id for one in gone])
        self._sign_history(gone, began)
        return {one.id: one.event_id for one in gone}

    def _mark_lists_gone(self, ids: Sequence[int]) -> None:
        """Mark the rows of lists inside records that are gone."""
        for nested in nested_in(self._collection) if ids else ():
            owner = next(column for column, target in nested.references if target == self._collection.name)
            self._connection.execute(
                sql.SQL(
                    "UPDATE {} n SET deleted_at = t.deleted_at, deleted_by = 'absence', synced_at = clock_timestamp()"
                    " FROM {} t WHERE t.institution_id = %s AND t.id = ANY(%s) AND n.institution_id = t.institution_id"
                    " AND n.{} = t.id AND n.deleted_at IS NULL"
                ).format(sql.Identifier(nested.table), self._table, sql.Identifier(owner)),
                (self._institution, list(ids)),
            )

    def _sign_history(self, changes: "Sequence[Snapshot | Deletion]", began: datetime) -> None:
        """Name the event in the versions that this transaction has just superseded."""
        if not changes:
            return
        self._connection.execute(
            "UPDATE nexhealth_history h SET event_id = v.event::text"
            " FROM unnest(%s::bigint[], %s::bigint[]) v(id, event) WHERE h.collection = %s AND h.institution_id = %s"
            " AND h.key = jsonb_build_object('id', v.id) AND h.recorded_to >= %s AND h.run_id = %s"
            " AND h.event_id IS NULL",
            (
                [one.id for one in changes],
                [one.event_id for one in changes],
                self._collection.name,
                self._institution,
                began,
                self._run_id,
            ),
        )


def _never_seen(group: Group, held: Container[int]) -> list[Snapshot]:
    """Rows to mark as gone that were never there: else an older event, delivered again, would bring the record to life."""
    known = {one.id for one in group.snapshots}
    return [
        Snapshot(one.event_id, one.id, one.version, read_at=one.at, deleted=False, raw=one.raw, keys=frozenset())
        for one in group.deletions
        if one.id not in held and one.id not in known
    ]


def _is_newer(one: Snapshot, held: _Held | None) -> bool:
    if held is not None and held.absent_at is not None and one.version <= held.absent_at:
        return False
    if held is None or held.version is None or one.version > held.version:
        return True
    return one.version == held.version and one.deleted and not held.deleted


def _layers(snapshots: Iterable[Snapshot]) -> list[list[Snapshot]]:
    """The newest version of each record; before it, older ones with keys that all newer ones lack, since those stay."""
    versions: dict[int, list[Snapshot]] = {}
    told: dict[int, frozenset[str]] = {}
    for one in sorted(snapshots, key=lambda one: one.order, reverse=True):
        kept, keys = versions.setdefault(one.id, []), told.get(one.id, frozenset())
        if not kept or not one.keys <= keys:
            kept.append(one)
            told[one.id] = keys | one.keys
    depth = max(map(len, versions.values()), default=0)
    return [[kept[at] for kept in versions.values() if len(kept) > at] for at in reversed(range(depth))]
