"""A row is written when it is new or newer, and only then."""

import threading
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.warehouse.merge import Change, Merged, Stage

from .kit import GADGETS, MINUTE, NOON, SOFT_DELETED, UNVERSIONED, WINDOWED, Table, gadget, until_it_waits

NEWER, OLDER = "2026-03-01T10:00:01Z", "2026-03-01T09:59:59Z"
EVERY_KIND = [GADGETS, UNVERSIONED, WINDOWED, SOFT_DELETED]
every_kind = pytest.mark.parametrize("kind", EVERY_KIND, ids=["versioned", "unversioned", "windowed", "soft_deleted"])


@pytest.fixture
def table(connection: psycopg.Connection) -> Table:
    return Table(connection)


@every_kind
def test_a_new_record_is_inserted_and_read_back(connection: psycopg.Connection, kind: Collection) -> None:
    table = Table(connection, kind)
    assert table.load(gadget(1), gadget(2)) == (2, 0)
    row = connection.execute(
        "SELECT institution_id, name, active, born::text, weight, price, price_currency, maker_city, tags, synced_at,"
        " source_read_at, deleted_at, deleted_by FROM nexhealth_gadgets WHERE id = 2"
    ).fetchone()
    assert row is not None
    assert row[:4] == (7, "Zoë", True, "2001-02-03")
    assert (row[4], str(row[5]), row[6], row[7], row[8]) == (1.5, "12.50", "USD", "Malmö", ["a", {"b": None}])
    assert row[9] is not None
    assert row[10:] == (NOON, None, None)


@every_kind
@pytest.mark.parametrize("minutes", [-5, 0, 5])
def test_an_unchanged_record_writes_nothing(connection: psycopg.Connection, kind: Collection, minutes: int) -> None:
    """Risk: a nightly read of everything rewrites every row, and the disk fills with dead ones."""
    table = Table(connection, kind)
    table.load(gadget(1), gadget(2))
    before = table.places()
    assert table.load(gadget(1), gadget(2), read_at=NOON + minutes * MINUTE) == (0, 0)
    assert table.places() == before


def test_an_unchanged_pass_locks_no_row(table: Table, other: psycopg.Connection) -> None:
    """Risk: ON CONFLICT locks rows that it then leaves alone, which writes WAL and blocks others."""
    table.load(gadget(1))
    with other.transaction():
        other.execute("SELECT * FROM nexhealth_gadgets FOR UPDATE")
        table.connection.execute("SET lock_timeout = '100ms'")
        assert table.load(gadget(1)) == (0, 0)


@pytest.mark.parametrize(
    ("version", "minutes", "taken"),
    [
        (NEWER, 5, True),
        (NEWER, -5, True),  # newer content, though read earlier: a page that was committed late
        (OLDER, 5, False),
        (OLDER, -5, False),
        ("2026-03-01T10:00:00Z", 5, True),  # equal: the later read decides
        ("2026-03-01T10:00:00Z", 0, True),
        ("2026-03-01T10:00:00Z", -5, False),
        (None, 5, True),  # explicitly without a version
        (None, -5, False),
        (..., 5, True),  # the key is not there at all
        (..., -5, False),
    ],
)
def test_an_older_version_never_replaces_a_newer_one(table: Table, version: object, minutes: int, taken: bool) -> None:
    table.load(gadget())
    record = gadget(note="other", updated_at=version)
    assert table.classify(record, read_at=NOON + minutes * MINUTE) == Merged(0, int(taken))
    assert table.load(record, read_at=NOON + minutes * MINUTE) == (0, int(taken))
    assert table.value("note") == ("other" if taken else "first")


def test_a_row_without_a_version_takes_any_version_read_later(table: Table) -> None:
    table.load(gadget(updated_at=None))
    assert table.load(gadget(updated_at=OLDER, note="earlier"), read_at=NOON - MINUTE) == (0, 0)
    assert table.load(gadget(updated_at=OLDER, note="later"), read_at=NOON + MINUTE) == (0, 1)


@pytest.mark.parametrize(
    ("read", "not_before", "taken"), [(1, None, True), (-1, None, False), (1, 2, False), (3, 2, True), (2, 2, True)]
)
def test_without_versions_only_a_read_begun_after_the_last_complete_pass_counts(
    connection: psycopg.Connection, read: int, not_before: int | None, taken: bool
) -> None:
    """Risk: a page that hung for minutes brings back what a complete pass has since replaced."""
    table = Table(connection, UNVERSIONED)
    table.load(gadget())
    limit = None if not_before is None else NOON + not_before * MINUTE
    record = gadget(note="other", updated_at="2026-01-01T00:00:00Z")
    assert table.load(record, read_at=NOON + read * MINUTE, not_before=limit) == (0, int(taken))


