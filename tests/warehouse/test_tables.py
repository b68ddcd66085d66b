"""Tables follow the catalog: made, widened, described; never narrowed."""

import threading
from dataclasses import replace
from typing import Any, Self

import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Column, Phi, SqlType, Window, column, flatten
from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.errors import WarehouseError
from nexhealth_pipeline.warehouse import tables
from nexhealth_pipeline.warehouse.tables import (
    create_table,
    ensure_indexes,
    ensure_tables,
    missing_tables,
    table_columns,
)

from .conftest import Rows
from .kit import GADGETS, SOFT_DELETED, Table, gadget

WIDER = replace(
    GADGETS,
    columns=flatten(GADGETS.columns, column("colour", SqlType.TEXT, Phi.NONE, 'Colour, 100 % of it\'s "look".')),
    indexes=(*GADGETS.indexes, ("colour",), ("institution_id", "name")),
)


def comments(connection: psycopg.Connection, table: str) -> dict[str, str | None]:
    return dict(
        connection.execute(
            "SELECT attname, col_description(attrelid, attnum) FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
            (table,),
        ).fetchall()
    )


def queries(connection: psycopg.Connection, run: object) -> int:
    """Statements sent while `run` runs, transaction control left out."""
    sent: list[object] = []

    class Counting(psycopg.Cursor):
        def execute(self, *args: Any, **more: Any) -> Self:
            sent.append(args[0])
            return super().execute(*args, **more)

    connection.cursor_factory = Counting
    run()  # type: ignore[operator]
    connection.cursor_factory = psycopg.Cursor
    return len(sent)


def test_a_new_warehouse_takes_few_statements(connection: psycopg.Connection) -> None:
    """It has a thousand columns with a comment each: a round trip for each took half of the time."""
    two = [GADGETS, SOFT_DELETED]
    assert queries(connection, lambda: ensure_tables(connection, two)) <= 7 + 8 * len(two)
    changes = connection.execute("SELECT change FROM nexhealth_schema_changes ORDER BY id DESC LIMIT 2").fetchall()
    assert changes == [(f"created table {one.table}",) for one in reversed(two)]


def test_a_table_has_key_types_and_comments_of_its_declaration(connection: psycopg.Connection, rows: Rows) -> None:
    assert ensure_tables(connection, [GADGETS]) == ["created table nexhealth_gadgets"]
    types: dict[Any, Any] = dict(
        rows(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = 'nexhealth_gadgets'::regclass AND attnum > 0"
        )
    )
    assert types["price"] == "numeric"
    assert types["start_time"] == "timestamp with time zone"
    assert types["raw"] == types["tags"] == "jsonb"
    assert types["row_hash"] == "bytea"
    assert list(types)[:2] == ["institution_id", "id"]
    assert rows("SELECT obj_description('nexhealth_gadgets'::regclass)") == [("A made-up thing.",)]
    (index,) = rows("SELECT indexdef FROM pg_indexes WHERE tablename = 'nexhealth_gadgets'")
    assert "UNIQUE" in index[0]
    assert "(institution_id, id)" in index[0]


INDEXES = ["added index nexhealth_gadgets_name_idx", "added index nexhealth_gadgets_location_id_start_time_idx"]


def test_a_table_gets_its_indexes_once_it_has_rows(connection: psycopg.Connection, rows: Rows) -> None:
    """Row by row they were a fifth of a first load."""
    table = Table(connection)
    assert ensure_indexes(connection, [GADGETS]) == []
    assert ensure_tables(connection, [GADGETS]) == []
    table.load(gadget())
    assert ensure_indexes(connection, [GADGETS]) == INDEXES
    assert ensure_indexes(connection, [GADGETS]) == []
    made = {row[0] for row in rows("SELECT indexdef FROM pg_indexes WHERE tablename = 'nexhealth_gadgets'")}
    assert any("(location_id, start_time)" in text for text in made)
    assert len(made) == 3
    assert [row[0] for row in rows("SELECT change FROM nexhealth_schema_changes ORDER BY id")][1:] == INDEXES


