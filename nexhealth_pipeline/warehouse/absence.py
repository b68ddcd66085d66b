"""SQL of absences: rows that a complete read lacked, told apart from those that say nothing, and marked.

Everything is decided by the database: the rows in question stand in a temporary table, so memory does not
grow with them. Which reads are complete, and how many rows may vanish at once, is `sync.reconcile`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.warehouse.knowledge import NOT_OFFERED
from nexhealth_pipeline.warehouse.seen import ANSWERED_ID, ANSWERED_MARK, row_key
from nexhealth_pipeline.warehouse.under_gone import mark_under
from nexhealth_pipeline.warehouse.unlisted import choose, may_leave, unlisted

__all__ = ["Figures", "Ground", "Missing", "is_placed", "never_had"]

_MISSING = sql.Identifier("nexhealth_missing")
_ELSE_MET = sql.Identifier("nexhealth_else_met")
"""Rows that were missing but for a read of another ground, and the location that this one was of."""
_CREATE = sql.SQL(
    "CREATE TEMP TABLE IF NOT EXISTS {}"
    " (key text PRIMARY KEY, id bigint, place bigint, unlisted boolean, confirmed boolean);"
    " CREATE TEMP TABLE IF NOT EXISTS {} (key text PRIMARY KEY, place bigint)"
).format(_MISSING, _ELSE_MET)
_ANSWERED = sql.Literal(ANSWERED_MARK)
_ELSEWHERE = sql.SQL("interval '7 days'")
"""How long a read's word that it met a record counts against others that did not: perhaps nobody makes that read any more,
for its location became inactive, and then no other would take its word back."""
_COMPLETE = "FROM nexhealth_seen_passes WHERE id = ANY(%(passes)s) AND complete AND judged_at IS NULL"


@dataclass(frozen=True, slots=True)
class Ground:
    """The rows that one judgement is about, and the reads it rests on."""

    collection: Collection
    institution_id: int
    locations: tuple[int, ...]
    """Rows of these locations."""
    nowhere: bool
    """Rows that belong to no location."""
    read: tuple[int, ...]
    """Active locations of all EHR databases that were read completely: a patient of another one is left alone."""
    active: tuple[int, ...]
    """Active locations of the institution: under another one no row would ever be judged again."""
    passes: tuple[int, ...]
    """Ids of the passes that make the read."""
    begun_at: datetime
    """When the first of them began, in the database's time."""
    started_at: datetime
    """When the first of them began, in the API's time."""

    def params(self) -> dict[str, object]:
        """For the statements of this module."""
        return {
            "collection": self.collection.name,
            "institution": self.institution_id,
            "locations": list(self.locations),
            "read": list(self.read),
            "active": list(self.active),
            "passes": list(self.passes),
            "begun": self.begun_at,
            "started": self.started_at,
        }


@dataclass(frozen=True, slots=True)
class Figures:
    """What stands against what."""

    live: int
    """Rows of the ground that are not deleted."""
    seen: int
    """Records that the read met."""
    missing: int
    """Rows among the live ones that no read of the institution met and that nothing excuses."""
    empty: bool
    """Whether a place that has missing rows answered with no record at all."""
    unlisted: int = 0
    """Missing rows besides, which lists may leave out: only their single reads tell whether they are gone."""
    unasked: int = 0
    """More of those, which are not asked for this time."""