@every_kind
def test_an_absent_key_keeps_its_value_and_an_explicit_null_overwrites_it(
    connection: psycopg.Connection, kind: Collection
) -> None:
    table = Table(connection, kind)
    table.load(gadget())
    later = NOON + MINUTE
    changed = gadget(note=..., name=None, price=..., maker=None, weight=2.5, updated_at=NEWER)
    assert table.load(changed, read_at=later) == (0, 1)
    assert [table.value(name) for name in ("note", "name", "price_currency", "maker_city", "weight")] == [
        "first",
        None,
        "USD",
        None,
        2.5,
    ]


def test_an_absent_key_keeps_the_value_of_its_own_row(table: Table) -> None:
    """Risk: one patient's note under another's name."""
    table.load(gadget(1, note="one"), gadget(2, note="two"), gadget(3, note="three"))
    changed = [gadget(1, weight=2, updated_at=NEWER), gadget(3, note=..., weight=2, updated_at=NEWER)]
    assert table.load(*changed, read_at=NOON + MINUTE) == (0, 2)
    notes = table.connection.execute("SELECT note FROM nexhealth_gadgets ORDER BY id").fetchall()
    assert notes == [("first",), ("two",), ("three",)]


def test_a_record_that_only_lacks_keys_is_unchanged(table: Table) -> None:
    """Risk: a list that omits null keys rewrites every row of one that does not, and back, every night."""
    table.load(gadget())
    before = table.places()
    for _ in range(2):
        assert table.load(gadget(note=..., tags=...), read_at=NOON + MINUTE) == (0, 0)
    assert table.places() == before


def test_a_key_absent_twice_still_keeps_its_value(table: Table) -> None:
    table.load(gadget())
    table.load(gadget(note=..., weight=2, updated_at=NEWER), read_at=NOON + MINUTE)
    table.load(gadget(note=..., weight=3, updated_at="2026-03-01T10:00:02Z"), read_at=NOON + 2 * MINUTE)
    assert (table.value("note"), table.value("weight")) == ("first", 3)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_newest_of_the_same_id_in_one_stage_wins(table: Table, order: tuple[int, ...]) -> None:
    """Pages shift while rows change, so a record comes twice; ON CONFLICT would refuse that."""
    versions = [OLDER, "2026-03-01T10:00:00Z", NEWER]
    records = [gadget(note=f"note {index}", updated_at=versions[index]) for index in range(3)]
    assert table.load(*(records[index] for index in order)) == (1, 0)
    assert table.value("note") == "note 2"


def test_of_equal_versions_in_one_stage_the_later_read_wins(table: Table) -> None:
    stage = table.stage(gadget(note="late"), read_at=NOON + MINUTE)
    table.add(stage, gadget(note="early"), read_at=NOON)
    stage.merge(None)
    assert table.value("note") == "late"


def test_a_stage_is_empty_after_its_merge_and_after_it_is_opened_again(table: Table) -> None:
    stage = table.stage(gadget(1))
    stage.merge(None)
    assert stage.merge(None) == Merged(0, 0)
    table.stage(gadget(2))
    assert table.load(gadget(3)) == (1, 0)
    assert [row[-1] for row in table.places()] == [1, 3]


def test_only_the_source_columns_decide_whether_a_record_changed(table: Table) -> None:
    """A field that no column is declared for does not rewrite rows; the next real change brings it into raw."""
    table.load(gadget(unknown=1))
    assert table.load(gadget(unknown=2), read_at=NOON + MINUTE) == (0, 0)
    assert table.load(gadget(unknown=3, note="new", updated_at=NEWER), read_at=NOON + MINUTE) == (0, 1)
    assert table.value("raw->>'unknown'") == "3"


@pytest.mark.parametrize("kind", [GADGETS, UNVERSIONED, SOFT_DELETED], ids=["versioned", "unversioned", "soft_deleted"])
@pytest.mark.parametrize("absent", [True, False], ids=["key_absent", "key_null"])
def test_a_row_marked_absent_comes_back_by_a_read_begun_after_the_mark(
    connection: psycopg.Connection, kind: Collection, absent: bool
) -> None:
    table = Table(connection, kind)
    extra: dict[str, Any] = {} if absent else {"deleted_at": None}
    table.load(gadget(**extra))
    table.bury(1, NOON + 5 * MINUTE)
    assert table.load(gadget(**extra), read_at=NOON + 4 * MINUTE) == (0, 0)
    assert table.value("deleted_by") == "absence"
    assert table.load(gadget(**extra), read_at=NOON + 6 * MINUTE) == (0, 1)
    assert (table.value("deleted_at"), table.value("deleted_by")) == (None, None)
    assert table.load(gadget(**extra), read_at=NOON + 7 * MINUTE) == (0, 0)


