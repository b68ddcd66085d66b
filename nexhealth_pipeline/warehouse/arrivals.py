"""Rows that were read, told apart before one is sent: as the table has them, new, or neither.

In most nights nearly all are as the table has them, and in a first load all are new. So one query asks by id and
content hash. Known rows are dropped without having been sent to the server; where all others are new they are
copied straight into the table, which costs half of a stage and a merge. For the rest the merge decides.
"""

from datetime import datetime

import psycopg
from psycopg import errors, sql

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.warehouse.encode import Encoded, RecordEncoder
from nexhealth_pipeline.warehouse.history import FIRST_SEEN
from nexhealth_pipeline.warehouse.values import NULL

__all__ = ["Arrivals"]

_CHUNK = 500
"""Lines joined for the driver at a time: all of a batch at once took 20 MB more."""

_COPY_KB = 32 * 1024
"""Least `work_mem` of a COPY, in kB: the change feed's trigger is given a copy of all rows. A batch has ten megabytes, and
at the server's default of four they went through a file, which was a twentieth of what a first load cost it."""
_BEGIN = (
    "SELECT clock_timestamp(), set_config('work_mem',"
    " greatest(pg_size_bytes(current_setting('work_mem')) / 1024, %s) || 'kB', true)"
)


class Arrivals:
    """Encoded rows of one collection on one connection, held in memory until they are told apart."""

    def __init__(self, connection: psycopg.Connection, collection: Collection, encoder: RecordEncoder) -> None:
        self._connection = connection
        self._collection = collection
        self._institution = encoder.institution_id
        self._columns = encoder.stage_columns
        self._held = Encoded()
        self._were_new = False
        """Whether the rows of the last batch all were."""

    def __len__(self) -> int:
        return len(self._held.lines)

    def add(self, encoded: Encoded) -> None:
        """More rows."""
        self._held.add(encoded)

    def all(self) -> list[str]:
        """The staged lines of all rows held."""
        return self._held.staged()

    def clear(self) -> None:
        """Hold nothing."""
        self._held = Encoded()

    def drop_known(self) -> bool:
        """Drop the rows that are as the table has them; whether all others are new to it.

        Rows of one id that came more than once are judged together, so then nothing is dropped.
        """
        held = self._held
        if not self._told_by_id() or not held.lines or len({*held.ids}) < len(held.ids):
            return False
        # In a first load, where ids mostly come in order, this spares a look for each of them.
        if self._were_new and self._is_beyond():
            return True
        found = self._look_up()
        if len(found) < len(held.lines):
            places = [place - 1 for place, _ in found]
            self._held = Encoded(
                [held.lines[place] for place in places],
                [held.lacking[place] for place in places],
                ids=[held.ids[place] for place in places],
                hashes=[held.hashes[place] for place in places],
            )
        self._were_new = bool(found) and all(is_new for _, is_new in found)
        return self._were_new or not found

    def insert_if_new(self) -> int:
        """Drop the known rows and, where all others are new, insert them: how many. The caller commits."""
        if not self.drop_known() or not self._copied_straight() or not self._held.lines:
            return 0
        inserted = len(self._held.lines)
        try:
            # A savepoint: somebody else may insert one of them just now.
            with self._connection.transaction():
                self._copy()
        except errors.UniqueViolation:
            return 0
        self.clear()
        return inserted

    def _told_by_id(self) -> bool:
        return self._institution is not None and self._collection.key == ("institution_id", "id")

    def _copied_straight(self) -> bool:
        """Whether nothing is derived from a row, and nobody asks where it belongs."""
        return self._collection.soft_delete is None and self._collection.window is None

    def _is_beyond(self) -> bool:
        """Whether the table has no row from the least to the greatest id."""
        query = sql.SQL("SELECT NOT EXISTS (SELECT FROM {} WHERE institution_id = %s AND id BETWEEN %s AND %s)").format(
            sql.Identifier(self._collection.table)
        )
        ids = self._held.ids
        row = self._connection.execute(query, (self._institution, min(ids), max(ids)), prepare=False).fetchone()
        return bool(row and row[0])

    def _look_up(self) -> list[tuple[int, bool]]:
        """Places (from 1) of the rows that differ from the table's, and whether it has none with that id."""
        # Each by the key, whatever the statistics say of a table that was empty a moment ago.
        query = sql.SQL(
            "SELECT k.place, t.row_hash IS NULL"
            " FROM unnest(%(ids)s::bigint[], %(hashes)s::text[]) WITH ORDINALITY k (id, row_hash, place)"
            " LEFT JOIN LATERAL (SELECT row_hash, deleted_by FROM {} WHERE institution_id = %(institution)s AND id = k.id"
            " LIMIT 1) t ON true"
            " WHERE t.row_hash IS NULL OR encode(t.row_hash, 'hex') <> k.row_hash OR t.deleted_by = 'absence'"
            " ORDER BY k.place"
        ).format(sql.Identifier(self._collection.table))
        given = {
            # Written out: the driver takes longer over lists than the server over the look-up.
            "ids": "{" + ",".join(map(str, self._held.ids)) + "}",
            "hashes": "{" + ",".join(self._held.hashes) + "}",
            "institution": self._institution,
        }
        return self._connection.execute(query, given, prepare=False).fetchall()

    def _begin_copy(self) -> datetime:
        """The database's time; from here to the end of the transaction its triggers have memory for all rows."""
        row = self._connection.execute(_BEGIN, (_COPY_KB,)).fetchone()
        assert row is not None
        moment: datetime = row[0]
        return moment

    def _copy(self) -> None:
        """Into the table, in the order of the key, so that two of these wait for each other in no circle."""
        held = self._held
        order = sorted(range(len(held.ids)), key=held.ids.__getitem__)
        names = (*self._columns[:-1], "synced_at", FIRST_SEEN)
        query = sql.SQL("COPY {} ({}) FROM STDIN (NULL {})").format(
            sql.Identifier(self._collection.table), sql.SQL(", ").join(map(sql.Identifier, names)), sql.Literal(NULL)
        )
        # Given, though columns have defaults: COPY writes row by row where one is volatile.
        now = self._begin_copy().isoformat()
        ending = f"\t{now}\t{now}\n"
        with self._connection.cursor() as cursor, cursor.copy(query) as copy:
            for start in range(0, len(order), _CHUNK):
                lines = [held.lines[place] for place in order[start : start + _CHUNK]]
                copy.write(ending.join(lines) + ending)
