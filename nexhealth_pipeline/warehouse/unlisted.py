"""Rows that a list may leave out although they are there (`Collection.unlisted_if`): its silence ends nothing of theirs."""

import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection

__all__ = ["choose", "may_leave", "unlisted"]

_LATER = sql.SQL("interval '2 days'")


def unlisted(collection: Collection) -> sql.Composed:
    """SQL of whether row `t` is such a one."""
    if collection.unlisted_if is None:
        return sql.SQL("false").format()
    return sql.SQL("coalesce({}, false)").format(sql.Identifier("t", collection.unlisted_if))


def may_leave(collection: Collection) -> sql.Composed:
    """SQL of whether membership `l` of a row of the collection may end because a list lacked it.

    Of one that lists may leave out only where another location began to list it days later: it has moved there. Who was
    at both from the beginning was listed by both within a sync, or when the other location's lists were first read.
    """
    # One NOT EXISTS in the other, not an OR of two, which would be asked of each membership and not of the few unmet.
    return sql.SQL(
        "NOT EXISTS (SELECT FROM {table} t WHERE t.institution_id = l.institution_id AND t.id = l.patient_id"
        " AND t.deleted_at IS NULL AND {unlisted} AND NOT EXISTS (SELECT FROM nexhealth_patient_locations o"
        " WHERE o.institution_id = l.institution_id AND o.patient_id = l.patient_id AND o.gone_at IS NULL"
        " AND o.first_seen > l.first_seen + {later}"
        # When the status last changed: to supported after the first read that held a row, whose pages note memberships as
        # they come. Of all memberships the earliest took 5 ms a patient. OFFSET keeps it from being joined.
        " AND EXISTS (SELECT FROM nexhealth_capabilities c WHERE c.institution_id = o.institution_id"
        " AND c.location_id = o.location_id AND c.collection = {name} AND c.status = 'supported'"
        " AND c.since < o.first_seen - {later} OFFSET 0)))"
    ).format(
        table=sql.Identifier(collection.table),
        unlisted=unlisted(collection),
        later=_LATER,
        name=sql.Literal(collection.name),
    )


def choose(connection: psycopg.Connection, table: sql.Identifier, most: int | None) -> tuple[int, int]:
    """Leave at most so many of them (None: all) in a table of missing rows; returns how many are left, and how many not.

    By chance: nothing remembers who was asked for the last time.
    """
    left_out = 0
    if most is not None:
        left_out = connection.execute(
            sql.SQL(
                "DELETE FROM {table} WHERE key IN (SELECT key FROM {table} WHERE unlisted ORDER BY random() OFFSET %s)"
            ).format(table=table),
            (most,),
        ).rowcount
    row = connection.execute(sql.SQL("SELECT count(*) FROM {} WHERE unlisted").format(table)).fetchone()
    assert row is not None
    return row[0], left_out
