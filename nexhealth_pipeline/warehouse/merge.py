"""From encoded lines to rows: what is known goes nowhere, what is new into the table, the rest through a stage.

One look-up by key and hash tells them apart (`arrivals`). Unchanged rows end there; where all others are new, they
are copied straight into the table. Else they go by COPY into a temporary stage, then by one merge, which filters
them against the target by a join first, so that unchanged rows are not even locked (ON CONFLICT alone wrote 216 MB
of WAL for 200,000 unchanged rows, filtered first it wrote none).
A row is taken when it is new, or when its content differs and its version is not older:

- newer `updated_at`, or the same one read later; without `updated_at`, read later, and only if its
  request began after the last complete pass of the slice (`not_before`);
- a row tombstoned by absence comes back by a newer `updated_at` or by a read begun after the tombstone.
"""

from dataclasses import dataclass, field
from datetime import datetime
from functools import cache

import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.warehouse.arrivals import Arrivals
from nexhealth_pipeline.warehouse.encode import HASH_BEGINS, Encoded, RecordEncoder
from nexhealth_pipeline.warehouse.tables import table_columns
from nexhealth_pipeline.warehouse.values import NULL

__all__ = ["Change", "Merged", "Stage"]


@dataclass(frozen=True, slots=True)
class Change:
    """Changed rows of one location and month (first of month, UTC) of a windowed collection."""

    location_id: int
    month: str
    rows: int


@dataclass(slots=True)
class Merged:
    """What one merge did, in rows."""

    inserted: int = 0
    updated: int = 0
    left: list[int] = field(default_factory=list)
    """Rows (patients) whose own lists lost records to another's (`Collection.list_columns`)."""


class Stage:
    """The temporary table of one collection on one connection, and the way of rows through it or past it."""

    def __init__(self, connection: psycopg.Connection, collection: Collection, encoder: RecordEncoder) -> None:
        self._connection = connection
        self._collection = collection
        self._columns = encoder.stage_columns
        self._name = f"stage_{collection.name}"
        self._sql = _merge_sql(collection, self._columns)
        self._prepared = False
        self._arrivals = Arrivals(connection, collection, encoder)
        self._staged = 0

    @property
    def name(self) -> str:
        """Name of the temporary table."""
        return self._name

    @property
    def rows(self) -> int:
        """Rows to merge. Most answers of a night hold none: those cost no statement."""
        return self._staged + len(self._arrivals)

    def open(self) -> None:
        """Begin with an empty stage."""
        self._prepared, self._staged = False, 0
        self._arrivals.clear()

    def prepare(self) -> None:
        """Create the stage, or empty it where this connection already has one, unless that was done."""
        if not self._prepared:
            self._connection.execute(self._sql.create)
            self._connection.execute(self._sql.empty)
            self._prepared = True

    def add(self, encoded: Encoded) -> None:
        """More rows to merge, kept in memory until then."""
        self._arrivals.add(encoded)

    def fill(self) -> None:
        """Put all rows into the temporary table, for whoever looks at it."""
        lines = self._arrivals.all()
        self._arrivals.clear()
        self.copy(lines)

    def copy(self, lines: list[str]) -> None:
        """Append staged lines to the temporary table."""
        if not lines:
            return
        self.prepare()
        with self._connection.cursor() as cursor, cursor.copy(self._sql.copy) as copy:
            copy.write("\n".join(lines) + "\n")
        self._staged += len(lines)

    def merge(self, not_before: datetime | None) -> Merged:
        """Write new and changed rows to the target, then empty the stage; the caller commits."""
        if not self._staged and (inserted := self._arrivals.insert_if_new()):
            return Merged(inserted)
        self.fill()
        if not self._staged:
            return Merged()
        self._connection.execute(self._sql.keep_absent, prepare=False)
        # Planned each time: a plan made while the table was small would scan all of it for ever.
        row = self._connection.execute(self._sql.write, {"not_before": not_before}, prepare=False).fetchone()
        merged = Merged(*row) if row else Merged()
        if merged.inserted + merged.updated < self._staged:
            self._connection.execute(self._sql.rehash, prepare=False)
        self._connection.execute(self._sql.empty)
        self._staged = 0
        return merged

    def classify(self, *, target_exists: bool) -> Merged:
        """What `merge` would do, writing nothing; the stage keeps its rows."""
        self.fill()
        if not self._staged:
            return Merged()
        statement = self._sql.classify if target_exists else self._sql.count_new
        if target_exists:
            self._connection.execute(self._sql.keep_absent)
        row = self._connection.execute(statement, {"not_before": None}).fetchone()
        return Merged(*row) if row else Merged()

    def changes(self, not_before: datetime | None) -> list[Change]:
        """Locations and months whose rows `merge` is about to change; old and new place of a moved row."""
        if self._sql.places is None:
            return []
        self._arrivals.drop_known()
        self.fill()
        if not self._staged:
            return []
        self._connection.execute(self._sql.keep_absent, prepare=False)
        rows = self._connection.execute(self._sql.places, {"not_before": not_before}, prepare=False).fetchall()
        return [Change(location, month, count) for location, month, count in rows]


