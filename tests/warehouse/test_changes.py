"""Whoever follows the copy hears of every committed change once, in an order that no late commit upsets."""

import json
import time
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.client.page import Page
from nexhealth_pipeline.errors import ChangesGone
from nexhealth_pipeline.sync.loader import Loader
from nexhealth_pipeline.sync.practice import Institution
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.warehouse.changes import (
    TRIGGERS,
    ChangeRow,
    changes_since,
    listen,
    now_cursor,
    prune,
)
from nexhealth_pipeline.warehouse.history import Cause, state_cause
from nexhealth_pipeline.warehouse.tables import ensure_tables

from .conftest import Rows
from .kit import GADGETS, MINUTE, NOON, UNVERSIONED, Table, gadget

pytestmark = pytest.mark.timeout(900)  # `settled` may wait for minutes

LATER = "2026-03-01T11:00:00Z"
TEN = datetime(2026, 3, 1, 10, tzinfo=UTC)
OLD_DAY = "nexhealth_changes_2020_01_01"


@pytest.fixture
def table(connection: psycopg.Connection) -> Table:
    return Table(connection)


@pytest.fixture
def table_there(other: psycopg.Connection, table: Table) -> Table:
    return Table(other)


def written(connection: psycopg.Connection, columns: str = "id, kind, cause") -> list[tuple[Any, ...]]:
    """The feed as it stands, this transaction's rows included."""
    return connection.execute(f"SELECT {columns} FROM nexhealth_changes ORDER BY xid, position").fetchall()


def settled(connection: psycopg.Connection) -> None:
    """Wait until every transaction that runs now has ended, those of other tests on this server too."""
    row = connection.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
    deadline = time.monotonic() + 240
    while row and connection.execute(
        "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint < %s", row
    ).fetchone() == (True,):
        assert time.monotonic() < deadline, "another transaction on this server does not end"
        time.sleep(0.01)


def followed(connection: psycopg.Connection, cursor: str | None, most: int = 1000) -> list[ChangeRow]:
    """All that follows the cursor, read in parts."""
    settled(connection)
    found: list[ChangeRow] = []
    while part := changes_since(connection, cursor, most):
        found += part
        cursor = part[-1].cursor
    return found


def old_day(connection: psycopg.Connection) -> None:
    """A partition of long ago with two changes, and one more that had none."""
    connection.execute(
        f"CREATE TABLE {OLD_DAY} PARTITION OF nexhealth_changes FOR VALUES FROM ('2020-01-01Z') TO ('2020-01-02Z')"
    )
    connection.execute(
        "INSERT INTO nexhealth_changes (at, institution_id, id, collection, kind, cause)"
        " SELECT at::timestamptz, 7, 1, 'gadgets', 'updated', 'manual'"
        " FROM unnest('{2020-01-01 05:00Z,2020-01-01 06:00Z,2020-01-05 06:00Z}'::text[]) at"
    )


def test_every_kind_of_change_is_told_with_its_cause(table: Table) -> None:
    db = table.connection
    with db.transaction():
        state_cause(db, Cause.PAGE, run_id="r")
        table.load(gadget(1), gadget(2))
    with db.transaction():
        state_cause(db, Cause.WEBHOOK, run_id="r")
        table.load(gadget(1, note="second", updated_at=LATER), gadget(2), gadget(3))
    table.bury(2, NOON + MINUTE)
    with db.transaction():
        state_cause(db, Cause.PAGE)
        table.load(gadget(2), read_at=NOON + 2 * MINUTE)
    db.execute("UPDATE nexhealth_gadgets SET note = 'x' WHERE id = 3")
    assert written(db, "id, kind, cause, run_id") == [
        (1, "inserted", "page", "r"),
        (2, "inserted", "page", "r"),
        (1, "updated", "webhook", "r"),
        (3, "inserted", "webhook", "r"),
        (2, "deleted", "absence", None),
        (2, "revived", "revival", None),
        (3, "updated", "manual", None),
    ]
    assert set(written(db, "collection, institution_id, key")) == {("gadgets", 7, None)}
    assert written(db, "version")[2] == (datetime(2026, 3, 1, 11, tzinfo=UTC),)
    assert {row[0] for row in written(db, "version")} == {TEN, TEN + timedelta(hours=1)}


def test_a_pass_without_a_change_tells_nothing(table: Table) -> None:
    table.load(gadget(1), gadget(2))
    before = written(table.connection, "*")
    table.load(gadget(1), gadget(2), read_at=NOON + MINUTE)
    assert written(table.connection, "*") == before


def test_times_of_synchronisation_alone_are_no_change_but_a_newer_version_is(table: Table) -> None:
    table.load(gadget())
    table.connection.execute("UPDATE nexhealth_gadgets SET synced_at = now(), source_read_at = now(), row_hash = ''")
    assert len(written(table.connection)) == 1
    table.load(gadget(updated_at=LATER))
    assert written(table.connection)[1:] == [(1, "updated", "manual")]


