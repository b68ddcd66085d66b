"""What is known about a slice beside its rows: freshness, capabilities, patients' locations.

Each is written in the transaction of the rows it speaks of; the caller commits.
"""

from collections.abc import Collection, Iterable, Mapping, Set
from datetime import datetime, timedelta

import psycopg
from psycopg import errors, sql

from nexhealth_pipeline.catalog import collection as catalog
from nexhealth_pipeline.warehouse.unlisted import may_leave

__all__ = [
    "FOR_LONG",
    "NOT_OFFERED",
    "close_membership",
    "enabled_at",
    "record_capability",
    "record_change",
    "record_freshness",
    "record_locations",
    "record_membership",
    "refused_since",
]


NOT_OFFERED = ("not_enabled", "unsupported")
"""Statuses of a collection that a practice does not have."""
FOR_LONG = timedelta(days=2)
"""After so long a refusal is no trouble of NexHealth's or of a key: whoever offers the list again may have filled it anew.

Two nights fit in, which is as long as somebody needs to mend a right that was taken away by mistake.
"""


def record_freshness(
    connection: psycopg.Connection,
    *,
    institution_id: int,
    location_id: int,
    collection: str,
    complete_through: datetime | None,
    last_full_at: datetime | None,
    changed: bool,
) -> None:
    """Note how fresh a collection is at a location (0 = institution-wide), with the source's own status."""
    connection.execute(
        """
        INSERT INTO nexhealth_freshness AS f
            (institution_id, location_id, collection, complete_through, last_full_at, last_change_at,
             source_read_status, source_read_status_at)
        SELECT %(institution)s, %(location)s, %(collection)s, %(through)s, %(full)s,
               CASE WHEN %(changed)s THEN clock_timestamp() END, s.read_status, s.read_status_at
        FROM (VALUES (1)) one LEFT JOIN LATERAL (
            SELECT read_status, read_status_at FROM nexhealth_sync_status
            WHERE institution_id = %(institution)s AND deleted_at IS NULL
              AND (%(location)s = 0 OR locations @> jsonb_build_array(jsonb_build_object('id', %(location)s::bigint)))
            ORDER BY read_status_at NULLS FIRST LIMIT 1) s ON true
        ON CONFLICT (institution_id, location_id, collection) DO UPDATE SET
            complete_through = coalesce(excluded.complete_through, f.complete_through),
            last_full_at = coalesce(excluded.last_full_at, f.last_full_at),
            last_change_at = coalesce(excluded.last_change_at, f.last_change_at),
            source_read_status = excluded.source_read_status,
            source_read_status_at = excluded.source_read_status_at
        """,
        {
            "institution": institution_id,
            "location": location_id,
            "collection": collection,
            "through": complete_through,
            "full": last_full_at,
            "changed": changed,
        },
    )


def record_change(
    connection: psycopg.Connection, *, institution_id: int, location_ids: Collection[int], collection: str
) -> None:
    """Note that rows of a collection changed at locations (0 = institution-wide), by other means than a read of them.

    Nothing is noted of what was never read: how fresh it is nobody knows.
    """
    connection.execute(
        "UPDATE nexhealth_freshness SET last_change_at = clock_timestamp()"
        " WHERE institution_id = %s AND location_id = ANY(%s) AND collection = %s",
        (institution_id, sorted(location_ids), collection),
    )


def record_capability(
    connection: psycopg.Connection,
    *,
    institution_id: int,
    location_id: int,
    collection: str,
    status: str,
    evidence: str,
    at: datetime,
) -> None:
    """Note whether a practice offers a collection, at a moment of the API's time; `since` moves only when that changes.

    "empty" never replaces "supported": a list that held rows once is supported. What is refused for long has no state:
    should it be offered again, it is read in full. Minutes of refusals leave it: else every patient's list would be asked
    for again, and once more a day later. Of what is offered for the first time this is noted before its freshness.
    """
    connection.execute(
        """
        INSERT INTO nexhealth_capabilities AS c (institution_id, location_id, collection, status, evidence)
        VALUES (%(institution)s, %(location)s, %(collection)s, %(status)s, %(evidence)s)
        ON CONFLICT (institution_id, location_id, collection) DO UPDATE
            SET status = excluded.status, evidence = excluded.evidence, since = clock_timestamp(),
                enabled_at = CASE WHEN c.status IN ('not_enabled', 'unsupported') AND (
                        c.since < clock_timestamp() - %(long)s OR NOT EXISTS (
                            SELECT FROM nexhealth_freshness f WHERE f.institution_id = c.institution_id
                                AND f.location_id = c.location_id AND f.collection = c.collection
                                AND f.complete_through IS NOT NULL))
                    THEN %(at)s::timestamptz ELSE c.enabled_at END
            WHERE c.status <> excluded.status AND NOT (c.status = 'supported' AND excluded.status = 'empty')
        """,
        {"institution": institution_id, "location": location_id, "collection": collection}
        | {"status": status, "evidence": evidence, "at": at, "long": FOR_LONG},
    )
    if status in NOT_OFFERED:
        connection.execute(
            "DELETE FROM nexhealth_sync_state s USING nexhealth_capabilities c"
            " WHERE (s.collection, s.institution_id, s.location_id) = (%s, %s, %s)"
            " AND (c.collection, c.institution_id, c.location_id) = (s.collection, s.institution_id, s.location_id)"
            " AND c.since < clock_timestamp() - %s",
            (collection, institution_id, location_id, FOR_LONG),
        )


