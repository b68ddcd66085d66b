"""What is noted once absences were judged, and which keys the passes that they were judged by keep.

The rows themselves are marked by `warehouse.absence`.
"""

from collections.abc import Collection as AnyCollection
from collections.abc import Iterable, Sequence

import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.warehouse.seen import ANSWERED_ID, ANSWERED_MARK, SeenPass

__all__ = ["end_turns", "held", "judged", "overtake"]


def held(connection: psycopg.Connection, passes: Iterable[SeenPass]) -> None:
    """Note that the brake held what these passes lack, and keep what they met; the caller commits.

    One that was begun anew since is another run's, and left alone.
    """
    known = {one.id: one.begun_at for one in passes}
    connection.execute(
        "UPDATE nexhealth_seen_passes p SET held_at = clock_timestamp()"
        " FROM unnest(%s::bigint[], %s::timestamptz[]) u(id, begun_at) WHERE p.id = u.id AND p.begun_at = u.begun_at",
        (list(known), list(known.values())),
    )


def judged(
    connection: psycopg.Connection,
    collection: Collection,
    passes: Iterable[SeenPass],
    shared: AnyCollection[int] = (),
) -> None:
    """Note that absences were judged by these passes, and forget what they met; the caller commits.

    One that was begun anew since is another run's, and left alone. Where the request alone tells the location, a row
    stands under the first one that listed it. Should that one leave the database, only the others' reads know the row,
    and they may be judged on other nights. So until they are read anew, passes of a database that several share
    (`shared`, by id) keep all that they met, and others what stands under another location.
    """
    known = {one.id: one.begun_at for one in passes}
    statement = sql.SQL(
        "WITH judged AS (UPDATE nexhealth_seen_passes p SET judged_at = clock_timestamp()"
        " FROM unnest(%(ids)s::bigint[], %(begun)s::timestamptz[]) u(id, begun_at)"
        " WHERE p.id = u.id AND p.begun_at = u.begun_at RETURNING p.id)"
        " DELETE FROM nexhealth_seen s WHERE s.pass_id = ANY(ARRAY(SELECT id FROM judged WHERE id <> ALL(%(kept)s::bigint[])))"
    ).format()
    if collection.placed_by_request:
        statement += _stands_nowhere_else(collection)
    kept = list(shared) if collection.placed_by_request else []
    connection.execute(statement, {"ids": list(known), "begun": list(known.values()), "kept": kept})


def _stands_nowhere_else(collection: Collection) -> sql.Composed:
    """Condition on a key `s`: its row stands under no other location than its pass is of. Such rows have an id."""
    return sql.SQL(
        " AND NOT EXISTS (SELECT FROM nexhealth_seen_passes p JOIN {} t ON t.institution_id = p.institution_id"
        " AND t.id = CASE WHEN s.key ~ '^[0-9]{{1,18}}$' THEN s.key::bigint END"
        " WHERE p.id = s.pass_id AND t.location_id <> p.location_id)"
    ).format(sql.Identifier(collection.table))


def end_turns(connection: psycopg.Connection, collection: str, institution_id: int, passes: Iterable[SeenPass]) -> None:
    """Note that absences were judged by the lists under rows that these passes met; the caller commits.

    Before `judged`. A list read by a pass that came to no judgement stays among the first whose turn it is; so do
    those of a pass that was begun anew since, which is another run's.
    """
    known = {one.id: one.begun_at for one in passes}
    connection.execute(
        # Locked by id, the order in which reads note them.
        sql.SQL(
            "WITH ended AS (SELECT r.collection, r.institution_id, r.patient_id"
            " FROM unnest(%s::bigint[], %s::timestamptz[]) u(id, begun_at)"
            " JOIN nexhealth_seen_passes p ON p.id = u.id AND p.begun_at = u.begun_at"
            " JOIN nexhealth_seen s ON s.pass_id = p.id"
            " JOIN nexhealth_child_reads r ON r.collection = %s AND r.institution_id = %s AND r.patient_id = {}"
            " ORDER BY r.patient_id FOR NO KEY UPDATE OF r)"
            " UPDATE nexhealth_child_reads r SET judged_at = clock_timestamp() FROM ended e"
            " WHERE (r.collection, r.institution_id, r.patient_id) = (e.collection, e.institution_id, e.patient_id)"
        ).format(ANSWERED_ID),
        (list(known), list(known.values()), collection, institution_id),
    )


def overtake(connection: psycopg.Connection, passes: Sequence[int]) -> None:
    """Leave lists under rows that these passes met to them: passes begun before do not judge them any more.

    A reconcile may judge hours after its reads. What a list lacked then and held when it was read and judged in turn
    would be marked, as nothing tells of a record that is there and did not change. While the passes are held; the
    caller commits.
    """
    connection.execute(
        sql.SQL(
            # Locked as by whoever begins one anew: the pass before its keys.
            "WITH older AS (SELECT o.id FROM nexhealth_seen_passes p JOIN nexhealth_seen_passes o"
            " ON (o.collection, o.institution_id, o.location_id) = (p.collection, p.institution_id, p.location_id)"
            " WHERE p.id = ANY(%(passes)s) AND o.begun_at < p.begun_at AND o.judged_at IS NULL FOR SHARE OF o)"
            " DELETE FROM nexhealth_seen s USING older, nexhealth_seen n WHERE s.pass_id = older.id AND n.key = s.key"
            " AND n.pass_id = ANY(%(passes)s) AND starts_with(s.key, {})"
        ).format(sql.Literal(ANSWERED_MARK)),
        {"passes": list(passes)},
    )