def test_a_version_is_when_it_was_read_where_the_source_gives_none(connection: psycopg.Connection) -> None:
    table = Table(connection, UNVERSIONED)
    table.load(gadget(updated_at=None))
    assert written(connection, "version") == [(NOON,)]


def test_a_row_of_another_key_is_told_by_it(connection: psycopg.Connection) -> None:
    connection.execute(
        "INSERT INTO nexhealth_claim_payouts (institution_id, charge_id, claim_id, raw, synced_at, source_read_at, row_hash)"
        " VALUES (7, 1, 2, %s, now(), now(), '')",
        (Jsonb({"claim_id": 2}),),
    )
    connection.execute("UPDATE nexhealth_claim_payouts SET deleted_at = now(), deleted_by = 'absence'")
    connection.execute("DELETE FROM nexhealth_claim_payouts")
    key = {"charge_id": 1, "claim_id": 2}
    assert written(connection, "collection, id, key, kind, cause") == [
        ("claim_payouts", None, key, "inserted", "manual"),
        ("claim_payouts", None, key, "deleted", "absence"),
        ("claim_payouts", None, key, "deleted", "manual"),
    ]


def test_rows_that_go_or_change_their_key_by_hand_are_told_too(table: Table) -> None:
    """Risk: a page shows a patient for ever whom an administrator erased."""
    table.load(gadget(1), gadget(2))
    table.connection.execute("UPDATE nexhealth_gadgets SET id = 9 WHERE id = 2")
    assert sorted(written(table.connection)[2:]) == [(2, "deleted", "manual"), (9, "inserted", "manual")]
    table.connection.execute("DELETE FROM nexhealth_gadgets WHERE id = 1")
    assert written(table.connection)[4:] == [(1, "deleted", "manual")]


def test_a_page_of_the_api_says_so_and_which_run_it_was(connection: psycopg.Connection) -> None:
    Table(connection)
    place = Slice(GADGETS, Institution(7, "seven", "Seven", frozenset()))
    loader = Loader(connection, place, run_id="r", dry_run=False)
    record = json.dumps(gadget()).encode()
    page = Page(1, [record], "", False, datetime.now(UTC), 1, 0, 0.0, len(record), None, None)
    with connection.transaction():
        loader.open()
        loader.encode_and_load([(page, {})])
    assert written(connection, "cause, run_id") == [("page", "r")]


def test_the_feed_holds_nothing_of_a_record_but_its_id(table: Table, rows: Rows) -> None:
    """Promise 10: it may be read by whoever may not read the tables."""
    table.load(gadget(name="Zanzibar", note="Zanzibar", tags=["Zanzibar"], maker={"city": "Zanzibar"}))
    table.load(gadget(name="Zanzibar II", updated_at=LATER))
    assert "Zanzibar" not in str(rows("SELECT to_jsonb(c) FROM nexhealth_changes c"))
    for name in ("nexhealth_changes", "nexhealth_changes_pruned"):
        comments = rows(
            f"SELECT attname, col_description(attrelid, attnum) FROM pg_attribute"
            f" WHERE attrelid = '{name}'::regclass AND attnum > 0 AND attname <> 'only_row'"
        )
        assert all(comment.endswith(("PHI class: none.", "PHI class: id.")) for _, comment in comments)


def test_a_late_commit_is_not_missed(table: Table, table_there: Table) -> None:
    """Risk: a slow transaction writes first and commits last, behind the place a reader remembers."""
    reader = table.connection
    start = now_cursor(reader)
    with table_there.connection.transaction():
        table_there.load(gadget(1))  # the older transaction, still open
        table.load(gadget(2))
        assert len(written(reader)) == 1, "committed, and there to be seen"
        assert changes_since(reader, start) == [], "but not handed out before what may still come before it"
        meanwhile = now_cursor(reader)
        table_there.load(gadget(3))
    assert [row.id for row in followed(reader, start)] == [1, 3, 2]
    assert [row.id for row in followed(reader, meanwhile)] == [1, 3, 2], "a reader who began in between hears all"
    assert [row.id for row in followed(reader, start, most=1)] == [1, 3, 2]
    assert followed(reader, followed(reader, start)[-1].cursor) == []


def test_the_feed_is_read_in_parts_from_the_oldest_or_from_now(table: Table) -> None:
    db = table.connection
    for note in ("first", "second", "third"):
        table.load(gadget(1, note=note), gadget(2), read_at=NOON + MINUTE)
    assert [(row.id, row.kind) for row in followed(db, None, most=2)] == [
        (1, "inserted"),
        (2, "inserted"),
        (1, "updated"),
        (1, "updated"),
    ]
    first = changes_since(db, None, 1)[0]
    assert (first.collection, first.institution_id, first.version, first.key) == ("gadgets", 7, TEN, None)
    assert followed(db, now_cursor(db)) == []


