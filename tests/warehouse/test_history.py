"""What a change overwrites is kept, on every path, and the copy can be seen as it stood at any moment."""

import json
import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.client.page import Page
from nexhealth_pipeline.sync.loader import Loader
from nexhealth_pipeline.sync.practice import Institution
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.warehouse.history import TRIGGER, Cause, make_partitions, state_cause
from nexhealth_pipeline.warehouse.tables import ensure_tables

from .conftest import Rows
from .kit import GADGETS, MINUTE, NOON, UNVERSIONED, Table, gadget

LATER = "2026-03-01T11:00:00Z"
LAST = "2026-03-01T13:00:00Z"


@pytest.fixture
def table(connection: psycopg.Connection) -> Table:
    return Table(connection)


def kept(connection: psycopg.Connection, columns: str = "id, version, cause, changed_fields") -> list[tuple[Any, ...]]:
    return connection.execute(f"SELECT {columns} FROM nexhealth_history ORDER BY collection, id, version").fetchall()


def as_of(connection: psycopg.Connection, at: object, by: str = "recorded") -> dict[int, str]:
    """The gadgets' notes by id, as of a moment."""
    rows = connection.execute(
        "SELECT id, raw ->> 'note' FROM nexhealth_asof('gadgets', %s, %s) ORDER BY id", (at, by)
    ).fetchall()
    return dict(rows)


def now(connection: psycopg.Connection) -> datetime:
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    return row[0]


def test_a_superseded_version_is_kept_with_its_record_and_what_changed(table: Table) -> None:
    table.load(gadget(1), gadget(2))
    synced = table.value("synced_at")
    with table.connection.transaction():
        state_cause(table.connection, Cause.WEBHOOK, run_id="run-1")
        table.load(gadget(1, note="second", tags=[], updated_at=LATER), gadget(2), read_at=NOON + MINUTE)
    (row,) = kept(
        table.connection,
        "collection, institution_id, key, id, version, cause, run_id, changed_fields, raw ->> 'note',"
        " fields ->> 'weight', fields ? 'raw', valid_from, valid_to, recorded_from <= %s, recorded_to".replace(
            "%s", f"'{synced}'"
        ),
    )
    assert row[:4] == ("gadgets", 7, {"id": 1}, 1)
    assert row[4:8] == (1, "webhook", "run-1", ["note", "tags"])
    assert row[8:11] == ("first", "1.5", False)
    assert row[11:13] == (datetime(2026, 3, 1, 10, tzinfo=UTC), datetime(2026, 3, 1, 11, tzinfo=UTC))
    assert row[13]
    assert row[14] == table.value("synced_at")


def test_versions_count_up_and_follow_each_other_without_a_gap(table: Table) -> None:
    for hour, note in enumerate(["first", "second", "third", "fourth"]):
        table.load(gadget(note=note, updated_at=f"2026-03-01T{10 + hour}:00:00Z"), read_at=NOON + hour * MINUTE)
    rows = kept(table.connection, "version, valid_from, valid_to, recorded_from, recorded_to, raw ->> 'note'")
    assert [(row[0], row[5]) for row in rows] == [(1, "first"), (2, "second"), (3, "third")]
    for earlier, later in pairwise(rows):
        assert (earlier[2], earlier[4]) == (later[1], later[3])


def test_a_pass_without_a_change_keeps_nothing(table: Table) -> None:
    table.load(gadget(1), gadget(2))
    table.load(gadget(1), gadget(2), read_at=NOON + MINUTE)
    assert kept(table.connection) == []


def test_times_of_synchronisation_alone_are_no_change(table: Table) -> None:
    """Risk: NexHealth touches every appointment each night, and history grows by the whole table."""
    box = {"updated_at": "2026-01-01", "colour": "red"}
    table.load(gadget(last_sync_time="2026-01-01", box=box))
    box["updated_at"] = "2026-02-02"
    assert table.load(gadget(updated_at=LATER, last_sync_time="2026-02-02", box=box)) == (0, 1)
    assert kept(table.connection) == []
    table.connection.execute("UPDATE nexhealth_gadgets SET synced_at = now(), source_read_at = now(), row_hash = ''")
    assert kept(table.connection) == []


