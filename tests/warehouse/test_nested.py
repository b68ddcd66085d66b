"""A list inside a record is a table of its own, replaced with the record and never by an older one."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Collection, Column, Phi, Scope, SqlType, column, flatten
from nexhealth_pipeline.warehouse.merge import Merged
from nexhealth_pipeline.warehouse.nested import NestedStage
from nexhealth_pipeline.warehouse.tables import ensure_tables

from .kit import GADGETS, INSTITUTION, MINUTE, NOON, Table, gadget

PARTS = Collection(
    name="parts",
    group="practice",
    doc="A part of a made-up thing.",
    path=GADGETS.path,
    scope=Scope.LOCATION,
    inside="gadgets",
    records_at=("parts",),
    key=("institution_id", "gadget_id", "slot"),
    from_request=(Column("gadget_id", SqlType.BIGINT, Phi.ID, "The thing.", ("id",)),),
    columns=flatten(
        column("slot", SqlType.BIGINT, Phi.NONE, "Where it goes."),
        column("name", SqlType.TEXT, Phi.NONE, "Name."),
    ),
)
V1, V2, V3 = (f"2026-03-01T10:00:0{second}Z" for second in (1, 2, 3))


@pytest.fixture
def connection(connection: psycopg.Connection) -> Iterator[psycopg.Connection]:
    ensure_tables(connection, [GADGETS, PARTS])
    yield connection
    connection.execute("DROP TABLE IF EXISTS nexhealth_parts CASCADE")


def thing(version: str | None, *slots: int, **fields: Any) -> dict[str, Any]:
    parts = [{"slot": slot, "name": f"part {slot}"} for slot in slots]
    return gadget(1, updated_at=version, **({"parts": parts} | fields))


def load(connection: psycopg.Connection, *records: dict[str, Any], read_at: datetime = NOON) -> Merged:
    """The records and their parts, as a loader does: one batch, the records first."""
    stage = Table(connection).stage(*records, read_at=read_at)
    nested = NestedStage(connection, PARTS, GADGETS, INSTITUTION)
    nested.open()
    lists = nested.encode([json.dumps(one).encode() for one in records], read_at)
    nested.add(lists)
    load.notes = lists.notes  # type: ignore[attr-defined]
    stage.merge(None)
    return nested.merge()


def parts(connection: psycopg.Connection, *, gone: bool = False) -> list[int]:
    condition = "IS NOT NULL" if gone else "IS NULL"
    rows = connection.execute(f"SELECT slot FROM nexhealth_parts WHERE deleted_at {condition} ORDER BY slot")
    return [row[0] for row in rows]


def test_rows_come_with_their_record_and_are_marked_when_its_list_lacks_them(connection: psycopg.Connection) -> None:
    """Risk: a procedure taken off a plan stays on it for ever."""
    assert load(connection, thing(V1, 1, 2)) == Merged(2, 0)
    row = connection.execute("SELECT institution_id, gadget_id, name, raw->>'slot' FROM nexhealth_parts").fetchone()
    assert row == (INSTITUTION, 1, "part 1", "1")
    assert load(connection, thing(V2, 2, 3), read_at=NOON + MINUTE) == Merged(1, 1)
    assert parts(connection) == [2, 3]
    assert parts(connection, gone=True) == [1]
    assert connection.execute(
        "SELECT DISTINCT deleted_by, deleted_at FROM nexhealth_parts WHERE slot = 1"
    ).fetchall() == [("absence", NOON + MINUTE)]


def test_a_row_that_returns_is_revived(connection: psycopg.Connection) -> None:
    load(connection, thing(V1, 1))
    load(connection, thing(V2), read_at=NOON + MINUTE)
    assert parts(connection) == []
    load(connection, thing(V3, 1), read_at=NOON + 2 * MINUTE)
    assert parts(connection) == [1]


def test_reading_the_same_again_writes_nothing(connection: psycopg.Connection) -> None:
    load(connection, thing(V1, 1, 2))
    before = connection.execute("SELECT ctid, xmin FROM nexhealth_parts").fetchall()
    assert load(connection, thing(V1, 1, 2), read_at=NOON + MINUTE) == Merged(0, 0)
    assert connection.execute("SELECT ctid, xmin FROM nexhealth_parts").fetchall() == before


def test_an_older_record_changes_nothing_though_it_was_read_later(connection: psycopg.Connection) -> None:
    """Promise 4 holds for lists too: an old page or a replay must not bring back what is gone."""
    load(connection, thing(V1, 1, 2))
    load(connection, thing(V3, 2), read_at=NOON + MINUTE)
    assert load(connection, thing(V2, 1, 4), read_at=NOON + 2 * MINUTE) == Merged(0, 0)
    assert parts(connection) == [2]


def test_an_earlier_read_of_the_same_version_changes_nothing(connection: psycopg.Connection) -> None:
    load(connection, thing(V1, 1, 2), read_at=NOON + MINUTE)
    load(connection, thing(V1, 2), read_at=NOON + 2 * MINUTE)
    load(connection, thing(V1, 1, 2), read_at=NOON)
    assert parts(connection) == [2]


def test_a_record_whose_version_cannot_be_read_brings_its_list_all_the_same(connection: psycopg.Connection) -> None:
    """Its own row comes without that field: one fault costs no other value."""
    assert load(connection, thing("2026-02-30T10:00:00Z", 1, 2)) == Merged(2, 0)
    load(connection, thing("2026-02-30T10:00:00Z", 2), read_at=NOON + MINUTE)
    assert parts(connection) == [2]


@pytest.mark.parametrize("says_nothing", [{"parts": None}, {"parts": ...}, {"parts": ""}])
def test_a_record_without_a_list_says_nothing_about_its_rows(
    connection: psycopg.Connection, says_nothing: dict[str, Any]
) -> None:
    """Risk: an answer without the include empties the table."""
    load(connection, thing(V1, 1, 2))
    load(connection, thing(V2, **says_nothing), read_at=NOON + MINUTE)
    assert parts(connection) == [1, 2]
    assert load.notes == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("instead", ["none", {"items": [{"slot": 1}]}, 5, True])
def test_what_is_no_list_goes_to_quarantine_and_says_nothing_about_the_rows(
    connection: psycopg.Connection, instead: object
) -> None:
    """Should NexHealth wrap the list, all new rows would be missing while every slice is green."""
    load(connection, thing(V1, 1, 2))
    assert load(connection, thing(V2, parts=instead), read_at=NOON + MINUTE) == Merged()
    assert parts(connection) == [1, 2]
    (note,) = load.notes  # type: ignore[attr-defined]
    assert (note.record_id, note.field, note.rule, note.loaded) == ("1", "parts", "not a list", False)
    assert (json.loads(note.raw), note.request, note.read_at) == (instead, {"gadget_id": 1}, NOON + MINUTE)


def test_a_record_whose_newest_list_is_none_brings_no_older_one(connection: psycopg.Connection) -> None:
    load(connection, thing(V1, 3), thing(V2, parts={"slot": 4}))
    assert parts(connection) == []
    assert [note.rule for note in load.notes] == ["not a list"]  # type: ignore[attr-defined]


def test_only_records_that_have_a_list_are_said_to_have_brought_one(connection: psycopg.Connection) -> None:
    """By the others no open fault of a list is mended."""
    records = [
        thing(V1, 1),
        *(gadget(number, parts=value) for number, value in ((2, None), (3, ...), (4, "x"), (5, []))),
    ]
    nested = NestedStage(connection, PARTS, GADGETS, INSTITUTION)
    assert nested.encode([json.dumps(one).encode() for one in records], NOON).owners == [1, 5]


def test_a_row_that_cannot_be_read_keeps_its_siblings(connection: psycopg.Connection) -> None:
    """What the list lacks is not known to be gone while one of its rows cannot be told."""
    load(connection, thing(V1, 1, 2))
    broken = [{"slot": "x", "name": "?"}, {"slot": 2, "name": "changed"}]
    load(connection, thing(V2, parts=broken), read_at=NOON + MINUTE)
    assert parts(connection) == [1, 2]
    assert [(note.field, note.loaded) for note in load.notes] == [("slot", False)]  # type: ignore[attr-defined]
    assert connection.execute("SELECT name FROM nexhealth_parts WHERE slot = 2").fetchone() == ("changed",)


@pytest.mark.parametrize("raw", [b'{"i\xff\xfed":1}', b'{"id":1,"parts":[{"slot":"\xff"}]}', b"[1]"])
def test_bytes_that_no_parser_takes_say_nothing_and_stop_nothing(connection: psycopg.Connection, raw: bytes) -> None:
    """The record itself goes to quarantine; an error here would end all slices of the run."""
    load(connection, thing(V1, 1))
    nested = NestedStage(connection, PARTS, GADGETS, INSTITUTION)
    nested.open()
    nested.add(nested.encode([raw], NOON + MINUTE))
    assert nested.merge() == Merged()
    assert parts(connection) == [1]


def test_a_record_that_comes_twice_in_one_answer_counts_as_its_newest_version(
    connection: psycopg.Connection,
) -> None:
    """Risk: the record is the newer one and its list the older one's, for good: nothing reads it again."""
    load(connection, thing(V2, 1, 2), thing(V1, 1, 5))
    assert parts(connection) == [1, 2]
    load(connection, thing(V3, 3), thing(V3, 4), read_at=NOON + MINUTE)
    assert (parts(connection), parts(connection, gone=True)) == ([4], [1, 2])