class Missing:
    """The missing rows of one ground, in a temporary table of one connection."""

    def __init__(self, connection: psycopg.Connection, ground: Ground) -> None:
        self._connection = connection
        self.ground = ground
        self._sql = _Sql(ground)
        self._params = ground.params()

    def find(self, most_unlisted: int | None = 0) -> Figures:
        """Look for them, at most so many of those that lists may leave out (None: all), in a transaction of one snapshot."""
        self._connection.execute(_CREATE)
        for table in (_MISSING, _ELSE_MET):
            self._connection.execute(sql.SQL("DELETE FROM {}").format(table))
        missing = self._connection.execute(self._sql.find, self._params).rowcount
        if missing:
            # Taken for a thousand, as a new table is, few of them would have all that anybody ever met looked through.
            self._connection.execute(sql.SQL("ANALYZE {} (key)").format(_MISSING))
            missing -= self._connection.execute(self._sql.elsewhere, self._params).rowcount
        unlisted, unasked = choose(self._connection, _MISSING, most_unlisted) if missing else (0, 0)
        live, seen = self._row(self._sql.count)
        listed = missing - unlisted - unasked
        empty = listed > 0 and (seen == 0 or bool(self._row(self._sql.empty)[0]))
        return Figures(live, seen, listed, empty, unlisted, unasked)

    def still_complete(self) -> bool:
        """Whether the passes still hold all that they met: another run may have begun one anew."""
        row = self._connection.execute(f"SELECT count(*) {_COMPLETE}", self._params).fetchone()
        return row is not None and row[0] == len(self.ground.passes)

    def hold(self) -> bool:
        """Whether the passes still hold all that they met; none is begun anew before the caller's transaction ends."""
        held = self._connection.execute(f"SELECT id {_COMPLETE} FOR SHARE", self._params).rowcount
        return held == len(self.ground.passes)

    def unlisted_gone(self) -> int:
        """How many of those that lists may leave out were said to be gone."""
        (gone,) = self._row(sql.SQL("SELECT count(*) FROM {} WHERE unlisted AND confirmed").format(_MISSING))
        return gone

    def unconfirmed(self, most: int) -> list[int]:
        """Ids of at most so many missing rows whose single read has not been asked for."""
        rows = self._connection.execute(
            sql.SQL("SELECT id FROM {} WHERE confirmed IS NULL ORDER BY id LIMIT %s").format(_MISSING), (most,)
        )
        return [row[0] for row in rows]

    def confirm(self, ids: Sequence[int], *, gone: bool) -> None:
        """Note what the single reads of these rows said."""
        self._connection.execute(
            sql.SQL("UPDATE {} SET confirmed = %s WHERE id = ANY(%s)").format(_MISSING), (gone, list(ids))
        )

    def mark(self, at: datetime) -> int:
        """Mark the missing rows (where a single read is possible: those it confirmed) as absent since `at`.

        `at` is in the API's time, as that of the reads by which a row comes back. Returns the rows marked; the
        caller commits.
        """
        params = {**self._params, "at": at}
        self._connection.execute(self._sql.mark, params, prepare=False)
        (marked,) = self._row(self._sql.left)
        if self._sql.leave is not None:
            self._connection.execute(self._sql.leave, params)
        return marked

    def mark_lists(self, at: datetime) -> dict[str, int]:
        """Mark what stands in the own lists of the rows just marked, or in lists inside them, as `under_gone` does.

        Returns the rows marked by collection; the caller commits.
        """
        gone = sql.SQL("SELECT id, %(at)s::timestamptz FROM {}").format(_MISSING)
        return mark_under(self._connection, self.ground.collection, gone, {**self._params, "at": at})

    def relocate(self) -> int:
        """Give rows that the place they stand under lists no more the one that does; where the request alone tells it.

        Returns the rows changed; the caller commits.
        """
        return sum(self._connection.execute(one, self._params).rowcount for one in self._sql.relocate)

    def leave_locations(self) -> int:
        """End memberships of patients whom the only location of the ground does not list any more.

        Before marking, and as `relocate` only while the passes are held: what they met is looked at once more.
        """
        if self._sql.left_out is None or len(self.ground.locations) != 1:
            return 0
        return self._connection.execute(self._sql.left_out, self._params).rowcount

    def _row(self, statement: sql.Composed) -> tuple[int, ...]:
        row = self._connection.execute(statement, self._params).fetchone()
        assert row is not None
        return tuple(row)


def is_placed(collection: Collection) -> bool:
    """Whether its rows say which location they belong to, themselves or by their patient."""
    return _place(collection) is not None or _patient(collection) is not None


def never_had(connection: psycopg.Connection, collection: Collection, institution_id: int) -> set[int]:
    """Locations that do not have the collection and never had: rows of no location are not theirs, nor what others list.

    Whoever has read it completely once had it, empty or not. Its rows do not tell: what several list, of which only the
    request says the location, stands under the first.
    """
    place = _place(collection)
    if place is None:
        return set()
    rows = connection.execute(
        sql.SQL(
            "SELECT c.location_id FROM nexhealth_capabilities c WHERE c.institution_id = %s AND c.collection = %s"
            " AND c.status = ANY(%s) AND NOT EXISTS (SELECT FROM {} t WHERE t.institution_id = c.institution_id"
            " AND {} = c.location_id) AND NOT EXISTS (SELECT FROM nexhealth_freshness f WHERE f.collection = c.collection"
            " AND f.institution_id = c.institution_id AND f.location_id = c.location_id AND f.complete_through IS NOT NULL)"
        ).format(sql.Identifier(collection.table), place),
        (institution_id, collection.name, list(NOT_OFFERED)),
    )
    return {row[0] for row in rows}