def enabled_at(
    connection: psycopg.Connection, *, institution_id: int, location_id: int, collection: str
) -> datetime | None:
    """When (API's time) a collection that a practice did not have was enabled; None = it always was, or is not."""
    row = connection.execute(
        "SELECT enabled_at FROM nexhealth_capabilities"
        " WHERE (institution_id, location_id, collection) = (%s, %s, %s) AND status <> ALL(%s)",
        (institution_id, location_id, collection, list(NOT_OFFERED)),
    ).fetchone()
    return row[0] if row else None


def refused_since(
    connection: psycopg.Connection, *, institution_id: int, location_id: int, collection: str
) -> datetime | None:
    """Since when (the database's time) a collection is refused; None where it was answered when it was asked for last."""
    row = connection.execute(
        "SELECT since FROM nexhealth_capabilities"
        " WHERE (institution_id, location_id, collection) = (%s, %s, %s) AND status = ANY(%s)",
        (institution_id, location_id, collection, list(NOT_OFFERED)),
    ).fetchone()
    return row[0] if row else None


def record_membership(
    connection: psycopg.Connection,
    *,
    institution_id: int,
    location_id: int,
    patient_ids: Iterable[int],
    seen_at: datetime,
    new: bool = False,
) -> None:
    """Note that a location lists these patients; a membership that stands is not touched, one that ended begins anew.

    `new` says that none of them was in the warehouse before, so that they need not be looked for.
    """
    place = {"institution": institution_id, "location": location_id, "seen": seen_at}
    ids = {*patient_ids}
    if ids and not new:
        ids -= _standing(connection, place, ids)
    if not ids or (new and _added(connection, place, ids)):
        return
    connection.execute(
        "INSERT INTO nexhealth_patient_locations AS l (institution_id, patient_id, location_id, first_seen)"
        " SELECT %(institution)s, u.id, %(location)s, %(seen)s FROM unnest(%(ids)s::bigint[]) AS u(id)"
        " ON CONFLICT (institution_id, patient_id, location_id) DO UPDATE"
        # As if first seen now, so that a read which began before that and did not meet it does not end it.
        " SET gone_at = NULL, first_seen = excluded.first_seen WHERE l.gone_at IS NOT NULL",
        {**place, "ids": _array(ids)},
    )


def _standing(connection: psycopg.Connection, place: Mapping[str, object], ids: Set[int]) -> set[int]:
    """Those of the patients that the location lists already."""
    # A plan made while the table was small, or a join with the ids, would scan all of it.
    found = connection.execute(
        "SELECT patient_id FROM nexhealth_patient_locations WHERE institution_id = %(institution)s"
        " AND location_id = %(location)s AND patient_id = ANY(%(ids)s::bigint[]) AND gone_at IS NULL",
        {**place, "ids": _array(ids)},
        prepare=False,
    )
    return {one for (one,) in found}


def _array(ids: Set[int]) -> str:
    """As PostgreSQL writes it, in their order: the driver takes longer over a list, the index over any other order."""
    return f"{{{','.join(map(str, sorted(ids)))}}}"


def _added(connection: psycopg.Connection, place: Mapping[str, object], ids: Set[int]) -> bool:
    """Insert memberships as they are, which costs 0.4 of looking for them; False where there was one already."""
    try:
        with connection.transaction():
            connection.execute(
                "INSERT INTO nexhealth_patient_locations (institution_id, patient_id, location_id, first_seen)"
                " SELECT %(institution)s, u.id, %(location)s, %(seen)s FROM unnest(%(ids)s::bigint[]) AS u(id)",
                {**place, "ids": _array(ids)},
            )
    except errors.UniqueViolation:
        return False
    return True


def record_locations(
    connection: psycopg.Connection,
    institution_id: int,
    patient_id: int,
    location_ids: Collection[int],
    seen_at: datetime,
) -> None:
    """Note which locations list a patient, as its single read tells: it is gone from all others it was in by then."""
    for location_id in location_ids:
        record_membership(
            connection,
            institution_id=institution_id,
            location_id=location_id,
            patient_ids=[patient_id],
            seen_at=seen_at,
        )
    connection.execute(
        "UPDATE nexhealth_patient_locations SET gone_at = clock_timestamp()"
        " WHERE institution_id = %s AND patient_id = %s AND gone_at IS NULL AND location_id <> ALL(%s) AND first_seen <= %s",
        (institution_id, patient_id, list(location_ids), seen_at),
    )


def close_membership(
    connection: psycopg.Connection,
    collection: catalog.Collection,
    institution_id: int,
    location_id: int,
    pass_id: int,
    *,
    began: datetime,
) -> int:
    """End a complete membership pass: rows of the collection (patients) that it did not meet are gone from the location.

    Left alone are patients first seen after the pass `began`, and those whom lists may leave out. Nothing is marked
    where the answer was empty, held a record that could not be read, or came while NexHealth did not reach the
    practice. `pass_id`: where it kept what it met (`warehouse.seen`). Returns the rows marked.
    """
    done = connection.execute(
        sql.SQL("""
        UPDATE nexhealth_patient_locations l SET gone_at = clock_timestamp()
        WHERE l.institution_id = %(i)s AND l.location_id = %(l)s AND l.gone_at IS NULL AND l.first_seen < %(began)s
          AND EXISTS (SELECT FROM nexhealth_seen WHERE pass_id = %(p)s)
          AND NOT EXISTS (SELECT FROM nexhealth_seen_passes WHERE id = %(p)s AND (unreadable OR %(l)s = ANY(offline)))
          AND NOT EXISTS (SELECT FROM nexhealth_seen s WHERE s.pass_id = %(p)s AND s.key = l.patient_id::text)
          AND {}
        """).format(may_leave(collection)),
        {"i": institution_id, "l": location_id, "p": pass_id, "began": began},
    )
    return done.rowcount