def test_a_record_that_comes_twice_counts_as_it_came_last(connection: psycopg.Connection) -> None:
    """Pages shift while rows change."""
    stage = Table(connection).stage(thing(V1, 1))
    nested = NestedStage(connection, PARTS, GADGETS, INSTITUTION)
    nested.open()
    nested.add(nested.encode([json.dumps(thing(V1, 1, 5)).encode(), json.dumps(thing(V1, 1)).encode()], NOON))
    nested.add(nested.encode([json.dumps(thing(V2, 2)).encode()], NOON + MINUTE))
    stage.merge(None)
    nested.merge()
    assert parts(connection) == [2]
    assert parts(connection, gone=True) == []


@pytest.mark.parametrize("version", [None, "2026-02-30T10:00:00Z"], ids=["none", "none that can be read"])
def test_a_record_without_a_version_that_comes_twice_counts_as_it_came_last(
    connection: psycopg.Connection, version: str | None
) -> None:
    """Else a row that only the older of the two lists has is there for good."""
    stage = Table(connection).stage(thing(version, 1))
    nested = NestedStage(connection, PARTS, GADGETS, INSTITUTION)
    nested.open()
    for at, slots in ((NOON, (1, 5)), (NOON + MINUTE, (1, 2))):
        nested.add(nested.encode([json.dumps(thing(version, *slots)).encode()], at))
    stage.merge(None)
    nested.merge()
    assert parts(connection) == [1, 2]


def test_of_two_reads_the_one_without_a_version_is_the_older(connection: psycopg.Connection) -> None:
    """As of the record itself."""
    stage = Table(connection).stage(thing(V1, 1))
    nested = NestedStage(connection, PARTS, GADGETS, INSTITUTION)
    nested.open()
    nested.add(nested.encode([json.dumps(gadget(1, updated_at=None, parts=[{"slot": 5}])).encode()], NOON + MINUTE))
    nested.add(nested.encode([json.dumps(thing(V1, 1)).encode()], NOON))
    stage.merge(None)
    nested.merge()
    assert parts(connection) == [1]