def test_whoever_is_far_behind_reads_all_in_order(table: Table) -> None:
    """Reading goes in steps over transaction numbers; no seam between two may lose or repeat a row."""
    db = table.connection
    db.execute(
        "INSERT INTO nexhealth_changes (xid, institution_id, id, collection, kind, cause)"
        " SELECT 3 + g / 3 + g / 20 * 40, 7, g, 'gadgets', 'updated', 'manual' FROM generate_series(0, 119) g"
    )
    stop = int(now_cursor(db).split(":")[0])
    assert stop > 3 + 39 + 200
    assert [row.id for row in followed(db, None, most=7)] == list(range(120))
    assert [row.id for row in followed(db, None)] == list(range(120))


def test_what_is_rolled_back_is_not_told(table: Table, other: psycopg.Connection) -> None:
    heard = listen(other, idle_seconds=0.05)
    with table.connection.transaction(force_rollback=True):
        table.load(gadget())
        assert len(written(table.connection)) == 1
    assert written(table.connection) == []
    assert next(heard) == frozenset()


def test_listeners_are_told_after_the_commit_and_once_a_transaction(table: Table, other: psycopg.Connection) -> None:
    heard = listen(other, idle_seconds=0.05)
    with table.connection.transaction():
        table.load(gadget(1))
        table.load(gadget(2))
        assert next(heard) == frozenset()
    assert next(filter(None, islice(heard, 1200))) == {"gadgets"}
    assert next(heard) == frozenset()
    table.load(gadget(1), gadget(2), read_at=NOON + MINUTE)
    assert next(heard) == frozenset(), "nothing was changed"


def test_who_may_change_a_row_needs_no_right_on_the_feed(table: Table) -> None:
    db = table.connection
    db.execute("CREATE ROLE nexhealth_test_feeder; GRANT SELECT, UPDATE ON nexhealth_gadgets TO nexhealth_test_feeder")
    table.load(gadget())
    try:
        with db.transaction():
            db.execute("SET LOCAL ROLE nexhealth_test_feeder")
            db.execute("CREATE TEMP TABLE nexhealth_changes (LIKE nexhealth_gadgets)")  # must not divert it
            db.execute("UPDATE nexhealth_gadgets SET note = 'forged'")
            with pytest.raises(psycopg.errors.InsufficientPrivilege), db.transaction():
                db.execute("SELECT * FROM public.nexhealth_changes")
            db.execute("DROP TABLE pg_temp.nexhealth_changes")
    finally:
        db.execute("DROP OWNED BY nexhealth_test_feeder; DROP ROLE nexhealth_test_feeder")
    assert written(db)[1:] == [(1, "updated", "manual")]


def test_what_is_no_cursor_of_this_feed_is_refused(connection: psycopg.Connection) -> None:
    for cursor in ("", "5", "x:y", "1:2; DROP TABLE nexhealth_changes", "9" * 19 + ":1"):
        with pytest.raises(ValueError, match="not a cursor"):
            changes_since(connection, cursor)
    with pytest.raises(ChangesGone):  # of another server, from before a dump was restored here
        changes_since(connection, "999999999999:1")


def test_a_restored_dump_does_not_confuse_the_feed(table: Table, rows: Rows) -> None:
    """Transactions are numbered by the server: those of another one mean nothing here."""
    for name in ("nexhealth_changes", "nexhealth_changes_pruned"):
        more = "" if name.endswith("pruned") else ", institution_id, collection, kind, cause"
        values = more and ", 7, 'gadgets', 'updated', 'manual'"
        table.connection.execute(f"INSERT INTO {name} (xid, position{more}) VALUES (999999999999, 1{values})")
    ensure_tables(table.connection, [GADGETS])
    start = now_cursor(table.connection)
    table.load(gadget())
    assert [row.kind for row in followed(table.connection, start)] == ["inserted"]
    assert rows("SELECT (SELECT count(*) FROM nexhealth_changes), (SELECT count(*) FROM nexhealth_changes_pruned)") == [
        (1, 0)
    ]


def test_every_collection_has_the_triggers_and_one_that_lost_them_gets_them_back(
    connection: psycopg.Connection, rows: Rows
) -> None:
    for name in TRIGGERS:
        having = rows(f"SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = '{name}'")
        assert {collection.table for collection in DECLARED} <= {row[0] for row in having}
    connection.execute(f"DROP TRIGGER {TRIGGERS[1]} ON nexhealth_operatories")
    assert ensure_tables(connection) == ["added change feed to nexhealth_operatories"]
    assert ensure_tables(connection) == []


def test_the_feed_works_on_the_oldest_postgresql(oldest_database_url: str) -> None:
    with psycopg.connect(oldest_database_url, autocommit=True) as db:
        table = Table(db)
        table.load(gadget(1))
        table.load(gadget(1, note="second", updated_at=LATER), gadget(2))
        old_day(db)
        told = [(row.id, row.kind) for row in followed(db, None)]
        assert told[:3] == [(1, "inserted"), (1, "updated"), (2, "inserted")]
        assert prune(db, 7) == [OLD_DAY]