def test_a_change_of_a_key_that_has_no_column_is_kept(table: Table) -> None:
    table.load(gadget(novel="a"))
    table.load(gadget(novel="b", updated_at=LATER))
    assert kept(table.connection) == [(1, 1, "manual", ["raw"])]


def test_an_update_by_hand_is_kept_too(table: Table) -> None:
    table.load(gadget(1), gadget(2))
    table.connection.execute("UPDATE nexhealth_gadgets SET name = 'x' || id, note = NULL WHERE id = 2")
    assert kept(table.connection) == [(2, 1, "manual", ["name", "note"])]
    table.connection.execute("UPDATE nexhealth_gadgets SET id = 9 WHERE id = 2")
    assert kept(table.connection)[1][:3] == (2, 2, "manual")


def test_a_cause_ends_with_its_transaction(table: Table) -> None:
    """Risk: a pooled connection says "webhook" of whatever comes after it."""
    table.load(gadget())
    with table.connection.transaction():
        state_cause(table.connection, Cause.REPLAY, run_id="r")
        table.load(gadget(note="second", updated_at=LATER))
    table.load(gadget(note="third", updated_at=LAST))
    assert kept(table.connection, "cause, run_id") == [("replay", "r"), ("manual", None)]


def test_a_read_of_the_api_says_so_and_which_run_it_was(connection: psycopg.Connection) -> None:
    Table(connection)
    loader = Loader(
        connection, Slice(GADGETS, Institution(7, "seven", "Seven", frozenset())), run_id="r", dry_run=False
    )
    for note in ("first", "second"):
        record = json.dumps(gadget(note=note)).encode()
        page = Page(1, [record], "", False, now(connection), 1, 0, 0.0, len(record), None, None)
        with connection.transaction():
            loader.open()
            loader.encode_and_load([(page, {})])
    assert kept(connection, "cause, run_id, changed_fields") == [("page", "r", ["note"])]


def test_absence_and_revival_are_told_from_the_row(table: Table) -> None:
    table.load(gadget())
    with table.connection.transaction():
        state_cause(table.connection, Cause.PAGE, run_id="r")
        table.bury(1, NOON + MINUTE)
        table.load(gadget(), read_at=NOON + 2 * MINUTE)
    gone, back = kept(table.connection, "cause, run_id, changed_fields, valid_to, (fields ->> 'deleted_by')")
    assert gone == ("absence", "r", ["deleted_at", "deleted_by"], NOON + MINUTE, None)
    assert back == ("revival", "r", ["deleted_at", "deleted_by"], NOON + 2 * MINUTE, "absence")


def test_history_is_rolled_back_with_the_rows(table: Table) -> None:
    table.load(gadget())
    with table.connection.transaction(force_rollback=True):
        table.load(gadget(note="second", updated_at=LATER))
        assert len(kept(table.connection)) == 1
    assert kept(table.connection) == []


def test_the_copy_is_seen_as_it_stood(table: Table) -> None:
    db = table.connection
    before = now(db)
    table.load(gadget(1))
    first = now(db)
    table.load(gadget(1, note="second", updated_at=LATER), gadget(2))
    second = now(db)
    table.bury(2, NOON)
    third = now(db)
    assert as_of(db, before) == {}
    assert as_of(db, first) == {1: "first"}
    assert as_of(db, second) == as_of(db, third) == {1: "second", 2: "first"}
    deleted = db.execute(
        "SELECT a.deleted_by, b.deleted_by, a.version, b.version, a.recorded_to = b.recorded_from, b.recorded_to"
        " FROM nexhealth_asof('gadgets', %s) a JOIN nexhealth_asof('gadgets', %s) b USING (key) WHERE a.id = 2",
        (second, third),
    ).fetchone()
    assert deleted == (None, "absence", 1, 2, True, None)


def test_the_source_is_seen_as_it_stood(table: Table) -> None:
    """A version that came late counts from when the source had it, not from when it was read."""
    table.load(gadget(1), gadget(2))
    table.load(gadget(1, note="second", updated_at=LATER), gadget(2), read_at=NOON + MINUTE)
    assert as_of(table.connection, "2026-03-01T09:59Z", "source") == {}
    assert as_of(table.connection, "2026-03-01T10:59Z", "source") == {1: "first", 2: "first"}
    assert as_of(table.connection, "2026-03-01T11:00Z", "source") == {1: "second", 2: "first"}


