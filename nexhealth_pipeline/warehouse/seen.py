"""Which records a pass has met: kept while absences are to be judged by them.

A pass that keeps them has one row in `nexhealth_seen_passes` and a key a record in `nexhealth_seen`, both
written in the transaction of its pages. Beginning the pass anew forgets what it had met, so a row there
that says complete stands for one whole read, whatever became of the slice since.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from datetime import datetime

import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.warehouse.state import PassKey

__all__ = [
    "ANSWERED_ID",
    "ANSWERED_MARK",
    "SeenPass",
    "answered_key",
    "begin_seen",
    "complete_seen",
    "find_seen",
    "forget_seen",
    "mark_unreadable",
    "offline_locations",
    "record_seen",
    "record_staged",
    "row_key",
    "seen_passes",
]

_KEY = "(collection, institution_id, location_id, window_key, pass) = (%s, %s, %s, %s, %s)"
_FIELDS = (
    "id, begun_at, started_at, offline, unreadable, revived, complete AND begun_at <= clock_timestamp(), judged_at"
)
_OFFLINE = """
SELECT DISTINCT place.id FROM nexhealth_sync_status s
CROSS JOIN jsonb_array_elements(CASE jsonb_typeof(s.locations) WHEN 'array' THEN s.locations ELSE '[]' END) l
CROSS JOIN LATERAL (
    SELECT (l->>'id')::bigint AS id WHERE l->>'id' ~ '^[0-9]{1,18}$'
    UNION ALL
    SELECT p.id FROM nexhealth_locations p
    WHERE p.institution_id = s.institution_id AND (l->>'id' ~ '^[0-9]{1,18}$') IS NOT TRUE
) place
WHERE s.institution_id = %s AND s.deleted_at IS NULL AND s.read_status IS DISTINCT FROM 'green'
    AND EXISTS (SELECT FROM nexhealth_sync_status o WHERE o.institution_id = s.institution_id AND o.deleted_at IS NULL
        AND (o.read_status IS NOT NULL OR o.read_status_at IS NOT NULL))
"""
"""Not green is red, and a status that is not told: absences are judged only where the practice is known to be read. An
institution none of whose sources tells how, or at least when, it was read has no status to go by: it would never be
judged, and is not offline. An entry that does not say which location it is may be any of the institution's."""


_ASIDE = "aside"
"""After a pass's name: what the pass before had met."""
ANSWERED_MARK = "of "
"""How keys begin that stand for rows whose own lists were answered; no record's key looks like it."""
ANSWERED_ID = sql.SQL("CASE WHEN starts_with(s.key, {}) THEN substr(s.key, {})::bigint END").format(
    sql.Literal(ANSWERED_MARK), sql.Literal(len(ANSWERED_MARK) + 1)
)
"""The row whose list was answered, of a key `s`; null of other keys, which are no numbers."""


@dataclass(frozen=True, slots=True)
class SeenPass:
    """A pass that keeps what it meets."""

    id: int
    begun_at: datetime
    """In the database's time."""
    started_at: datetime | None
    """In the API's time; None until its first page is committed."""
    offline: list[int]
    """Locations whose practice system NexHealth did not reach when the pass began."""
    unreadable: bool
    """Whether the key of a record could not be read."""
    revived: int
    """Rows marked as absent that it met."""
    complete: bool
    """Not where it would have begun later than now, by a clock that was ahead then: nobody knows how long ago that is."""
    judged_at: datetime | None
    """When absences were judged by it; since then it has no keys, or those that tell where rows are listed."""


def row_key(collection: Collection, alias: str) -> sql.Composed:
    """SQL text that names a row of `alias` within its institution: its id, or its key's columns joined by `/`."""
    columns = [sql.Identifier(alias, name) for name in collection.key if name != "institution_id"]
    if len(columns) == 1:
        return sql.SQL("{}::text").format(columns[0])
    return sql.SQL("concat_ws('/', {})").format(sql.SQL(", ").join(columns))


def answered_key(row_id: int) -> str:
    """Stands among the keys for a row (a patient) whose own list was answered."""
    return f"{ANSWERED_MARK}{row_id}"


def offline_locations(connection: psycopg.Connection, institution_id: int) -> set[int]:
    """Locations of practice systems that NexHealth is not known to reach (`read_status` is not green)."""
    return {row[0] for row in connection.execute(_OFFLINE, (institution_id,))}


def begin_seen(connection: psycopg.Connection, key: PassKey, begun_at: datetime, *, aside: bool = False) -> int:
    """Begin to keep what a pass meets, forgetting what it had met before; returns the id to keep it under.

    `aside`: what it had met when it was last complete is only set aside, until the new one is: others go by it.
    """
    if aside:
        with connection.transaction():
            _set_aside(connection, key)
            return begin_seen(connection, key, begun_at)
    row = connection.execute(
        # One id, and not a join, so that whatever the statistics say the index is used.
        f"WITH old AS (DELETE FROM nexhealth_seen WHERE pass_id = (SELECT id FROM nexhealth_seen_passes WHERE {_KEY}))"  # noqa: S608 - constants
        " INSERT INTO nexhealth_seen_passes"
        " (collection, institution_id, location_id, window_key, pass, begun_at, offline)"
        f" VALUES (%s, %s, %s, %s, %s, %s, ARRAY({_OFFLINE}))"
        " ON CONFLICT (collection, institution_id, location_id, window_key, pass) DO UPDATE SET"
        " begun_at = excluded.begun_at, started_at = NULL, offline = excluded.offline, unreadable = false,"
        " revived = 0, complete = false, judged_at = NULL, held_at = NULL RETURNING id",
        (*astuple(key), *astuple(key), begun_at, key.institution_id),
    ).fetchone()
    assert row is not None
    return int(row[0])