def test_a_row_marked_absent_comes_back_by_a_newer_version_whenever_it_was_read(table: Table) -> None:
    table.load(gadget())
    table.bury(1, NOON + 5 * MINUTE)
    assert table.load(gadget(updated_at=NEWER), read_at=NOON + MINUTE) == (0, 1)
    assert (table.value("deleted_at"), table.value("deleted_by")) == (None, None)


@pytest.mark.parametrize("kind", [GADGETS, UNVERSIONED, SOFT_DELETED], ids=["versioned", "unversioned", "soft_deleted"])
def test_an_equal_version_read_before_the_mark_revives_nothing_even_with_other_content(
    connection: psycopg.Connection, kind: Collection
) -> None:
    """Risk: a page that was slow to commit undoes what a complete read has found."""
    table = Table(connection, kind)
    table.load(gadget())
    table.bury(1, NOON + 5 * MINUTE)
    assert table.load(gadget(note="other"), read_at=NOON + 4 * MINUTE) == (0, 0)
    assert table.value("deleted_by") == "absence"


def test_a_revived_row_keeps_the_values_whose_keys_are_absent(table: Table) -> None:
    table.load(gadget())
    table.load(gadget(note=..., weight=2, updated_at=NEWER), read_at=NOON + MINUTE)
    table.bury(1, NOON + 5 * MINUTE)
    assert table.load(gadget(note=..., weight=2, updated_at=NEWER), read_at=NOON + 6 * MINUTE) == (0, 1)
    assert table.value("note") == "first"


def test_a_source_deletion_and_its_taking_back_are_plain_changes(connection: psycopg.Connection) -> None:
    table = Table(connection, SOFT_DELETED)
    table.load(gadget(deleted_at=None))
    deleted = "2026-03-01T10:00:01Z"
    assert table.load(gadget(deleted_at=deleted, updated_at=NEWER), read_at=NOON + MINUTE) == (0, 1)
    assert (table.value("deleted_at").isoformat(), table.value("deleted_by")) == ("2026-03-01T10:00:01+00:00", "source")
    assert table.load(gadget(deleted_at=deleted, updated_at=NEWER), read_at=NOON + 2 * MINUTE) == (0, 0)
    assert table.load(gadget(deleted_at=None, updated_at="2026-03-01T10:00:02Z"), read_at=NOON + 3 * MINUTE) == (0, 1)
    assert (table.value("deleted_at"), table.value("deleted_by")) == (None, None)


def test_an_older_version_takes_back_no_source_deletion(connection: psycopg.Connection) -> None:
    table = Table(connection, SOFT_DELETED)
    table.load(gadget(deleted_at="2026-03-01T10:00:00Z"))
    assert table.load(gadget(deleted_at=None, updated_at=OLDER), read_at=NOON + MINUTE) == (0, 0)
    assert table.value("deleted_by") == "source"


def test_a_row_first_seen_deleted_says_so(connection: psycopg.Connection) -> None:
    table = Table(connection, SOFT_DELETED)
    table.load(gadget(deleted_at="2026-03-01T10:00:00Z"))
    assert table.value("deleted_by") == "source"


@pytest.mark.parametrize("kind", [GADGETS, UNVERSIONED], ids=["versioned", "unversioned"])
@pytest.mark.parametrize("newest_first", [True, False], ids=["newest_first", "newest_last"])
@pytest.mark.parametrize("beside", [[], [gadget(2, note="new", updated_at=NEWER)]], ids=["all new", "merged"])
def test_two_connections_that_merge_the_same_new_row_leave_the_newest(
    connection: psycopg.Connection,
    other: psycopg.Connection,
    kind: Collection,
    newest_first: bool,
    beside: list[dict[str, Any]],
) -> None:
    """Risk: the filter saw no row in either, so only the guard behind ON CONFLICT stands between them.

    Of a batch that is all new the second has another look, since it goes straight into the table.
    """
    first, second = Table(connection, kind), Table(other, kind)
    first.load(gadget(2, updated_at=OLDER))
    new: dict[str, Any] = {"note": "new", "updated_at": NEWER, "read_at": NOON + MINUTE}
    old: dict[str, Any] = {"note": "old", "updated_at": OLDER, "read_at": NOON}
    stages: list[Stage] = []
    for table, fields in ((first, new), (second, old)) if newest_first else ((first, old), (second, new)):
        others = beside if stages else []
        own = gadget(note=fields["note"], updated_at=fields["updated_at"])
        stages.append(table.stage(own, *others, read_at=fields["read_at"]))
    done: list[Merged] = []
    with connection.transaction():
        assert stages[0].merge(None) == Merged(1, 0)
        waiting = threading.Thread(target=lambda: done.append(stages[1].merge(None)))
        waiting.start()
        until_it_waits(connection, other)
    waiting.join(10)
    assert done == [Merged(0, len(beside) + (0 if newest_first else 1))]
    assert connection.execute("SELECT note FROM nexhealth_gadgets WHERE id = 1").fetchone() == ("new",)


