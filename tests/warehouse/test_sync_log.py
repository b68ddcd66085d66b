"""The sync log by month: no row is lost on the way to a month's partition, and old months become sums."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from nexhealth_pipeline.errors import WarehouseError
from nexhealth_pipeline.warehouse import migrate
from nexhealth_pipeline.warehouse.connect import connect, driver_errors
from nexhealth_pipeline.warehouse.sync_log import Counts, SyncLog, make_partitions, prune

from .conftest import Rows

ROLE = "nexhealth_test_log_reader"
PARTS = (
    "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'nexhealth_sync_logs'::regclass"
    " AND inhrelid::regclass::text <> 'nexhealth_sync_logs_default'"
)
OLD_ROWS = """
INSERT INTO nexhealth_sync_logs (run_id, asset, collection, institution_id, mode, status, started_at, finished_at,
    pages, records_read, error)
SELECT 'old', 'nexhealth_gadgets', 'gadgets', 7, 'full', status, begun::timestamptz, begun::timestamptz + '30 seconds',
       2, 10, CASE status WHEN 'failed' THEN 'why' END
FROM (VALUES ('2024-03-01 00:00+00', 'succeeded'), ('2024-03-31 23:59+00', 'failed'), ('2024-03-31 12:00+00', 'skipped'),
    ('2024-05-07 08:00+00', 'succeeded')) given (begun, status)