# What was written after the read began is newer than what it saw; the API's time is asked for rows that another process
# is still writing.
_UNTOUCHED = sql.SQL("t.deleted_at IS NULL AND t.synced_at < %(begun)s AND t.source_read_at < %(started)s")
# One array, and not a join, so that whatever the statistics say the index is used.
_WHICH_IDS = sql.SQL("t.id = ANY(ARRAY(SELECT m.id FROM {missing} m WHERE {confirmed}))")
_WHICH_KEYS = sql.SQL("{key} IN (SELECT m.key FROM {missing} m WHERE {confirmed})")


class _Sql:
    """The statements of one ground. Table `t` holds the collection's rows, `m` the missing ones."""

    def __init__(self, ground: Ground) -> None:
        collection = ground.collection
        self._collection = collection
        self._table, self._key = sql.Identifier(collection.table), row_key(collection, "t")
        self._belongs = _belongs(ground)
        self.find = self._find()
        self.elsewhere = self._elsewhere()
        self.count = self._count()
        self.empty = self._empty()
        self.mark = self._mark()
        self.left = sql.SQL("SELECT count(*) FROM {}").format(_MISSING)
        self.relocate: tuple[sql.Composed, ...] = ()
        if collection.placed_by_request:
            self.relocate = (_relocate(self._table, self._key), _relocate_else_met(self._table, self._key))
        members = any(one.membership for one in collection.passes)
        self.leave = _LEAVE if members else None
        self.left_out = _LEFT_OUT.format(missing=_MISSING, may_leave=may_leave(collection)) if members else None

    def _find(self) -> sql.Composed:
        """Notes the rows that the read lacked."""
        names = [one.name for one in (*self._collection.from_request, *self._collection.columns)]
        return sql.SQL(
            "INSERT INTO {missing} (key, id, place, unlisted) SELECT {key}, {id}, {place}, {unlisted} FROM {table} t"
            " WHERE t.institution_id = %(institution)s AND {untouched} AND {belongs}"
            " AND NOT EXISTS (SELECT FROM nexhealth_seen s WHERE s.key = {key} AND s.pass_id = ANY(%(passes)s))"
            " AND NOT EXISTS (SELECT FROM nexhealth_quarantine q WHERE q.collection = %(collection)s"
            " AND q.institution_id = t.institution_id AND q.resolved_at IS NULL AND q.record_id = {key}"
            # A note of an older read says nothing: only another read of its record would close it.
            " AND q.read_at >= %(started)s)"
        ).format(
            missing=_MISSING,
            key=self._key,
            id=sql.SQL("t.id" if "id" in names else "NULL::bigint"),
            place=_place(self._collection) or sql.SQL("NULL::bigint"),
            unlisted=unlisted(self._collection),
            table=self._table,
            untouched=_UNTOUCHED,
            belongs=self._belongs,
        )

    def _elsewhere(self) -> sql.Composed:
        """Takes out the rows that a read of another ground met.

        Apart from `find`, because few are missing, and an institution's reads may be a thousand times this ground's.
        """
        # Longer where only other locations' reads know the row, which have their turns when they have: while they are made.
        # One begun later than now is of a clock that was ahead then: its word would count for so much longer.
        lately = sql.SQL("begun_at BETWEEN %(begun)s - {} AND statement_timestamp()").format(_ELSEWHERE)
        if self._collection.placed_by_request:
            lately = sql.SQL("(location_id = ANY(%(active)s) OR {})").format(lately)
        if self._collection.per is not None:
            # All lists and those that are due are kept apart: what was met before in the same ones may be gone since.
            lately += sql.SQL(
                " AND (begun_at >= %(begun)s OR location_id NOT IN"
                " (SELECT o.location_id FROM nexhealth_seen_passes o WHERE o.id = ANY(%(passes)s)))"
            )
        return sql.SQL(
            "WITH met AS (SELECT m.key, min(p.location_id) FILTER (WHERE p.location_id = ANY(%(active)s)) AS place"
            " FROM {missing} m CROSS JOIN (SELECT id, location_id FROM nexhealth_seen_passes"
            " WHERE collection = %(collection)s AND institution_id = %(institution)s AND {lately}) p"
            " JOIN nexhealth_seen s ON s.pass_id = p.id AND s.key = m.key GROUP BY m.key),"
            " found AS (DELETE FROM {missing} m USING met WHERE m.key = met.key)"
            " INSERT INTO {else_met} (key, place) SELECT key, place FROM met"
        ).format(missing=_MISSING, else_met=_ELSE_MET, lately=lately)

    def _count(self) -> sql.Composed:
        """Rows that are there, and records that the read met."""
        return sql.SQL(
            "SELECT (SELECT count(*) FROM {table} t WHERE t.institution_id = %(institution)s"
            " AND t.deleted_at IS NULL AND {belongs}),"
            " (SELECT count(DISTINCT key) FROM nexhealth_seen WHERE pass_id = ANY(%(passes)s)"
            " AND NOT starts_with(key, {mark}))"
        ).format(table=self._table, belongs=self._belongs, mark=_ANSWERED)

    def _empty(self) -> sql.Composed:
        """Whether rows are missing at a location of which the read met nothing at all."""
        return sql.SQL(
            "SELECT EXISTS (SELECT FROM (SELECT DISTINCT place FROM {missing} WHERE NOT unlisted AND place IN"
            " (SELECT location_id FROM nexhealth_seen_passes WHERE id = ANY(%(passes)s))) m WHERE NOT EXISTS (SELECT FROM nexhealth_seen s"
            " JOIN nexhealth_seen_passes p ON p.id = s.pass_id WHERE p.id = ANY(%(passes)s)"
            " AND p.location_id = m.place))::int"
        ).format(missing=_MISSING)

    def _mark(self) -> sql.Composed:
        """Marks the missing rows; those that stay missing are the ones that were marked."""
        confirmed = sql.SQL("m.confirmed") if self._collection.by_id else sql.SQL("true")
        which = _WHICH_IDS if self._collection.key == ("institution_id", "id") else _WHICH_KEYS
        return sql.SQL(
            "WITH marked AS (UPDATE {table} t SET deleted_at = %(at)s, deleted_by = 'absence',"
            " synced_at = clock_timestamp() WHERE t.institution_id = %(institution)s AND {which} AND {untouched}"
            " RETURNING {key} AS key)"
            " DELETE FROM {missing} WHERE key NOT IN (SELECT key FROM marked)"
        ).format(
            table=self._table,
            missing=_MISSING,
            key=self._key,
            which=which.format(missing=_MISSING, confirmed=confirmed, key=self._key),
            untouched=_UNTOUCHED,
        )