def test_single_rows_are_asked_for_by_their_ids(table: Table) -> None:
    """Of all institutions; and whoever gives none gets all rows as before."""
    db = table.connection
    table.load(gadget(1), gadget(2), gadget(3))
    first = now(db)
    table.load(gadget(1, note="second", updated_at=LATER), gadget(2), gadget(3), read_at=NOON + MINUTE)
    table.bury(2, NOON)
    query = "SELECT id, version, raw ->> 'note', deleted_by FROM nexhealth_asof('gadgets', {}) ORDER BY id"
    everything = db.execute(query.format("now(), 'source'")).fetchall()
    assert everything == [(1, 2, "second", None), (2, 2, "first", "absence"), (3, 1, "first", None)]
    for given in ("now(), 'source', ids => '{1,2}'", "now(), 'source', '{2,1,404}'"):
        assert db.execute(query.format(given)).fetchall() == everything[:2]
    assert db.execute(query.format(f"'{first}', ids => '{{2,1}}'")).fetchall() == [
        (1, 1, "first", None),
        (2, 1, "first", None),
    ]
    assert db.execute(query.format("now(), ids => '{}'")).fetchall() == []
    assert db.execute(query.format("now(), ids => NULL")).fetchall() == everything


def test_one_record_is_found_among_all_others(table: Table) -> None:
    """Risk: JSON of a whole practice is put together, and all its past is read, to show one patient of a month ago."""
    db = table.connection
    table.load(*(gadget(number) for number in range(1, 1001)))
    first = now(db)
    table.load(*(gadget(number, note="second", updated_at=LATER) for number in range(1, 1001)))
    db.execute("ANALYZE nexhealth_gadgets, nexhealth_history")
    with db.transaction():
        before = visited(db)
        found = db.execute(
            "SELECT raw ->> 'note' FROM nexhealth_asof('gadgets', %s, ids => '{500}')", (first,)
        ).fetchall()
        looked_at = visited(db) - before
    assert found == [("first",)]
    assert 0 < looked_at < 10


def test_one_record_of_any_institution_is_found_by_the_indexes_beginning(table: Table) -> None:
    the_plans_of_ids_begin_with_the_institution(table.connection)


def test_one_record_is_found_so_on_the_oldest_postgresql_too(oldest_database_url: str) -> None:
    """It cannot skip what an index begins with: without the institution it reads the whole of it for one id."""
    with psycopg.connect(oldest_database_url, autocommit=True) as db:
        the_plans_of_ids_begin_with_the_institution(db)


def the_plans_of_ids_begin_with_the_institution(db: psycopg.Connection) -> None:
    ensure_tables(db, [GADGETS])
    db.execute(
        "INSERT INTO nexhealth_gadgets (institution_id, id, synced_at, source_read_at, row_hash)"
        " SELECT institution, id, now(), now(), '' FROM generate_series(7, 8) institution, generate_series(1, 2000) id"
    )
    first = now(db)
    db.execute("UPDATE nexhealth_gadgets SET note = 'second', synced_at = clock_timestamp()")
    # Where the rows are gone, all that was kept of an institution is its past.
    db.execute("DELETE FROM nexhealth_gadgets WHERE institution_id = 8")
    db.execute("ANALYZE nexhealth_gadgets, nexhealth_history")
    plans: list[str] = []
    db.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
    db.execute("LOAD 'auto_explain'; SET client_min_messages = log; SET auto_explain.log_nested_statements = on")
    db.execute("SET auto_explain.log_min_duration = 0")
    found = db.execute(
        "SELECT institution_id, id FROM nexhealth_asof('gadgets', %s, ids => '{500}') ORDER BY 1", (first,)
    ).fetchall()
    assert found == [(7, 500), (8, 500)]
    (plan,) = (one for one in plans if "CTE past" in one)
    assert re.search(r"Index Cond: \(\(institution_id = ANY \(.*\)\) AND \(id = ANY", plan)
    conditions = re.findall(r"Index Cond: \(\(collection = .*", plan)
    assert conditions
    assert all("(institution_id = ANY" in one and "(key = ANY" in one for one in conditions)


