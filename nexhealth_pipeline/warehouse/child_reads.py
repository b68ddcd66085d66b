"""Which rows' own lists (a patient's documents and the like) are due, and which have been read.

A list tells nobody that a record left it, so each comes up once in so many nights, whoever was judged longest ago
first. Reads that do not judge (for a webhook, for one patient, by a full sync) do not put that off. How many come up
follows from how long ago each was judged, and not from how often a sync runs: as many as must be read now so that,
at an even pace, none gets older than that. So hourly syncs share a day's lot, and a lot that was missed is made up for.

A location's slice holds the patients whose lowest-id active location it is. An office that is read no more counts as
the lowest-id active one that shares its EHR database, by which its patients still change; where there is none, the lists
of whom it alone has rest until it is read again. Patients that no known location lists fall to the institution's
lowest-id active location. Rows of institution-wide collections all belong to the institution's slice.
"""

import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import LiteralString

import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.warehouse.state import database_time

__all__ = [
    "ChildRead",
    "DueRow",
    "changed_among",
    "due_rows",
    "had_records",
    "record_child_reads",
    "record_unknown",
    "was_begun",
    "witnesses",
]


@dataclass(frozen=True, slots=True)
class DueRow:
    """A row (a patient, a coverage) whose own list is to be read, with the version that makes it due."""

    id: int
    version: datetime | None
    had: int = 0
    """Records in its list when that was read last."""


@dataclass(frozen=True, slots=True)
class ChildRead:
    """A row's own list as it was read."""

    row: DueRow
    records: int
    asked: float
    """When it was asked for, or earlier, by `time.monotonic`: it lacks what has come since."""


_PATIENTS = """
    SELECT p.* FROM (
        SELECT DISTINCT o.patient_id FROM read CROSS JOIN LATERAL (
            SELECT patient_id FROM nexhealth_patient_locations
            WHERE institution_id = %(institution)s AND location_id = read.id AND gone_at IS NULL OFFSET 0
        ) o WHERE read.reader = %(location)s
    ) l CROSS JOIN LATERAL (
        SELECT institution_id, id, updated_at FROM nexhealth_patients
        WHERE institution_id = %(institution)s AND id = l.patient_id AND deleted_at IS NULL LIMIT 1
    ) p WHERE (
        SELECT min(o.location_id) FILTER (WHERE o.location_id IN (SELECT id FROM read WHERE reader < %(location)s))
        FROM nexhealth_patient_locations o
        WHERE o.institution_id = %(institution)s AND o.patient_id = l.patient_id AND o.gone_at IS NULL) IS NULL
    UNION ALL
    SELECT institution_id, id, updated_at FROM nexhealth_patients p
    WHERE (SELECT min(id) FROM active) = %(location)s AND institution_id = %(institution)s AND deleted_at IS NULL
        AND (SELECT min(o.location_id) FILTER (WHERE o.location_id IN (SELECT id FROM known))
            FROM nexhealth_patient_locations o
            WHERE o.institution_id = %(institution)s AND o.patient_id = p.id AND o.gone_at IS NULL) IS NULL
"""
"""Patients of a location: those it has and no lower one has; and of the lowest those whom none has that is known. From the location to
its patients and of each to its locations, by the keys' indexes, whatever PostgreSQL knows of the tables: as joins this
took seconds of 5,000 patients, and minutes of 40,000, until they were analyzed. OFFSET and LIMIT keep it from making joins
of it, and so do least ids that are null where NOT EXISTS would do, by which it also expects few rows."""
_ROWS = """
    SELECT institution_id, id, updated_at FROM {parents} WHERE institution_id = %(institution)s AND deleted_at IS NULL
"""
_MINE = """
WITH active AS (
    SELECT id FROM nexhealth_locations
    WHERE institution_id = %(institution)s AND NOT coalesce(inactive, false) AND deleted_at IS NULL
), shared AS (
    -- Offices of each database, with the lowest that is active.
    SELECT place.id, min(active.id) OVER (PARTITION BY s.sync_source_type, s.sync_source_name) AS reader
    FROM nexhealth_sync_status s
    CROSS JOIN jsonb_array_elements(CASE jsonb_typeof(s.locations) WHEN 'array' THEN s.locations ELSE '[]' END) l
    CROSS JOIN LATERAL (SELECT (l->>'id')::bigint AS id WHERE l->>'id' ~ '^[0-9]{{1,18}}$') place
    LEFT JOIN active ON active.id = place.id
    WHERE s.institution_id = %(institution)s AND s.deleted_at IS NULL
), read AS (
    -- Offices whose patients are read, and in whose slice.
    SELECT id, id AS reader FROM active
    UNION ALL
    SELECT id, min(reader) FROM shared
    WHERE reader IS NOT NULL AND id NOT IN (SELECT id FROM active) GROUP BY id
), known AS (
    SELECT id FROM nexhealth_locations WHERE institution_id = %(institution)s UNION SELECT id FROM shared
), mine AS (
    SELECT p.id, p.updated_at, r.patient_version, coalesce(r.rows, 0) AS had, r.patient_id IS NULL AS unread,
        -- Later than now is by a clock that was ahead then: as long ago as can be.
        CASE WHEN r.read_at > clock_timestamp() THEN 'epoch' ELSE r.read_at END AS read_at,
        CASE WHEN r.judged_at > clock_timestamp() THEN 'epoch' ELSE r.judged_at END AS judged_at
    FROM ({rows}) p
    LEFT JOIN nexhealth_child_reads r
        ON r.collection = %(collection)s AND r.institution_id = p.institution_id AND r.patient_id = p.id
)
"""
_DUE = """, ranked AS (
    SELECT id, row_number() OVER (ORDER BY judged_at, read_at, id) AS place, count(*) OVER () AS lists,
        least(1, extract(epoch FROM clock_timestamp() - judged_at) / extract(epoch FROM %(turn)s)) AS waited
    FROM mine WHERE NOT unread
), rotation AS (
    SELECT id FROM ranked WHERE place <= (
        -- Of the lists that have waited so long, more than an even pace can read before their turn is over.
        SELECT least(max(place - lists * (1 - waited)),
            ceil(max(lists) * %(most)s::numeric / %(nights)s * least(1, coalesce(
                extract(epoch FROM clock_timestamp() - %(last)s::timestamptz) / extract(epoch FROM %(pause)s), 1))))
        FROM ranked)
)
SELECT id, updated_at, had FROM mine
WHERE unread OR patient_version IS DISTINCT FROM updated_at OR read_at < %(read_before)s
    OR id IN (SELECT id FROM rotation)
-- In no order: rows side by side whose lists cannot be read for ever must not stand before all others every night.
ORDER BY random()
"""
_EARLY = timedelta(hours=4)
"""A list's turn is over so much before its nights are, so that the last night's sync may begin earlier than others."""
_MOST_LOTS, _PAUSE = 2, timedelta(hours=12)
"""Nights' lots that one sync takes at most, and how long after the one before: sooner, in proportion.

Where lots were missed, or reads do not lead to a judgement (the office is offline), no day costs more than four.
"""
_AT_ONCE = 1000
"""Due rows fetched at once: an institution has hundreds of thousands of coverages."""
_WITNESSES = """
SELECT id, updated_at, had FROM mine WHERE had > 0 AND read_at < %(read_before)s
ORDER BY read_at DESC, id LIMIT %(most)s
"""
_HAD = "SELECT EXISTS (SELECT FROM mine WHERE had > 0)"