"""
SUMS = (
    "SELECT day::text, collection, institution_id, slices, succeeded, failed, skipped, seconds, pages, records_read"
    " FROM nexhealth_sync_log_days ORDER BY day"
)


def open_row(connection: psycopg.Connection, run_id: str = "r") -> SyncLog:
    return SyncLog.open(
        connection,
        run_id=run_id,
        asset="nexhealth_gadgets",
        collection="gadgets",
        institution_id=7,
        location_id=3,
        partition_key="x.3",
        mode="full",
    )


def test_a_row_lies_in_its_month_and_one_without_a_partition_moves_when_it_is_made(
    connection: psycopg.Connection, rows: Rows
) -> None:
    """Risk: nobody makes partitions for a quarter, and the first sync after it cannot log."""
    begun = make_partitions(connection)  # of a month that began since the template was made
    month = f"nexhealth_sync_logs_{datetime.now(UTC):%Y_%m}"
    assert len(rows(PARTS)) == 4 + len(begun)
    assert make_partitions(connection) == []
    connection.execute(f"DROP TABLE {month}")
    log = open_row(connection)
    assert rows("SELECT count(*) FROM nexhealth_sync_logs_default") == [(1,)]
    assert make_partitions(connection) == [month]
    log.finish(connection, "succeeded", Counts(pages=3))
    assert rows(f"SELECT id, status, pages FROM {month}") == [(log.row_id, "succeeded", 3)]


def test_old_months_become_sums_a_day_and_go(connection: psycopg.Connection, rows: Rows) -> None:
    connection.execute("SELECT nexhealth_sync_logs_month('2024-03-01')")
    connection.execute(OLD_ROWS)  # those of May lie in the default partition
    kept = open_row(connection)
    assert prune(connection, 3) == ["nexhealth_sync_logs_2024_03"]
    expected = [
        ("2024-03-01", "gadgets", 7, 1, 1, 0, 0, 30.0, 2, 10),
        ("2024-03-31", "gadgets", 7, 2, 0, 1, 1, 60.0, 4, 20),
        ("2024-05-07", "gadgets", 7, 1, 1, 0, 0, 30.0, 2, 10),
    ]
    assert rows(SUMS) == expected
    assert rows("SELECT id FROM nexhealth_sync_logs") == [(kept.row_id,)]
    assert prune(connection, 3) == []
    assert rows(SUMS) == expected, "a second look counts nothing twice"
    connection.execute("DELETE FROM nexhealth_sync_log_days")


def test_months_that_may_still_be_asked_for_stay(connection: psycopg.Connection, rows: Rows) -> None:
    """The month that ended last is not one month old before this one has ended."""
    first = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    last, before = first - timedelta(days=1), (first - timedelta(days=1)).replace(day=1) - timedelta(days=1)
    for moment in (last, before):
        connection.execute("SELECT nexhealth_sync_logs_month(%s)", (moment.replace(day=1, tzinfo=None),))
        connection.execute(
            "UPDATE nexhealth_sync_logs SET started_at = %s WHERE id = %s", (moment, open_row(connection).row_id)
        )
    assert prune(connection, 1) == [f"nexhealth_sync_logs_{before:%Y_%m}"]
    assert rows("SELECT started_at FROM nexhealth_sync_logs") == [(last,)]
    connection.execute(f"DROP TABLE nexhealth_sync_logs_{last:%Y_%m}; DELETE FROM nexhealth_sync_log_days")


def test_a_run_that_writes_the_log_is_not_kept_waiting(
    connection: psycopg.Connection, other: psycopg.Connection, rows: Rows
) -> None:
    """Dropping a partition needs all writers away: while one is busy the rows become sums, and the empty table stays."""
    connection.execute("SELECT nexhealth_sync_logs_month('2024-03-01')")
    connection.execute(OLD_ROWS)
    with other.transaction():
        log = open_row(other)
        assert prune(connection, 3) == []
        assert len(rows(SUMS)) == 3
        log.progress(other, Counts(pages=1))
    assert prune(connection, 3) == ["nexhealth_sync_logs_2024_03"]
    assert len(rows(SUMS)) == 3
    assert rows("SELECT pages FROM nexhealth_sync_logs") == [(1,)]
    connection.execute("DELETE FROM nexhealth_sync_log_days")


def test_less_than_a_month_is_refused(connection: psycopg.Connection) -> None:
    with pytest.raises(WarehouseError, match="22023"), driver_errors("removing what is old"):
        prune(connection, 0)


def test_a_log_written_before_keeps_its_rows_numbers_and_readers(empty_database_url: str) -> None:
    """Risk: an upgrade that loses the history of runs, or shuts out whoever was let in."""
    migrate._migrate(empty_database_url, "0004")
    try:
        with psycopg.connect(empty_database_url, autocommit=True) as db:
            db.execute(OLD_ROWS)
            db.execute(
                "INSERT INTO nexhealth_sync_logs (run_id, asset, collection, mode, status) VALUES ('r', 'a', 'c', 'full', 'running')"
            )
            db.execute(f"CREATE ROLE {ROLE}; GRANT SELECT ON nexhealth_sync_logs TO {ROLE}")
            before = db.execute("SELECT * FROM nexhealth_sync_logs ORDER BY id").fetchall()
        migrate.upgrade(empty_database_url)
        with connect(empty_database_url, autocommit=True) as db:
            assert db.execute("SELECT * FROM nexhealth_sync_logs ORDER BY id").fetchall() == before
            assert db.execute("SELECT count(*) FROM nexhealth_sync_logs_default").fetchone() == (0,)
            parts = {row[0] for row in db.execute(PARTS)}
            assert {"nexhealth_sync_logs_2024_03", "nexhealth_sync_logs_2024_05"} < parts
            assert open_row(db).row_id > max(row[0] for row in before)
            closed = db.execute("UPDATE nexhealth_sync_logs SET status = 'interrupted' WHERE status = 'running'")
            assert closed.rowcount == 2
            db.execute(f"SET ROLE {ROLE}")
            assert db.execute("SELECT count(*) FROM nexhealth_sync_logs").fetchone() == (6,)
    finally:
        with psycopg.connect(empty_database_url, autocommit=True) as db:
            db.execute(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")


def test_a_view_that_keeps_the_log_from_being_replaced_is_named(empty_database_url: str) -> None:
    """Nobody can look up which view 2BP01 means; and nothing can be read before the upgrade is done."""
    migrate._migrate(empty_database_url, "0004")
    with psycopg.connect(empty_database_url, autocommit=True) as db:
        db.execute(
            'CREATE SCHEMA theirs; CREATE VIEW theirs."slow Slices" AS SELECT collection, bytes FROM nexhealth_sync_logs;'
            " CREATE VIEW theirs.runs AS SELECT run_id FROM nexhealth_runs"
        )
        with pytest.raises(
            WarehouseError, match=r'view theirs\."slow Slices" is built: drop .*`nexhealth db upgrade`'
        ) as caught:
            migrate.upgrade(empty_database_url)
        assert "theirs.runs" not in str(caught.value)
        assert "cannot drop" not in str(caught.value)
        assert migrate.current_revision(db) == "0004"
        db.execute('DROP VIEW theirs."slow Slices"')
        migrate.upgrade(empty_database_url)
        assert migrate.current_revision(db) == migrate.HEAD


def test_the_log_works_on_the_oldest_postgresql(oldest_database_url: str) -> None:
    with psycopg.connect(oldest_database_url, autocommit=True) as db:
        db.execute("SELECT nexhealth_sync_logs_month('2024-03-01')")
        db.execute(OLD_ROWS)
        assert prune(db, 3) == ["nexhealth_sync_logs_2024_03"]
        open_row(db).finish(db, "succeeded", Counts())
        assert db.execute("SELECT status FROM nexhealth_sync_logs").fetchall() == [("succeeded",)]