def test_setting_up_by_hand_waits_for_a_writer(connection: psycopg.Connection, other: psycopg.Connection) -> None:
    """Risk: an owner who loads nothing is told that all is done, and there never is an index."""
    Table(connection).load(gadget())
    other.autocommit = False
    other.execute("UPDATE nexhealth_gadgets SET name = 'Other'")
    done: list[list[str]] = []
    indexing = threading.Thread(target=lambda: done.append(ensure_indexes(connection, [GADGETS], insist=True)))
    indexing.start()
    indexing.join(0.1)
    assert not done
    other.rollback()
    indexing.join(10)
    assert done == [INDEXES]


def test_a_role_that_only_loads_leaves_indexes_to_the_owner(connection: psycopg.Connection) -> None:
    Table(connection).load(gadget())
    connection.execute("CREATE ROLE only_loads; GRANT INSERT, SELECT ON nexhealth_gadgets TO only_loads")
    try:
        connection.execute("SET ROLE only_loads")
        assert ensure_indexes(connection, [GADGETS]) == []
    finally:
        connection.execute("RESET ROLE; DROP OWNED BY only_loads; DROP ROLE only_loads")
    assert ensure_indexes(connection, [GADGETS]) == INDEXES


@pytest.mark.parametrize(
    "kind", [{"per": "patients"}, {"inside": "patients"}, {"window": Window("start", "end", "start_time")}]
)
def test_tables_whose_rows_are_looked_up_while_they_come_are_made_with_indexes(
    connection: psycopg.Connection, rows: Rows, kind: dict[str, Any]
) -> None:
    """A list under a row, or a month: else each reads the whole table, in a first load of thousands of them."""
    one = replace(GADGETS, **kind)
    ensure_tables(connection, [one])
    assert rows("SELECT count(*) FROM pg_indexes WHERE tablename = 'nexhealth_gadgets'") == [(3,)]


def test_indexes_take_longer_than_a_statement_may(connection: psycopg.Connection, other: psycopg.Connection) -> None:
    """Risk: servers with a timeout for statements let every batch in and no index."""
    Table(connection).load(gadget())
    other.autocommit = False
    other.execute("UPDATE nexhealth_gadgets SET name = 'Other'")
    ended = threading.Timer(3, other.rollback)
    try:
        connection.execute("SET statement_timeout = '2s'")
        ended.start()
        assert ensure_indexes(connection, [GADGETS]) == INDEXES
    finally:
        ended.join()
        connection.execute("RESET statement_timeout")


def test_a_run_that_is_stopped_makes_no_index(connection: psycopg.Connection) -> None:
    Table(connection).load(gadget())
    assert ensure_indexes(connection, [GADGETS], stop=lambda: True) == []


def test_a_table_that_somebody_has_for_himself_is_not_waited_for_by_who_starts(
    connection: psycopg.Connection, other: psycopg.Connection
) -> None:
    """Risk: every command hangs while a table is rewritten by hand."""
    ensure_tables(connection, [GADGETS])
    other.autocommit = False
    other.execute("LOCK TABLE nexhealth_gadgets")
    connection.execute("SET lock_timeout = '1s'")
    try:
        assert missing_tables(connection, [GADGETS]) == []
        assert ensure_tables(connection, [GADGETS]) == []
    finally:
        connection.execute("RESET lock_timeout")
        other.rollback()