_READ = sql.SQL(
    "INSERT INTO nexhealth_child_reads (collection, institution_id, patient_id, read_at, patient_version, rows)"
    " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (collection, institution_id, patient_id) DO UPDATE SET"
    " read_at = excluded.read_at, patient_version = excluded.patient_version, rows = excluded.rows"
).format()
_AGAIN = sql.SQL(
    # A version that no row has: some have none, and null would be theirs. The turn stays what it is.
    "UPDATE nexhealth_child_reads SET patient_version = 'epoch'"
    " WHERE collection = %s AND institution_id = %s AND patient_id = %s"
).format()
_LEFT = sql.SQL(
    "UPDATE nexhealth_child_reads r SET rows = least(r.rows, (SELECT count(*) FROM {} t"
    " WHERE t.institution_id = r.institution_id AND t.{} = r.patient_id AND t.deleted_by IS DISTINCT FROM 'absence'))"
    " WHERE collection = %s AND institution_id = %s AND patient_id = %s"
)


def due_rows(
    connection: psycopg.Connection,
    *,
    collection: Collection,
    institution_id: int,
    location_id: int,
    read_before: datetime | None,
    rotation_days: int,
    last_begun: datetime | None = None,
) -> Generator[DueRow, None, None]:
    """Rows never read, changed since, read before `read_before`, or next in rotation; in no order.

    `last_begun`: when they were last begun to be read, in the database's time; None = long ago. The database holds
    them, as they are when the first is taken, until all were; the caller may commit meanwhile, and closes the iterator.
    """
    cursor = connection.cursor("nexhealth_due", withhold=True)
    cursor.itersize = _AT_ONCE
    try:
        with connection.transaction():
            # Else the plan is one for the first rows of many.
            connection.execute("SET LOCAL cursor_tuple_fraction = 1")
            cursor.execute(
                _question(_DUE, collection),
                {
                    "collection": collection.name,
                    "institution": institution_id,
                    "location": location_id,
                    "read_before": read_before,
                    "nights": rotation_days,
                    "turn": timedelta(days=rotation_days) - _EARLY,
                    "most": _MOST_LOTS,
                    "last": last_begun,
                    "pause": _PAUSE,
                },
            )
    except psycopg.Error:
        # The server has dropped it with the transaction, as the end of which the rows are found: asking it to close
        # the cursor would be another error, told instead of this one.
        psycopg.Cursor.close(cursor)
        raise
    with cursor:
        for row in cursor:
            yield DueRow(*row)


