"""Deletions whose time the API gives in a shape that no time has: what is deleted must not come to life by it."""

import json
from datetime import timedelta

import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.warehouse.encode import RecordEncoder
from nexhealth_pipeline.warehouse.values import NULL, says_deleted

from .kit import MINUTE, NOON, SOFT_DELETED, Table, gadget

TOLD: list[object] = [
    *("2024-09-15", "2024-09-15T11:21:26", "2024-02-30T00:00:00Z", "15.09.2024", "9/15/2024 11:21:26 AM"),
    *("20240915", "20240915112126", "Sep 15, 2024", "true", "True", "yes", "t", "Y", "1"),
    *(True, 1, 1726399286, 1726399286.5, 1726399286000, "1726399286", "1726399286000", 20240915),
]
NOT_TOLD: list[object] = [
    *(None, "", " ", False, "false", "False", 0, "0", "null", [], {}, {"at": 1}, [1726399286]),
    *("no", "n", "f", "n/a", "N/A", "-", "never", "active"),
    *(
        "0000-00-00 00:00:00",
        "0001-01-01T00:00:00Z",
        "9999-12-31",
        "9999-12-31T23:59:59Z",
        "9999-12-31T23:59:59.9970000",
    ),
    *("00/00/0000", "0000/00/00", "1/1/0001 12:00:00 AM", "12/31/9999", "00000000", "99991231", "99991231235959"),
    *(
        -1,
        0.0,
        7,
        99991231,
        "253402300799",
        "253402300799000",
        1e300,
        -62135596800,
        -62135596800000,
        253370764800,
        253402300799,
        253402300799000,
    ),
]
ASKED_FOR = [one for one in DECLARED if one.soft_delete in {column.name for column in one.columns}]
"""Collections whose lists are asked for with what is deleted."""


@pytest.fixture
def table(connection: psycopg.Connection) -> Table:
    return Table(connection, SOFT_DELETED)


def test_these_lists_hold_what_is_deleted() -> None:
    assert {one.name for one in ASKED_FOR} == {"charges", "payments", "adjustments", "claims", "insurance_plans"}


@pytest.mark.parametrize("collection", ASKED_FOR, ids=lambda one: one.name)
@pytest.mark.parametrize("value", [*TOLD, *NOT_TOLD], ids=repr)
def test_what_says_deleted_in_any_shape_is_deleted_since_its_version(collection: object, value: object) -> None:
    """Balances were wrong: all that was ever deleted was there again, and a quarantine note a row was all that told."""
    encoder = RecordEncoder(collection, 1)  # type: ignore[arg-type]
    record = {"id": 7, "updated_at": "2026-01-01T00:00:00Z", "deleted_at": value}
    encoded = encoder.encode([json.dumps(record).encode()], NOON, {"location_id": 3})
    at = encoder.stage_columns.index("deleted_at")
    told = "2026-01-01T00:00:00Z" if value in TOLD else NULL
    assert encoded.lines[0].split("\t")[at] == told
    assert says_deleted(value) == (told != NULL)
    assert {note.field for note in encoded.notes} == (set() if value in (None, "") else {"deleted_at"})


def test_a_deletion_without_a_readable_time_is_written_once(table: Table) -> None:
    """Without a version it is deleted since it was read, and not anew at each read."""
    for fields in ({}, {"updated_at": None}):
        number = len(fields) + 1
        record = gadget(number, deleted_at="2024-09-15", **fields)
        assert table.load(record) == (1, 0)
        assert table.value("deleted_by", number) == "source"
        since = table.value("deleted_at", number)
        assert since == (NOON if fields else table.value("updated_at", number))
        places = table.places()
        assert table.load(record, read_at=NOON + MINUTE) == (0, 0)
        assert (table.places(), table.value("deleted_at", number)) == (places, since)


def test_a_deletion_gets_its_time_and_is_taken_back_as_ever(table: Table) -> None:
    """Also one that was read before as if it were none, by an earlier release."""
    table.load(gadget(deleted_at=None))
    assert table.load(gadget(deleted_at=True), read_at=NOON + MINUTE) == (0, 1)
    assert table.value("deleted_by") == "source"
    assert table.load(gadget(deleted_at="2026-03-01T11:00:00Z"), read_at=NOON + 2 * MINUTE) == (0, 1)
    assert table.value("deleted_at") == NOON - timedelta(hours=1)
    assert table.load(gadget(deleted_at=False), read_at=NOON + 3 * MINUTE) == (0, 1)
    assert (table.value("deleted_at"), table.value("deleted_by")) == (None, None)
    assert table.load(gadget(deleted_at=True, updated_at="2026-03-01T09:00:00Z"), read_at=NOON + 4 * MINUTE) == (0, 0)
    assert table.value("deleted_by") is None, "an older version says nothing"