def _relocate(table: sql.Identifier, key: sql.Composable) -> sql.Composed:
    """Rows keep the location that listed them first, so that two that share a database do not take turns."""
    return sql.SQL(
        "UPDATE {table} t SET location_id = s.place, synced_at = clock_timestamp() FROM ("
        " SELECT s.key, min(p.location_id) AS place, array_agg(p.location_id) AS places"
        " FROM nexhealth_seen s JOIN nexhealth_seen_passes p ON p.id = s.pass_id WHERE p.id = ANY(%(passes)s)"
        " GROUP BY s.key) s"
        " WHERE t.institution_id = %(institution)s AND {key} = s.key AND t.location_id = ANY(%(locations)s)"
        " AND t.location_id <> ALL(s.places) AND t.synced_at < %(begun)s"
    ).format(table=table, key=key)


def _relocate_else_met(table: sql.Identifier, key: sql.Composable) -> sql.Composed:
    """Rows go to the location that lists them now, judged apart since it shares no database with theirs any more."""
    return sql.SQL(
        "UPDATE {table} t SET location_id = e.place, synced_at = clock_timestamp() FROM {else_met} e"
        " WHERE t.institution_id = %(institution)s AND {key} = e.key"
        " AND t.location_id = ANY(%(locations)s) AND t.location_id <> e.place AND t.synced_at < %(begun)s"
    ).format(table=table, else_met=_ELSE_MET, key=key)