def witnesses(
    connection: psycopg.Connection,
    *,
    collection: Collection,
    institution_id: int,
    location_id: int,
    read_before: datetime,
    most: int,
) -> list[DueRow]:
    """At most so many rows whose lists had records when they were read, lately but before `read_before`; by id."""
    rows = connection.execute(
        _question(_WITNESSES, collection),
        {
            "collection": collection.name,
            "institution": institution_id,
            "location": location_id,
            "read_before": read_before,
            "most": most,
        },
        prepare=False,
    )
    return sorted((DueRow(*row) for row in rows), key=lambda row: row.id)


def had_records(
    connection: psycopg.Connection, *, collection: Collection, institution_id: int, location_id: int
) -> bool:
    """Whether one of a slice's lists had records when it was read last."""
    row = connection.execute(
        _question(_HAD, collection),
        {"collection": collection.name, "institution": institution_id, "location": location_id},
        prepare=False,
    ).fetchone()
    return row is not None and bool(row[0])


def was_begun(connection: psycopg.Connection, *, collection: Collection, institution_id: int) -> bool:
    """Whether any list of an institution was read: its first read asks for all of them."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM nexhealth_child_reads WHERE collection = %s AND institution_id = %s)",
        (collection.name, institution_id),
    ).fetchone()
    return bool(row and row[0])


def changed_among(
    connection: psycopg.Connection, *, collection: Collection, institution_id: int, rows: Iterable[int], most: int
) -> list[int]:
    """At most so many of these rows whose own list was read for another version, or never; by id."""
    found = connection.execute(
        sql.SQL(
            "SELECT p.id FROM {} p LEFT JOIN nexhealth_child_reads r ON r.collection = %(name)s"
            " AND r.institution_id = p.institution_id AND r.patient_id = p.id"
            " WHERE p.institution_id = %(institution)s AND p.id = ANY(%(rows)s) AND p.deleted_at IS NULL"
            " AND (r.patient_id IS NULL OR r.patient_version IS DISTINCT FROM p.updated_at) ORDER BY p.id LIMIT %(most)s"
        ).format(sql.Identifier(f"nexhealth_{collection.per}")),
        {"name": collection.name, "institution": institution_id, "rows": list(rows), "most": most},
    )
    return [id_ for (id_,) in found]


def _question(text: LiteralString, collection: Collection) -> sql.Composed:
    parents = sql.Identifier(f"nexhealth_{collection.per}")
    rows = sql.SQL(_PATIENTS) if collection.per_patient else sql.SQL(_ROWS).format(parents=parents)
    return sql.SQL(_MINE + text).format(rows=rows)


def record_child_reads(
    connection: psycopg.Connection,
    *,
    collection: Collection,
    institution_id: int,
    reads: Iterable[ChildRead] = (),
    again: Iterable[int] = (),
    left: Iterable[int] = (),
) -> None:
    """Note lists that were read, each as of its request; the caller commits them with the records.

    `again`: rows whose lists the next sync is to ask for once more, whenever they were read. `left`: rows whose lists
    lost records to another's: they hold no more than is there now.
    """
    # In this order: a database that takes its time to answer must not make the lists younger than they are.
    now, here = database_time(connection), time.monotonic()
    where = (collection.name, institution_id)
    moved = _LEFT.format(sql.Identifier(collection.table), sql.Identifier(collection.parent_columns[0]))
    steps: list[tuple[int, sql.Composed, tuple[object, ...]]] = []
    for one in reads:
        at = now - timedelta(seconds=here - one.asked)
        steps.append((one.row.id, _READ, (*where, one.row.id, at, one.row.version, one.records)))
    steps += [(number, _AGAIN, (*where, number)) for number in again]
    # After its read: that may have been asked for before the record moved.
    steps += [(number, moved, (*where, number)) for number in left]
    # By id, in which order others lock them as well: a cycle of waits would end the slice.
    steps.sort(key=lambda step: step[0])
    with connection.cursor() as cursor:
        for statement, group in groupby(steps, key=lambda step: step[1]):
            cursor.executemany(statement, [values for _, _, values in group])


def record_unknown(connection: psycopg.Connection, *, collection: str, institution_id: int, ids: Iterable[int]) -> None:
    """Note rows that the API did not know when their lists were asked for in turn; the caller commits.

    Their turn is over as if they had been judged, else they stay the first for ever, and many leave no turn to the
    others. That their records are gone is for the read of the rows themselves to say.
    """
    connection.execute(
        "UPDATE nexhealth_child_reads SET judged_at = clock_timestamp()"
        " WHERE collection = %s AND institution_id = %s AND patient_id = ANY(%s)",
        (collection, institution_id, list(ids)),
    )
