"""Rows as they were, asked for by ids that are not the key: half of it, or no part of it, and then they may change."""

import psycopg
import pytest

from .test_history import now


def test_rows_of_other_keys_are_found_by_their_ids_too_where_they_have_any(connection: psycopg.Connection) -> None:
    """An entry of a treatment plan has an id that is half of its key; a state of synchronisation has none."""
    connection.execute(
        "INSERT INTO nexhealth_treatment_plan_procedures (institution_id, treatment_plan_id, id, synced_at,"
        " source_read_at, row_hash) SELECT 7, plan, id, now(), now(), '' FROM (VALUES (1, 5), (2, 5), (2, 6)) v (plan, id)"
    )
    try:
        connection.execute(
            "UPDATE nexhealth_treatment_plan_procedures SET deleted_at = now() WHERE treatment_plan_id = 2"
        )
        rows = connection.execute(
            "SELECT key, version FROM nexhealth_asof('treatment_plan_procedures', now(), ids => '{5}') ORDER BY 2"
        ).fetchall()
        assert rows == [({"id": 5, "treatment_plan_id": 1}, 1), ({"id": 5, "treatment_plan_id": 2}, 2)]
    finally:
        connection.execute("DELETE FROM nexhealth_treatment_plan_procedures")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="ids: rows of collection 'sync_status' have none"):
        connection.execute("SELECT * FROM nexhealth_asof('sync_status', now(), ids => '{5}')")


def test_a_row_is_found_by_the_id_that_it_had_then(connection: psycopg.Connection) -> None:
    """Risk: who held a coverage last year is asked for, and whoever holds it now is shown as if it had been them."""
    moments = []
    try:
        connection.execute(
            "INSERT INTO nexhealth_coverage_subscribers (institution_id, coverage_id, id, synced_at, source_read_at, row_hash)"
            " VALUES (7, 1, 5, now(), now(), ''), (7, 2, 9, now(), now(), ''), (8, 1, 9, now(), now(), '')"
        )
        for holder in (9, 6, 5, 9):
            moments.append(now(connection))
            connection.execute(
                "UPDATE nexhealth_coverage_subscribers SET id = %s, synced_at = clock_timestamp()"
                " WHERE institution_id = 7 AND coverage_id = 1",
                (holder,),
            )
        moments.append(now(connection))
        query = "SELECT * FROM nexhealth_asof('coverage_subscribers', %s, ids => %s) ORDER BY institution_id, key"
        all_rows = "SELECT * FROM nexhealth_asof('coverage_subscribers', %s) ORDER BY institution_id, key"
        held = []
        for moment in moments:
            everything = connection.execute(all_rows, (moment,)).fetchall()
            for ids in ([5], [6], [9], [5, 9], [404]):
                assert connection.execute(query, (moment, ids)).fetchall() == [
                    row for row in everything if row[1] in ids
                ]
            held += [row[1] for row in everything if row[0] == 7 and row[2] == {"coverage_id": 1}]
        assert held == [5, 9, 6, 5, 9]
    finally:
        connection.execute("DELETE FROM nexhealth_coverage_subscribers")