def _set_aside(connection: psycopg.Connection, key: PassKey) -> None:
    """Give a complete pass another name; one that is not is worth no more than what was set aside before."""
    whole = connection.execute(
        f"SELECT id FROM nexhealth_seen_passes WHERE {_KEY} AND complete FOR UPDATE",  # noqa: S608 - constants
        astuple(key),
    ).fetchone()
    if whole is not None:
        aside = replace(key, pass_name=f"{key.pass_name} {_ASIDE}")
        forget_seen(connection, aside)
        connection.execute("UPDATE nexhealth_seen_passes SET pass = %s WHERE id = %s", (aside.pass_name, whole[0]))


def find_seen(connection: psycopg.Connection, key: PassKey) -> SeenPass | None:
    """What is known of a pass that keeps, or kept, what it meets."""
    row = connection.execute(f"SELECT {_FIELDS} FROM nexhealth_seen_passes WHERE {_KEY}", astuple(key)).fetchone()  # noqa: S608 - constants
    return None if row is None else SeenPass(*row)


def seen_passes(connection: psycopg.Connection, collection: str, institution_id: int) -> dict[PassKey, SeenPass]:
    """All such passes of a collection at an institution."""
    rows = connection.execute(
        f"SELECT location_id, window_key, pass, {_FIELDS} FROM nexhealth_seen_passes"  # noqa: S608 - constants
        " WHERE collection = %s AND institution_id = %s",
        (collection, institution_id),
    )
    return {PassKey(collection, institution_id, *row[:3]): SeenPass(*row[3:]) for row in rows}


def record_seen(connection: psycopg.Connection, pass_id: int, keys: Iterable[str]) -> None:
    """Note keys that a pass met; the caller commits them with the page."""
    connection.execute(
        "INSERT INTO nexhealth_seen (pass_id, key) SELECT DISTINCT %s::bigint, unnest(%s::text[]) ON CONFLICT DO NOTHING",
        (pass_id, list(keys)),
    )


def record_staged(connection: psycopg.Connection, pass_id: int, collection: Collection, stage: str) -> None:
    """Note the keys of all rows in a stage, and how many of them had been marked as absent; before its merge."""
    connection.execute(
        sql.SQL(
            "WITH new AS (INSERT INTO nexhealth_seen (pass_id, key) SELECT DISTINCT %(pass)s::bigint, {key_s}"
            " FROM {stage} s ON CONFLICT DO NOTHING),"
            " back AS (SELECT count(DISTINCT {key_s}) AS rows FROM {stage} s JOIN {target} t ON {same}"
            " WHERE t.deleted_by = 'absence' AND s.source_read_at > t.deleted_at)"
            " UPDATE nexhealth_seen_passes SET revived = revived + back.rows FROM back"
            " WHERE id = %(pass)s AND back.rows > 0"
        ).format(
            key_s=row_key(collection, "s"),
            stage=sql.Identifier(stage),
            target=sql.Identifier(collection.table),
            same=sql.SQL(" AND ").join(
                sql.SQL("s.{0} = t.{0}").format(sql.Identifier(name)) for name in collection.key
            ),
        ),
        {"pass": pass_id},
        prepare=False,  # as the merge: a plan made while the table was small would scan all of it for ever
    )


def mark_unreadable(connection: psycopg.Connection, pass_id: int) -> None:
    """Note that the pass met a record whose key could not be read: by it nothing is absent."""
    connection.execute("UPDATE nexhealth_seen_passes SET unreadable = true WHERE id = %s", (pass_id,))


def complete_seen(connection: psycopg.Connection, pass_id: int, started_at: datetime) -> None:
    """Note that the pass met everything there is, and forget what was set aside; the caller commits it with the last page."""
    connection.execute(
        "WITH done AS (UPDATE nexhealth_seen_passes SET complete = true, started_at = %s WHERE id = %s RETURNING *),"
        " old AS (DELETE FROM nexhealth_seen_passes o USING done d WHERE o.collection = d.collection"
        " AND o.institution_id = d.institution_id AND o.location_id = d.location_id AND o.window_key = d.window_key"
        " AND o.pass = d.pass || %s RETURNING o.id)"
        " DELETE FROM nexhealth_seen WHERE pass_id = (SELECT id FROM old)",
        (started_at, pass_id, f" {_ASIDE}"),
    )


def forget_seen(connection: psycopg.Connection, key: PassKey) -> None:
    """Forget a pass and what it met."""
    connection.execute(
        f"WITH old AS (DELETE FROM nexhealth_seen_passes WHERE {_KEY} RETURNING id)"  # noqa: S608 - constants
        " DELETE FROM nexhealth_seen WHERE pass_id = (SELECT id FROM old)",
        astuple(key),
    )