_LEAVE = sql.SQL(
    "UPDATE nexhealth_patient_locations l SET gone_at = clock_timestamp() FROM {} m"
    " WHERE l.institution_id = %(institution)s AND l.patient_id = m.id AND l.gone_at IS NULL"
).format(_MISSING)
_LEFT_OUT = sql.SQL(
    "UPDATE nexhealth_patient_locations l SET gone_at = clock_timestamp() WHERE l.institution_id = %(institution)s"
    " AND l.location_id = ANY(%(locations)s) AND l.gone_at IS NULL AND l.first_seen < %(started)s"
    " AND EXISTS (SELECT FROM nexhealth_seen WHERE pass_id = ANY(%(passes)s))"
    " AND NOT EXISTS (SELECT FROM nexhealth_seen s WHERE s.pass_id = ANY(%(passes)s) AND s.key = l.patient_id::text)"
    " AND NOT EXISTS (SELECT FROM {missing} m WHERE m.id = l.patient_id) AND {may_leave}"
)


def _parent(collection: Collection) -> str:
    """Column that holds the row whose own list a row stands in."""
    return collection.parent_columns[0]


def _place(collection: Collection) -> sql.Composed | None:
    """SQL of a row's location; None where the row does not say."""
    if collection.place_if is not None:
        column, other, value = collection.place_if
        return sql.SQL("CASE WHEN t.{} = {} THEN t.{} END").format(
            sql.Identifier(other), sql.Literal(value), sql.Identifier(column)
        )
    names = {one.name for one in (*collection.from_request, *collection.columns)}
    return sql.SQL("nullif(t.location_id, 0)").format() if "location_id" in names else None


def _patient(collection: Collection) -> sql.Composed | None:
    """SQL of the patient whose locations are the row's; None where there is none.

    The column as it stands, so that an index on it finds the rows of few patients: none is 0, and none listed as such.
    """
    if any(one.membership for one in collection.passes):
        return sql.SQL("t.id").format()
    for column, target in collection.references:
        if any(one.membership for one in COLLECTIONS[target].passes):
            return sql.SQL("{}").format(sql.Identifier("t", column))
    return None


def _belongs(ground: Ground) -> sql.Composed:
    """Which rows of the institution the ground is made of."""
    collection = ground.collection
    if collection.per is not None:
        # From the lists to their rows, which an index finds: few lists were read, and the table holds all of them.
        return sql.SQL(
            "{} IN (SELECT {} FROM nexhealth_seen s WHERE s.pass_id = ANY(%(passes)s) AND starts_with(s.key, {}))"
        ).format(sql.Identifier("t", _parent(collection)), ANSWERED_ID, _ANSWERED)
    place, patient = _place(collection), _patient(collection)
    parts = []
    if place is not None:
        # The column as it stands, so that an index on it finds the few rows: no location is 0.
        here = sql.SQL("t.location_id") if collection.place_if is None else place
        parts = [sql.SQL("{} = ANY(%(locations)s)").format(here)]
        parts += [sql.SQL("{} IS NULL").format(place)] if ground.nowhere else []
    elif patient is not None:
        parts = [_of_patients(patient)]
        parts += [_of_nobody(patient)] if ground.nowhere else []
    elif ground.nowhere:
        parts = [sql.SQL("true").format()]
    return sql.SQL("({})").format(sql.SQL(" OR ").join(parts) if parts else sql.SQL("false"))


def _of_patients(patient: sql.Composed) -> sql.Composed:
    """The patient is, or if nowhere any more was, listed here, and at no location that was not read."""
    return sql.SQL(
        "(EXISTS (SELECT FROM nexhealth_patient_locations l WHERE l.institution_id = %(institution)s"
        " AND l.patient_id = {patient} AND l.location_id = ANY(%(locations)s) AND (l.gone_at IS NULL"
        " OR NOT EXISTS (SELECT FROM nexhealth_patient_locations n WHERE n.institution_id = %(institution)s"
        " AND n.patient_id = l.patient_id AND n.gone_at IS NULL)))"
        " AND NOT EXISTS (SELECT FROM nexhealth_patient_locations l WHERE l.institution_id = %(institution)s"
        " AND l.patient_id = {patient} AND l.gone_at IS NULL AND l.location_id <> ALL(%(read)s)"
        " AND l.location_id IN (SELECT id FROM nexhealth_locations WHERE institution_id = %(institution)s"
        " AND NOT coalesce(inactive, false) AND deleted_at IS NULL)))"
    ).format(patient=patient)


def _of_nobody(patient: sql.Composed) -> sql.Composed:
    return sql.SQL(
        "NOT EXISTS (SELECT FROM nexhealth_patient_locations l WHERE l.institution_id = %(institution)s"
        " AND l.patient_id = {})"
    ).format(patient)