def test_a_table_is_complete_without_its_indexes(
    connection: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Risk: a first load of hours ends as failed for want of space for an index."""
    Table(connection).load(gadget())
    broken = replace(GADGETS, indexes=(("no_such_column",),))
    assert ensure_indexes(connection, [broken]) == []
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == ["indexes are left to the next run"]
    assert ensure_indexes(connection, [GADGETS]) == INDEXES
    with pytest.raises(psycopg.errors.UndefinedColumn):
        ensure_indexes(connection, [broken], insist=True)


def test_indexes_wait_for_a_writer_and_give_way(
    connection: psycopg.Connection, other: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Risk: somebody who writes for hours holds up the end of a run, and all others behind it."""
    table = Table(connection)
    table.load(gadget())
    other.autocommit = False
    other.execute("UPDATE nexhealth_gadgets SET name = 'Other'")
    monkeypatch.setattr(tables, "_INDEX_WAIT", "50ms")
    assert ensure_indexes(connection, [GADGETS]) == []
    other.rollback()
    assert ensure_indexes(connection, [GADGETS]) == INDEXES


def test_every_column_has_a_comment_with_its_phi_class(connection: psycopg.Connection) -> None:
    """An analyst's role is built from these classes."""
    found = comments(connection, "nexhealth_patients")
    assert found["first_name"] == "First name. PHI class: demographic."
    assert found["raw"] is not None
    for collection in DECLARED:
        for name, comment in comments(connection, collection.table).items():
            assert comment, f"{collection.table}.{name}"
            assert any(comment.endswith(f"PHI class: {phi.value}.") for phi in Phi), comment


def test_a_new_column_and_index_widen_the_table_and_are_recorded(
    connection: psycopg.Connection, other: psycopg.Connection, rows: Rows
) -> None:
    """Risk: a collection that gains an index in a release never gets it in a warehouse that is older."""
    table = Table(connection)
    table.load(gadget())
    ensure_indexes(connection, [GADGETS])
    changes = ensure_tables(connection, [WIDER]) + ensure_indexes(connection, [WIDER])
    assert changes == [
        "added column nexhealth_gadgets.colour",
        "added index nexhealth_gadgets_colour_idx",
        "added index nexhealth_gadgets_institution_id_name_idx",
    ]
    assert [row[0] for row in rows("SELECT change FROM nexhealth_schema_changes ORDER BY id")][3:] == changes
    assert comments(connection, "nexhealth_gadgets")["colour"] == 'Colour, 100 % of it\'s "look". PHI class: none.'
    wide = Table(other, WIDER)  # another process
    assert wide.load(gadget(2, colour="blue")) == (1, 0)
    assert wide.load(gadget(1)) == (0, 0)
    assert table.value("colour") is None


def test_a_column_that_the_catalog_dropped_stays(connection: psycopg.Connection) -> None:
    Table(connection, WIDER).load(gadget(colour="blue"))
    assert ensure_tables(connection, [GADGETS]) == []
    table = Table(connection)
    table.load(gadget(note="x", updated_at="2026-04-01T00:00:00Z"))
    assert table.value("colour") == "blue"


def test_changed_words_become_the_new_comments(connection: psycopg.Connection) -> None:
    ensure_tables(connection, [GADGETS])
    first = replace(GADGETS.columns[0], doc="Another meaning.", phi=Phi.NONE)
    renamed = replace(GADGETS, doc="Another thing.", columns=(first, *GADGETS.columns[1:]))
    assert ensure_tables(connection, [renamed]) == []
    assert comments(connection, "nexhealth_gadgets")["id"] == "Another meaning. PHI class: none."


def test_tables_that_are_up_to_date_cost_seven_queries_and_change_nothing(connection: psycopg.Connection) -> None:
    assert queries(connection, lambda: ensure_tables(connection)) == 7
    assert ensure_tables(connection) == []
    assert queries(connection, lambda: missing_tables(connection)) == 1


def test_missing_names_tables_and_columns(connection: psycopg.Connection) -> None:
    assert "nexhealth_gadgets.id" in missing_tables(connection, [GADGETS])
    ensure_tables(connection, [GADGETS])
    assert missing_tables(connection, [GADGETS]) == []
    assert missing_tables(connection, [WIDER]) == ["nexhealth_gadgets.colour"]


def test_processes_that_start_at_once_make_a_table_once(connection: psycopg.Connection, shared_url: str) -> None:
    """Risk: two runs of one schedule meet in CREATE TABLE, and one of them fails."""
    changes: list[list[str]] = []
    ready = threading.Barrier(4)

    def start() -> None:
        with psycopg.connect(shared_url, autocommit=True) as own:
            ready.wait(10)
            changes.append(ensure_tables(own, [WIDER]))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(map(len, changes)) == [0, 0, 0, 1]


def test_widening_under_a_reader_waits_for_it_and_succeeds(
    connection: psycopg.Connection, other: psycopg.Connection
) -> None:
    ensure_tables(connection, [GADGETS])
    other.autocommit = False
    other.execute("SELECT count(*) FROM nexhealth_gadgets")
    done: list[list[str]] = []
    widening = threading.Thread(target=lambda: done.append(ensure_tables(connection, [WIDER])))
    widening.start()
    widening.join(0.05)
    assert not done
    other.rollback()
    widening.join(10)
    assert done == [["added column nexhealth_gadgets.colour"]]


def test_widening_under_a_long_report_keeps_nobody_else_waiting(
    connection: psycopg.Connection, other: psycopg.Connection, shared_url: str
) -> None:
    """Risk: an upgrade queues for all of a table behind one report, and every load of it queues behind the upgrade."""
    ensure_tables(connection, [GADGETS])
    other.autocommit = False
    other.execute("SELECT count(*) FROM nexhealth_gadgets")
    done: list[list[str]] = []
    widening = threading.Thread(target=lambda: done.append(ensure_tables(connection, [WIDER])))
    widening.start()
    waiting = "SELECT 1 FROM pg_locks WHERE relation = 'nexhealth_gadgets'::regclass AND NOT granted"
    with psycopg.connect(shared_url, autocommit=True) as third:
        while not third.execute(waiting).fetchone():
            assert widening.is_alive()
        third.execute("SET lock_timeout = '30s'")
        third.execute("DELETE FROM nexhealth_gadgets WHERE id = 0")
    assert not done
    other.rollback()
    widening.join(30)
    assert done == [["added column nexhealth_gadgets.colour"]]


def test_whoever_waits_for_a_table_waits_until_an_autovacuum_gives_way(connection: psycopg.Connection) -> None:
    """PostgreSQL ends one that stands in somebody's way after this time, and not before."""
    row = connection.execute("SELECT setting::int FROM pg_settings WHERE name = 'deadlock_timeout'").fetchone()
    assert row is not None
    assert row[0] * 1.5 < tables._TRY_SECONDS * 1000


def test_widening_a_table_that_is_never_free_says_what_to_do(
    connection: psycopg.Connection, other: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_TRIES", 1)
    ensure_tables(connection, [GADGETS])
    other.autocommit = False
    other.execute("SELECT count(*) FROM nexhealth_gadgets")
    with pytest.raises(WarehouseError, match="pg_stat_activity"):
        ensure_tables(connection, [WIDER])
    other.rollback()


def test_a_change_that_fails_leaves_nothing_behind(connection: psycopg.Connection, rows: Rows) -> None:
    broken = replace(GADGETS, name="broken", key=("institution_id", "no_such_column"))
    ensure_tables(connection, [GADGETS])
    with pytest.raises(psycopg.errors.UndefinedColumn):
        ensure_tables(connection, [WIDER, broken])
    assert missing_tables(connection, [WIDER]) == ["nexhealth_gadgets.colour"]
    assert rows("SELECT count(*) FROM nexhealth_schema_changes WHERE change LIKE '%colour%'") == [(0,)]


def test_columns_of_the_system_give_way_to_declared_ones() -> None:
    """`deleted_at` of a soft-deleted collection is the API's own."""
    names = [one.name for one in table_columns(SOFT_DELETED)]
    assert names.count("deleted_at") == 1
    (deleted_at,) = [one for one in table_columns(SOFT_DELETED) if one.name == "deleted_at"]
    assert deleted_at.doc == "Deleted, by the API."


def test_a_column_of_the_request_stands_in_the_table(connection: psycopg.Connection) -> None:
    whose = replace(GADGETS, from_request=(Column("patient_id", SqlType.BIGINT, Phi.ID, "Whose.", ()),))
    create_table(connection, whose)
    assert "patient_id" in comments(connection, "nexhealth_gadgets")