@pytest.mark.parametrize("kind", [GADGETS, UNVERSIONED], ids=["versioned", "unversioned"])
def test_two_connections_that_merge_the_same_new_record_write_it_once(
    connection: psycopg.Connection, other: psycopg.Connection, kind: Collection
) -> None:
    """Risk: two overlapping reads of a location rewrite each other's rows, each with a version in the history."""
    first, second = Table(connection, kind), Table(other, kind)
    first.load(gadget(2, updated_at=OLDER))
    early = first.stage(gadget())
    late = second.stage(gadget(), gadget(2, note="new", updated_at=NEWER), read_at=NOON + MINUTE)
    done: list[Merged] = []
    with connection.transaction():
        assert early.merge(None) == Merged(1, 0)
        waiting = threading.Thread(target=lambda: done.append(late.merge(None)))
        waiting.start()
        until_it_waits(connection, other)
    waiting.join(10)
    assert done == [Merged(0, 1)]


def test_a_row_marked_absent_while_a_merge_waits_stays_marked(
    table: Table, connection: psycopg.Connection, other: psycopg.Connection
) -> None:
    table.load(gadget())
    late = Table(other)
    stage = late.stage(gadget(note="other"), read_at=NOON + MINUTE)
    done: list[Merged] = []
    with connection.transaction():
        table.bury(1, NOON + 5 * MINUTE)
        waiting = threading.Thread(target=lambda: done.append(stage.merge(None)))
        waiting.start()
        until_it_waits(connection, other)
    waiting.join(10)
    assert done == [Merged(0, 0)]
    assert table.value("deleted_by") == "absence"


def test_changes_names_old_and_new_month_and_location_of_a_moved_row(connection: psycopg.Connection) -> None:
    table = Table(connection, WINDOWED)
    table.load(gadget(1), gadget(2), gadget(3), gadget(4))
    moved = gadget(1, start_time="2026-04-01T00:30:00+02:00", updated_at=NEWER)  # still March in UTC
    elsewhere = gadget(2, location_id=4, updated_at=NEWER)
    in_place = gadget(3, note="x", updated_at=NEWER)
    new = gadget(5, start_time="2026-05-31T23:59:59Z")
    later = NOON + MINUTE
    assert table.changes(moved, elsewhere, in_place, gadget(4), new, read_at=later) == {
        Change(3, "2026-02", 3),  # out of it, out of it, in it
        Change(3, "2026-03", 1),
        Change(4, "2026-02", 1),
        Change(3, "2026-05", 1),
    }
    assert table.changes(gadget(1), read_at=later) == set()
    assert table.changes(gadget(1, start_time="2026-09-01T00:00:00Z", updated_at=OLDER), read_at=later) == set()


def test_changes_counts_no_row_without_a_time_or_place(connection: psycopg.Connection) -> None:
    table = Table(connection, WINDOWED)
    assert table.changes(gadget(1, start_time=None), gadget(2, location_id=None)) == set()


def test_a_collection_without_window_has_no_places(table: Table) -> None:
    assert table.changes(gadget()) == set()


def test_classify_says_what_merge_would_do_and_writes_nothing(table: Table) -> None:
    table.load(gadget(1), gadget(2))
    before = table.places()
    records = (gadget(1, note="x", updated_at=NEWER), gadget(2), gadget(3), gadget(3))
    assert table.classify(*records) == Merged(1, 1)
    assert table.places() == before
    stage = table.stage(*records)
    assert stage.classify(target_exists=False) == Merged(3, 0)


def test_an_empty_stage_merges_to_nothing(table: Table) -> None:
    assert table.load() == (0, 0)


def test_a_big_merge_leaves_unchanged_rows_where_they_lie(table: Table) -> None:
    records = [gadget(number, note=f"n{number}") for number in range(500)]
    assert table.load(*records) == (500, 0)
    before = {row[-1]: row[:-1] for row in table.places()}
    records[77] = gadget(77, note="changed", updated_at=NEWER)
    assert table.load(*records, read_at=NOON + timedelta(hours=1)) == (0, 1)
    after = {row[-1]: row[:-1] for row in table.places()}
    assert {number for number in before if before[number] != after[number]} == {77}