@cache
def _merge_sql(collection: Collection, columns: tuple[str, ...]) -> "_MergeSql":
    """The statements of a collection, composed once: that costs more than running them on a few rows."""
    return _MergeSql(collection, columns)


class _MergeSql:
    """The statements of one collection, as text."""

    def __init__(self, collection: Collection, columns: tuple[str, ...]) -> None:
        self._collection = collection
        self._stage = sql.Identifier(f"stage_{collection.name}")
        self._target = sql.Identifier(collection.table)
        self._written = [name for name in columns if name != "absent"]
        source = [*collection.list_columns, *(column.name for column in collection.columns)]
        source += ["deleted_at"] if collection.deleted_if else []
        self._content = [name for name in source if name not in collection.key]
        parent = next((name for name in collection.parent_columns if name in collection.list_columns), None)
        self._moves_by = None if parent is None else sql.Identifier(parent)
        self.create = self._create(columns).as_bytes(None)
        self.empty = sql.SQL("TRUNCATE {}").format(self._stage).as_bytes(None)
        self.copy = (
            sql.SQL("COPY {} ({}) FROM STDIN (NULL {})")
            .format(self._stage, _listed(columns), sql.Literal(NULL))
            .as_bytes(None)
        )
        self.keep_absent = self._keep_absent().as_bytes(None)
        self.write = self._write().as_bytes(None)
        self.rehash = self._rehash().as_bytes(None)
        self.classify = (
            sql.SQL("{}SELECT count(*) FILTER (WHERE is_new), count(*) FILTER (WHERE NOT is_new) FROM changed")
            .format(self._changed())
            .as_bytes(None)
        )
        self.count_new = (
            sql.SQL("SELECT count(DISTINCT ({})), 0 FROM {}")
            .format(_listed(collection.key), self._stage)
            .as_bytes(None)
        )
        self.places = self._places().as_bytes(None) if collection.window else None

    def _create(self, columns: tuple[str, ...]) -> sql.Composed:
        types = {column.name: column.type.value for column in table_columns(self._collection)}
        types |= {"row_hash": "bytea", "absent": "text[]"}
        typed = [sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(types[name])) for name in columns]
        return sql.SQL(
            "CREATE TEMP TABLE IF NOT EXISTS {} (stage_row integer GENERATED ALWAYS AS IDENTITY, {})"
        ).format(self._stage, sql.SQL(", ").join(typed))

    def _names(self, alias: str, names: "list[str] | tuple[str, ...]", *, bare: bool = False) -> sql.Composed:
        parts = [sql.Identifier(name) if bare else sql.Identifier(alias, name) for name in names]
        return sql.SQL(", ").join(parts)

    def _same_key(self) -> sql.Composed:
        return sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(sql.Identifier("s", name), sql.Identifier("t", name))
            for name in self._collection.key
        )

    def _revived(self) -> sql.Composed:
        """What brings back a row that a complete read had lacked; the API's own deletions are plain content."""
        newer = self._version_is(">") or sql.SQL("false")
        return sql.SQL("(t.deleted_by = 'absence' AND (s.source_read_at > t.deleted_at OR {}))").format(newer)

    def _version_is(self, operator: str) -> sql.Composed | None:
        """The version of stage row s against that of target row t."""
        version = self._collection.version
        if version is None:
            return None
        return sql.SQL("{} {} {}").format(sql.Identifier("s", version), sql.SQL(operator), sql.Identifier("t", version))

    def _not_older(self) -> sql.Composed:
        """The version guard between stage row s and target row t."""
        if self._collection.version is None:
            return sql.SQL(
                "(s.source_read_at >= t.source_read_at"
                " AND (%(not_before)s::timestamptz IS NULL OR s.source_read_at >= %(not_before)s))"
            ).format()
        return sql.SQL(
            "(CASE WHEN {same} OR s.{v} IS NULL OR t.{v} IS NULL"
            " THEN s.source_read_at >= t.source_read_at ELSE {newer} END)"
        ).format(
            same=self._version_is("="),
            newer=self._version_is(">"),
            v=sql.Identifier(self._collection.version),
        )

    def _differs(self) -> sql.Composed:
        """Content differs; the hash is asked first, the columns only where it differs."""
        return sql.SQL(
            "(s.row_hash <> t.row_hash AND t.deleted_by IS DISTINCT FROM 'absence'"
            " AND EXISTS (SELECT FROM {} w WHERE w.ctid = s.place AND ROW({}) IS DISTINCT FROM ROW({})))"
        ).format(self._stage, self._names("w", self._content), self._names("t", self._content))

    def _keep_absent(self) -> sql.Composed:
        """Give keys that were absent from a changed record the value the target has."""
        assignments = sql.SQL(", ").join(
            sql.SQL("{name} = CASE WHEN {text} = ANY(s.absent) THEN {kept} ELSE s.{name} END").format(
                name=sql.Identifier(name), text=sql.Literal(name), kept=self._kept(name)
            )
            for name in self._content
        )
        return sql.SQL(
            "UPDATE {} s SET {} FROM {} t WHERE {} AND s.absent IS NOT NULL"
            " AND (s.row_hash <> t.row_hash OR t.deleted_by = 'absence')"
        ).format(self._stage, assignments, self._target, self._same_key())

    def _kept(self, name: str) -> sql.Composed:
        """The target's value of a column; a deletion time that only we inferred is not the source's."""
        if name == self._collection.soft_delete:
            return sql.SQL("CASE WHEN t.deleted_by = 'absence' THEN NULL ELSE t.{} END").format(sql.Identifier(name))
        return sql.SQL("{}").format(sql.Identifier("t", name))

    def _changed(self) -> sql.Composed:
        """CTEs: the newest staged row per key, then those to write, in the order of the key.

        Only what they are judged by, and where they lie: sorting and keeping whole rows cost more than writing them.
        """
        version = self._collection.version
        newest_first = (
            sql.SQL("{} DESC NULLS LAST, ").format(sql.Identifier(version)) if version else sql.SQL("").format()
        )
        judged = [*self._collection.key, *((version,) if version else ()), "source_read_at", "row_hash"]
        return sql.SQL(
            "WITH newest AS MATERIALIZED (SELECT DISTINCT ON ({key}) {judged}, ctid AS place FROM {stage}"
            " ORDER BY {key}, {newest_first} source_read_at DESC, stage_row DESC),"
            " changed AS MATERIALIZED (SELECT s.place, t.source_read_at IS NULL AS is_new{was}"
            " FROM newest s LEFT JOIN {target} t ON {same_key}"
            " WHERE t.source_read_at IS NULL OR ({not_older} AND {differs}) OR {revived} ORDER BY {key_s}) "
        ).format(
            key=self._names("s", self._collection.key, bare=True),
            key_s=self._names("s", self._collection.key),
            judged=self._names("s", judged, bare=True),
            stage=self._stage,
            newest_first=newest_first,
            target=self._target,
            same_key=self._same_key(),
            not_older=self._not_older(),
            differs=self._differs(),
            revived=self._revived(),
            was=self._was(),
        )

    def _was(self) -> sql.Composed:
        """What else is asked of the rows as they were."""
        parts, window = [], self._collection.window
        if window is not None:
            parts.append(
                sql.SQL(", t.{} AS was_at, t.location_id AS was_location").format(sql.Identifier(window.column))
            )
        if self._moves_by is not None:
            parts.append(sql.SQL(", t.{} AS was_under").format(self._moves_by))
        return sql.Composed(parts)

    def _left(self) -> sql.Composed:
        """Whose lists lose records: nothing is asked where the records say themselves whose they are."""
        if self._moves_by is None:
            return sql.SQL("").format()
        return sql.SQL(
            ", ARRAY(SELECT DISTINCT c.was_under FROM changed c CROSS JOIN LATERAL"
            " (SELECT {0} FROM {1} w WHERE w.ctid = c.place OFFSET 0) s WHERE c.was_under <> s.{0})"
        ).format(self._moves_by, self._stage)

    def _write(self) -> sql.Composed:
        assignments = [
            sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name))
            for name in self._written
            if name not in self._collection.key
        ]
        assignments.append(sql.SQL("synced_at = excluded.synced_at").format())
        assignments.append(sql.SQL("deleted_by = excluded.deleted_by").format())
        if not self._collection.soft_delete:
            assignments.append(sql.SQL("deleted_at = NULL").format())
        return sql.SQL(
            "{changed}, written AS (INSERT INTO {target} AS t ({columns}, synced_at, deleted_by)"
            # In the order of the key, which the lateral join keeps, so that two merges of the same rows wait for
            # each other in no circle.
            " SELECT {columns}, clock_timestamp(), {deleted_by} FROM changed c"
            " CROSS JOIN LATERAL (SELECT * FROM {stage} w WHERE w.ctid = c.place OFFSET 0) s"
            " ON CONFLICT ({key}) DO UPDATE SET {assignments} WHERE {guard}"
            " RETURNING (t.xmax = 0) AS inserted)"
            " SELECT count(*) FILTER (WHERE inserted), count(*) FILTER (WHERE NOT inserted){left} FROM written"
        ).format(
            changed=self._changed(),
            left=self._left(),
            stage=self._stage,
            target=self._target,
            columns=self._names("s", self._written, bare=True),
            deleted_by=sql.SQL("CASE WHEN deleted_at IS NOT NULL THEN 'source' END")
            if self._collection.soft_delete
            else sql.SQL("NULL::text"),
            key=self._names("s", self._collection.key, bare=True),
            assignments=sql.SQL(", ").join(assignments),
            guard=self._conflict_guard(),
        )

    def _rehash(self) -> sql.Composed:
        """Give rows whose whole content came again with another hash that hash, so that they are known the next time.

        That is after a release with other columns, and where a record came without some keys once. Else those that
        lack keys give none: a list with them and one without would rewrite the row by turns. To history and the change
        feed this is no change. Rows that another process holds have time until they come again.
        """
        return sql.SQL(
            "WITH same AS MATERIALIZED (SELECT {key_t}, s.row_hash AS hash FROM {stage} s JOIN {target} t ON {same_key}"
            " WHERE s.row_hash <> t.row_hash AND s.source_read_at >= t.source_read_at"
            " AND (s.absent IS NULL OR substr(s.row_hash, 1, {begins}) <> substr(t.row_hash, 1, {begins}))"
            " AND t.deleted_by IS DISTINCT FROM 'absence' AND ROW({content_s}) IS NOT DISTINCT FROM ROW({content_t})"
            " ORDER BY {key_t} FOR NO KEY UPDATE OF t SKIP LOCKED)"
            " UPDATE {target} t SET row_hash = s.hash FROM same s WHERE {same_key}"
        ).format(
            key_t=self._names("t", self._collection.key),
            stage=self._stage,
            target=self._target,
            same_key=self._same_key(),
            begins=sql.Literal(HASH_BEGINS),
            content_s=self._names("s", self._content),
            content_t=self._names("t", self._content),
        )

    def _conflict_guard(self) -> sql.Composed:
        """The guard once more, for a row that another process wrote since the filter ran."""
        version = self._collection.version
        if version is None:
            return sql.SQL(
                "CASE WHEN t.deleted_by = 'absence' THEN excluded.source_read_at > t.deleted_at"
                " ELSE t.source_read_at <= excluded.source_read_at AND t.row_hash <> excluded.row_hash END"
            ).format()
        return sql.SQL(
            "CASE WHEN t.deleted_by = 'absence' THEN excluded.source_read_at > t.deleted_at OR excluded.{v} > t.{v}"
            " WHEN t.row_hash = excluded.row_hash THEN false"
            " WHEN t.{v} IS NULL OR excluded.{v} IS NULL OR t.{v} = excluded.{v}"
            " THEN t.source_read_at <= excluded.source_read_at ELSE t.{v} < excluded.{v} END"
        ).format(v=sql.Identifier(version))

    def _places(self) -> sql.Composed:
        window = self._collection.window
        assert window is not None
        return sql.SQL(
            "{changed}, moved AS (SELECT c.was_location, c.was_at, s.location_id, s.at FROM changed c"
            " CROSS JOIN LATERAL (SELECT location_id, {column} AS at FROM {stage} w WHERE w.ctid = c.place OFFSET 0) s),"
            " places AS (SELECT location_id, at FROM moved"
            " UNION ALL SELECT was_location, was_at FROM moved WHERE was_at IS NOT NULL"
            " AND (was_location, date_trunc('month', was_at, 'UTC'))"
            " IS DISTINCT FROM (location_id, date_trunc('month', at, 'UTC')))"
            " SELECT location_id, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM'), count(*) FROM places"
            " WHERE location_id IS NOT NULL AND at IS NOT NULL GROUP BY 1, 2"
        ).format(changed=self._changed(), stage=self._stage, column=sql.Identifier(window.column))


def _listed(names: tuple[str, ...]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))
