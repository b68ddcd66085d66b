"""What the table has already is not sent to it, and what is new needs no stage."""

import psycopg
import pytest

from nexhealth_pipeline.warehouse.merge import Merged

from .kit import MINUTE, NOON, SOFT_DELETED, WINDOWED, Table, gadget

NEWER = "2026-03-01T10:00:01Z"


@pytest.fixture
def table(connection: psycopg.Connection) -> Table:
    return Table(connection)


def staged(table: Table) -> int | None:
    """Rows that ever went into the stage since it was made; None = it was never made."""
    if table.connection.execute("SELECT to_regclass('pg_temp.stage_gadgets')").fetchone() == (None,):
        return None
    row = table.connection.execute(
        "SELECT last_value FROM pg_sequences WHERE sequencename = 'stage_gadgets_stage_row_seq'"
    ).fetchone()
    return int(row[0] or 0) if row else 0


def test_new_rows_go_straight_into_the_table_and_known_ones_nowhere(table: Table) -> None:
    assert table.load(gadget(1), gadget(2)) == (2, 0)
    assert table.load(gadget(1), gadget(3), gadget(2), read_at=NOON + MINUTE) == (1, 0)
    assert table.load(gadget(1), gadget(3), gadget(2), read_at=NOON + MINUTE) == (0, 0)
    assert staged(table) is None
    assert [row[-1] for row in table.places()] == [1, 2, 3]


def test_after_new_rows_others_are_found_new_by_where_their_ids_lie(table: Table) -> None:
    """A first load asks for no single id; a row that lies among new ones is found all the same."""
    stage = table.stage(gadget(1), gadget(2))
    assert stage.merge(None) == Merged(2, 0)
    table.add(stage, gadget(10), gadget(30))
    assert stage.merge(None) == Merged(2, 0)
    table.add(stage, gadget(20), gadget(40, note="x"))
    assert stage.merge(None) == Merged(2, 0)
    table.add(stage, gadget(35), gadget(40, note="y", updated_at=NEWER))
    assert stage.merge(None) == Merged(1, 1)
    table.add(stage, gadget(35), gadget(40, note="y", updated_at=NEWER))
    assert stage.merge(None) == Merged(0, 0)
    assert (table.value("note", 40), len(table.places())) == ("y", 7)


def test_a_row_copied_straight_says_when_it_came(table: Table) -> None:
    table.load(gadget())
    row = table.connection.execute(
        "SELECT synced_at = first_seen_at, synced_at BETWEEN now() - interval '1 minute' AND now(), deleted_by"
        " FROM nexhealth_gadgets"
    ).fetchone()
    assert row == (True, True, None)


def test_new_rows_go_through_no_file_of_the_server(table: Table) -> None:
    """The change feed's trigger is given a copy of them all."""

    def spilled() -> int:
        table.connection.execute("SELECT pg_stat_force_next_flush()")
        row = table.connection.execute(
            "SELECT temp_files FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
        return int(row[0]) if row else -1

    stage = table.stage(gadget(1))
    assert stage.merge(None) == Merged(1, 0)  # the next are not asked for one by one, which takes memory as well
    table.connection.execute("SET work_mem = '64kB'")
    before = spilled()
    table.add(stage, *(gadget(number, note="x" * 200) for number in range(2, 1001)))
    assert stage.merge(None) == Merged(999, 0)
    assert spilled() == before
    assert table.connection.execute("SHOW work_mem").fetchone() == ("64kB",)
    table.connection.execute("SET work_mem = '128MB'")
    with table.connection.transaction():
        assert table.load(gadget(2000)) == (1, 0)
        assert table.connection.execute("SHOW work_mem").fetchone() == ("128MB",)


def test_only_what_is_new_or_differs_is_staged(table: Table) -> None:
    table.load(gadget(1), gadget(2), gadget(3))
    changed = gadget(2, note="other", updated_at=NEWER)
    assert table.load(gadget(1), changed, gadget(3), gadget(4), read_at=NOON + MINUTE) == (1, 1)
    assert staged(table) == 2
    assert [table.value("note", number) for number in (1, 2, 3, 4)] == ["first", "other", "first", "first"]


@pytest.mark.parametrize("kind", [WINDOWED, SOFT_DELETED], ids=["windowed", "soft_deleted"])
def test_rows_that_something_is_derived_from_are_merged(connection: psycopg.Connection, kind: object) -> None:
    table = Table(connection, kind)  # type: ignore[arg-type]  # the parameters are collections
    assert table.load(gadget(1, **({"deleted_at": NEWER} if kind is SOFT_DELETED else {}))) == (1, 0)
    assert staged(table) == 1
    assert table.value("deleted_by") == ("source" if kind is SOFT_DELETED else None)


def test_a_known_row_is_judged_together_with_another_of_its_id(table: Table) -> None:
    """Risk: the later read, equal to the table's row, is dropped first, and the earlier one wins."""
    table.load(gadget())
    before = table.places()
    stage = table.stage(gadget(note="earlier"), read_at=NOON)
    table.add(stage, gadget(), read_at=NOON + MINUTE)
    assert stage.merge(None) == Merged(0, 0)
    assert table.places() == before


def test_what_a_dry_run_or_a_keeper_looks_at_is_all_staged(table: Table) -> None:
    table.load(gadget(1))
    stage = table.stage(gadget(1), gadget(2))
    stage.fill()
    assert table.connection.execute("SELECT id FROM stage_gadgets ORDER BY 1").fetchall() == [(1,), (2,)]
    assert stage.merge(None) == Merged(1, 0)


def test_a_row_of_the_same_content_and_another_hash_is_known_the_next_time(table: Table) -> None:
    """Else whatever was encoded by an earlier release is sent again every night."""
    table.load(gadget(1), gadget(2))
    table.connection.execute("UPDATE nexhealth_gadgets SET row_hash = '\\x00'")
    before = table.value("to_jsonb(nexhealth_gadgets) - 'row_hash'")
    for _ in range(2):
        assert table.load(gadget(1), gadget(2, note=...), read_at=NOON + MINUTE) == (0, 0)
        assert staged(table) == 2
    assert table.value("to_jsonb(nexhealth_gadgets) - 'row_hash'") == before


def test_an_older_or_a_tombstoned_row_keeps_its_hash(table: Table) -> None:
    """What an old read says of a row must not make a newer one look known."""
    table.load(gadget(1), gadget(2), read_at=NOON + MINUTE)
    table.connection.execute("UPDATE nexhealth_gadgets SET row_hash = '\\x00'")
    table.bury(2, NOON + 2 * MINUTE)
    assert table.load(gadget(1), read_at=NOON) == (0, 0)
    assert table.load(gadget(2), read_at=NOON + MINUTE) == (0, 0)
    assert {table.value("row_hash", number) for number in (1, 2)} == {b"\x00"}