def visited(connection: psycopg.Connection) -> int:
    """Rows of the gadgets and of their past that the running transaction has looked at."""
    row = connection.execute(
        "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::int FROM pg_stat_xact_user_tables"
        " WHERE relname = 'nexhealth_gadgets' OR relname LIKE 'nexhealth_history_%'"
    ).fetchone()
    assert row is not None
    return row[0]


def test_a_touched_row_was_there_before_it_was_touched(table: Table) -> None:
    """Risk: what is no change moves synced_at, and the copy of yesterday seems to lack the row."""
    table.load(gadget())
    stood = now(table.connection)
    touched = (stood + timedelta(hours=1)).isoformat()
    assert table.load(gadget(updated_at=touched)) == (0, 1)
    assert as_of(table.connection, stood) == as_of(table.connection, stood, "source") == {1: "first"}
    table.load(gadget(note="second", updated_at=(stood + timedelta(hours=2)).isoformat()))
    assert as_of(table.connection, stood) == as_of(table.connection, stood, "source") == {1: "first"}
    assert as_of(table.connection, stood + timedelta(hours=3), "source") == {1: "second"}


def test_versions_without_updated_at_go_by_when_they_were_read(connection: psycopg.Connection) -> None:
    table = Table(connection, UNVERSIONED)
    table.load(gadget(updated_at=None))
    table.load(gadget(updated_at=None, note="second"), read_at=NOON + MINUTE)
    assert kept(connection, "valid_from, valid_to") == [(NOON, NOON + MINUTE)]


def test_a_row_of_another_key_is_told_by_it(connection: psycopg.Connection) -> None:
    """Sync status has no id, and its key is three columns."""
    connection.execute(
        "INSERT INTO nexhealth_sync_status (institution_id, sync_source_type, sync_source_name, read_status, raw,"
        " synced_at, source_read_at, row_hash)"
        " SELECT 7, 'DataSource', name, 'green', '{}', now(), now(), '' FROM unnest('{a,b}'::text[]) name"
    )
    connection.execute("UPDATE nexhealth_sync_status SET read_status = 'red' WHERE sync_source_name = 'b'")
    key = {"sync_source_type": "DataSource", "sync_source_name": "b"}
    assert kept(connection, "collection, key, id, changed_fields") == [("sync_status", key, None, ["read_status"])]
    states = connection.execute(
        "SELECT key, version, id FROM nexhealth_asof('sync_status', now()) ORDER BY 2"
    ).fetchall()
    assert [row[1] for row in states] == [1, 2]
    assert states[1] == (key, 2, None)


def test_fields_make_a_row_again(table: Table) -> None:
    table.load(gadget())
    table.load(gadget(note="second", updated_at=LATER))
    row = table.connection.execute(
        "SELECT r.note, r.price, r.born, r.tags, r.start_time FROM nexhealth_history h,"
        " jsonb_populate_record(NULL::nexhealth_gadgets, h.fields) r"
    ).fetchone()
    assert row is not None
    assert (row[0], str(row[1]), str(row[2]), row[3]) == ("first", "12.50", "2001-02-03", ["a", {"b": None}])
    assert row[4] == datetime(2026, 2, 10, 9, tzinfo=UTC)


def test_every_collection_has_the_trigger_and_one_that_lost_it_gets_it_back(
    connection: psycopg.Connection, rows: Rows
) -> None:
    triggers = f"SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = '{TRIGGER}' ORDER BY 1"
    assert {collection.table for collection in DECLARED} <= {row[0] for row in rows(triggers)}
    connection.execute(f"DROP TRIGGER {TRIGGER} ON nexhealth_operatories")
    assert ensure_tables(connection) == ["added history to nexhealth_operatories"]


def test_every_column_of_history_says_its_phi_class(rows: Rows) -> None:
    comments: dict[Any, Any] = dict(
        rows(
            "SELECT attname, col_description(attrelid, attnum) FROM pg_attribute"
            " WHERE attrelid = 'nexhealth_history'::regclass AND attnum > 0"
        )
    )
    assert all("PHI class: " in comment for comment in comments.values())
    assert comments["raw"].endswith("PHI class: clinical.")
    assert comments["fields"].endswith("PHI class: clinical.")


