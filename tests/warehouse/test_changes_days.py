"""Days of the change feed: made ahead and removed beside whoever writes or follows, and nothing of them is lost."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from nexhealth_pipeline.errors import ChangesGone
from nexhealth_pipeline.warehouse.changes import changes_since, make_partitions, prune

from .conftest import Rows
from .kit import Table, gadget, until_it_waits
from .test_changes import LATER, OLD_DAY, followed, old_day, written

pytestmark = pytest.mark.timeout(900)  # as there: `followed` may wait for minutes


@pytest.fixture
def table(connection: psycopg.Connection) -> Table:
    return Table(connection)


@pytest.fixture
def table_there(other: psycopg.Connection, table: Table) -> Table:
    return Table(other)


@pytest.fixture
def unhurried(connection: psycopg.Connection) -> Iterator[None]:
    """Making partitions waits as long as a busy machine may need to bring the others into its way."""
    change = "ALTER FUNCTION nexhealth_changes_ahead(integer) SET lock_timeout = '{}'"
    connection.execute(change.format("60s"))
    yield
    connection.execute(change.format("500ms"))


def test_days_are_made_ahead_and_a_missing_one_loses_nothing(
    table: Table, other: psycopg.Connection, rows: Rows
) -> None:
    """Risk: a machine that slept for a week, and its first change finds no partition."""
    parts = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'nexhealth_changes'::regclass"
    assert len({row[0] for row in rows(parts)} - {"nexhealth_changes_default"}) >= 4
    assert make_partitions(table.connection) == []
    (name,) = (
        row[0] for row in rows("SELECT format('nexhealth_changes_%s', to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM_DD'))")
    )
    table.connection.execute(f"DROP TABLE {name}")
    table.load(gadget())
    with other.transaction():
        assert other.execute("SELECT count(*) FROM nexhealth_changes_default").fetchone() == (1,)
        assert make_partitions(table.connection) == [], "a reader that stays is not waited for"
    assert make_partitions(table.connection) == [name]
    assert rows("SELECT count(*) FROM nexhealth_changes_default") == [(0,)]
    assert rows(f"SELECT count(*) FROM {name}") == [(1,)]
    table.load(gadget(note="second", updated_at=LATER))
    assert rows(f"SELECT count(*) FROM {name}") == [(2,)]


@pytest.mark.usefixtures("unhurried")
def test_what_is_committed_while_days_are_made_ahead_stays(
    table: Table, table_there: Table, shared_url: str, rows: Rows
) -> None:
    """Risk: it is taken for another server's, as its number is not known yet when the function begins."""
    with (
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(shared_url) as older,
        psycopg.connect(shared_url, autocommit=True) as process,
    ):
        older.execute("SELECT pg_current_xact_id()")
        table_there.connection.execute("BEGIN")
        table_there.load(gadget(1))
        with table.connection.transaction():
            table.connection.execute("LOCK TABLE nexhealth_changes_default IN ACCESS EXCLUSIVE MODE")
            made = pool.submit(make_partitions, process)
            until_it_waits(older, process)
            table_there.connection.execute("COMMIT")
        made.result()
    assert rows("SELECT id FROM nexhealth_changes") == [(1,)]


@pytest.mark.usefixtures("unhurried")
def test_a_change_that_comes_while_others_move_to_their_days_partition_costs_no_load(
    table: Table, table_there: Table, other: psycopg.Connection, shared_url: str
) -> None:
    """Risk: it was meant for the default partition, which may not take that day any more, and ends the run."""
    day = f"nexhealth_changes_{datetime.now(UTC):%Y_%m_%d}"
    table.connection.execute(f"DROP TABLE {day}")
    table.load(gadget(1))
    with (
        ThreadPoolExecutor(2) as pool,
        psycopg.connect(shared_url, autocommit=True) as holder,
        psycopg.connect(shared_url, autocommit=True) as process,
    ):
        with holder.transaction():
            holder.execute("LOCK TABLE nexhealth_changes_default IN ACCESS SHARE MODE")
            made = pool.submit(make_partitions, process)
            until_it_waits(table.connection, process)
            loaded = pool.submit(table_there.load, gadget(2))
            until_it_waits(table.connection, other)
        assert loaded.result() == (1, 0)
        assert made.result() == [day]
    assert sorted(id_ for (id_,) in written(table.connection, "id")) == [1, 2]


def test_an_old_day_that_is_being_removed_keeps_no_run_from_starting(table: Table, other: psycopg.Connection) -> None:
    """Every run sees to the days ahead before anything else."""
    old_day(table.connection)
    with other.transaction():
        other.execute(f"LOCK TABLE {OLD_DAY} IN ACCESS EXCLUSIVE MODE")
        assert make_partitions(table.connection) == []
    assert prune(table.connection, 7) == [OLD_DAY]


def test_a_partition_is_its_tables_owners_whoever_makes_it(connection: psycopg.Connection, rows: Rows) -> None:
    """Risk: an administrator's upgrade makes one that the daily run may not remove, for ever."""
    connection.execute("CREATE ROLE nexhealth_test_keeper; GRANT ALL ON SCHEMA public TO nexhealth_test_keeper")
    make_partitions(connection)
    day = f"nexhealth_changes_{datetime.now(UTC) + timedelta(days=3):%Y_%m_%d}"
    try:
        connection.execute(f"ALTER TABLE nexhealth_changes OWNER TO nexhealth_test_keeper; DROP TABLE {day}")
        assert day in make_partitions(connection)
        assert rows(f"SELECT tableowner::text FROM pg_tables WHERE tablename = '{day}'") == [("nexhealth_test_keeper",)]
    finally:
        connection.execute(
            "REASSIGN OWNED BY nexhealth_test_keeper TO CURRENT_USER; DROP OWNED BY nexhealth_test_keeper;"
            " DROP ROLE nexhealth_test_keeper"
        )


def test_old_days_go_and_who_has_not_read_them_is_told(table: Table, rows: Rows) -> None:
    db = table.connection
    old_day(db)
    table.load(gadget())
    first, second, third, newest = followed(db, None)
    assert prune(db, 7) == [OLD_DAY]
    assert prune(db, 7) == []
    assert rows("SELECT to_regclass('nexhealth_changes_2020_01_01'), count(*) FROM nexhealth_changes") == [(None, 1)]
    for cursor in (first.cursor, second.cursor):
        with pytest.raises(ChangesGone, match="take one anew"):
            changes_since(db, cursor)
    assert changes_since(db, third.cursor) == changes_since(db, None) == [newest]
    assert changes_since(db, newest.cursor) == []


def test_pruning_waits_for_nobody_who_writes(table: Table, table_there: Table, rows: Rows) -> None:
    """Risk: retention queues behind a long load, and every other load behind retention."""
    old_day(table.connection)
    with table_there.connection.transaction():
        table_there.load(gadget())
        assert prune(table.connection, 7) == []
        assert rows("SELECT count(*) FROM nexhealth_changes") == [(0,)], "emptied, though it could not be dropped"
    assert prune(table.connection, 7) == [OLD_DAY]
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        prune(table.connection, 0)