def test_months_are_made_ahead_and_a_missing_one_loses_nothing(table: Table, rows: Rows) -> None:
    """Risk: nobody syncs for a quarter, and the first change after it finds no partition."""
    name = f"nexhealth_history_{datetime.now(UTC):%Y_%m}"
    parts = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'nexhealth_history'::regclass"
    assert len({row[0] for row in rows(parts)} - {"nexhealth_history_default"}) >= 4
    assert make_partitions(table.connection) == []
    table.load(gadget())
    table.connection.execute(f"DROP TABLE {name}")
    table.load(gadget(note="second", updated_at=LATER))
    assert rows("SELECT count(*) FROM ONLY nexhealth_history_default") == [(1,)]
    assert make_partitions(table.connection) == [name]
    assert rows("SELECT count(*) FROM ONLY nexhealth_history_default") == [(0,)]
    assert rows(f"SELECT count(*) FROM {name}") == [(1,)]
    table.load(gadget(note="third", updated_at=LAST))
    assert rows(f"SELECT count(*) FROM {name}") == [(2,)]


def test_months_are_made_ahead_only_when_nobody_reads_history(table: Table, other: psycopg.Connection) -> None:
    """Risk: it waits for a backup that takes hours, and whoever changes a row waits behind it."""
    name = f"nexhealth_history_{datetime.now(UTC):%Y_%m}"
    table.connection.execute(f"DROP TABLE {name}")
    table.connection.execute("SET statement_timeout = '20s'")
    with other.transaction():
        other.execute("SELECT count(*) FROM nexhealth_history")
        assert make_partitions(table.connection) == []
    assert make_partitions(table.connection) == [name]


def test_who_may_change_a_row_cannot_do_so_unseen(table: Table) -> None:
    table.load(gadget())
    table.connection.execute(
        "CREATE ROLE nexhealth_test_clerk; GRANT SELECT, UPDATE ON nexhealth_gadgets TO nexhealth_test_clerk"
    )
    try:
        with table.connection.transaction():
            table.connection.execute("SET LOCAL ROLE nexhealth_test_clerk")
            table.connection.execute("UPDATE nexhealth_gadgets SET note = 'forged'")
    finally:
        table.connection.execute("DROP OWNED BY nexhealth_test_clerk; DROP ROLE nexhealth_test_clerk")
    assert kept(table.connection, "raw ->> 'note'") == [("first",)]


def test_what_cannot_be_asked_is_refused(connection: psycopg.Connection) -> None:
    for name in ("no_such", "sync_logs", "x; DROP TABLE nexhealth_patients"):
        with pytest.raises(psycopg.errors.UndefinedTable, match="no collection"):
            connection.execute("SELECT * FROM nexhealth_asof(%s, now())", (name,))
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="recorded or source"):
        connection.execute("SELECT * FROM nexhealth_asof('patients', now(), 'valid')")


def test_history_works_on_the_oldest_postgresql(oldest_database_url: str) -> None:
    with psycopg.connect(oldest_database_url, autocommit=True) as db:
        table = Table(db)
        table.load(gadget())
        stood = now(db)
        table.load(gadget(note="second", updated_at=LATER))
        assert kept(db) == [(1, 1, "manual", ["note"])]
        assert as_of(db, stood) == {1: "first"}
        assert db.execute("SELECT note FROM nexhealth_current.gadgets").fetchall() == [("second",)]


def test_a_row_of_a_list_inside_a_record_is_kept_too(connection: psycopg.Connection) -> None:
    connection.execute(
        "INSERT INTO nexhealth_claim_payouts (institution_id, charge_id, claim_id, raw, synced_at, source_read_at, row_hash)"
        " VALUES (7, 1, 2, %s, now(), now(), '')",
        (Jsonb({"claim_id": 2}),),
    )
    connection.execute("UPDATE nexhealth_claim_payouts SET deleted_at = now(), deleted_by = 'absence'")
    assert kept(connection, "collection, key, cause") == [("claim_payouts", {"charge_id": 1, "claim_id": 2}, "absence")]
    connection.execute("DELETE FROM nexhealth_claim_payouts")
