"""A record in another patient's list is that patient's now, though its bytes are the same and name nobody."""

from dataclasses import replace

import psycopg

from nexhealth_pipeline.catalog.collection import Collection, Column, Phi, SqlType
from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.warehouse.merge import Merged

from .conftest import Rows
from .kit import MINUTE, NOON, UNVERSIONED, Table, gadget

_PATIENT = Column("patient_id", SqlType.BIGINT, Phi.ID, "Whose list it is in.", ())
PAPERS = replace(UNVERSIONED, per="patients", from_request=(_PATIENT,))
"""In lists of one patient each, as documents are."""
BEFORE = replace(PAPERS, per=None)
"""The same as earlier releases hashed it: without the patient."""


def of(connection: psycopg.Connection, patient: int, collection: Collection = PAPERS) -> Table:
    """The table, and the list of that patient."""
    return Table(connection, collection, {"patient_id": patient})


def test_the_catalog_says_what_only_a_list_can_tell() -> None:
    assert {one.name: one.list_columns for one in DECLARED if one.list_columns} == {"documents": ("patient_id",)}


def test_a_record_in_another_patients_list_moves_there(connection: psycopg.Connection, rows: Rows) -> None:
    """Risk: it stays in the wrong patient's chart, and is marked as gone with that patient."""
    of(connection, 1).load(gadget(1), gadget(2))
    later = of(connection, 2)
    assert later.classify(gadget(1), read_at=NOON + MINUTE) == Merged(0, 1)
    assert later.load(gadget(1), read_at=NOON + MINUTE) == (0, 1)
    assert [later.value("patient_id", number) for number in (1, 2)] == [2, 1]
    assert later.value("source_read_at") == NOON + MINUTE
    history = "SELECT id, changed_fields, fields->>'patient_id' FROM nexhealth_history WHERE collection = 'gadgets'"
    assert rows(history) == [(1, ["patient_id"], "1")]
    assert rows("SELECT id, kind FROM nexhealth_changes WHERE collection = 'gadgets' ORDER BY position") == [
        (1, "inserted"),
        (2, "inserted"),
        (1, "updated"),
    ]


def test_a_merge_tells_whose_lists_lost_records(connection: psycopg.Connection) -> None:
    """Each once; neither of what is new, nor of what was read before it moved."""
    of(connection, 1).load(gadget(1), gadget(2), gadget(3))
    of(connection, 2).load(gadget(4))
    later = of(connection, 3)
    records = (gadget(1), gadget(2, note="other"), gadget(4), gadget(5))
    assert later.stage(*records, read_at=NOON - MINUTE).merge(None).left == []
    assert sorted(later.stage(*records, read_at=NOON + MINUTE).merge(None).left) == [1, 2]
    assert later.stage(gadget(1, note="other"), read_at=NOON + 2 * MINUTE).merge(None).left == []


def test_the_same_list_read_again_writes_nothing(connection: psycopg.Connection) -> None:
    table = of(connection, 1)
    table.load(gadget(1))
    before = table.places()
    assert table.load(gadget(1), read_at=NOON + MINUTE) == (0, 0)
    assert table.places() == before


def test_a_list_read_before_the_move_moves_nothing_back(connection: psycopg.Connection) -> None:
    """Two lists are asked for side by side, and the older answer may be loaded last."""
    of(connection, 2).load(gadget(1), read_at=NOON + MINUTE)
    late = of(connection, 1)
    assert late.load(gadget(1), read_at=NOON) == (0, 0)
    assert late.value("patient_id") == 2


def test_of_two_lists_in_one_batch_the_later_one_has_it(connection: psycopg.Connection) -> None:
    new = of(connection, 2)
    stage = new.stage(gadget(1), read_at=NOON + MINUTE)
    of(connection, 1).add(stage, gadget(1), read_at=NOON)
    stage.merge(None)
    assert new.value("patient_id") == 2


def test_rows_of_an_earlier_release_are_hashed_anew_and_not_rewritten(
    connection: psycopg.Connection, rows: Rows
) -> None:
    """Else all documents would be told as changed once, or be sent to be compared every night."""
    records = (gadget(1), gadget(2, note=...))
    of(connection, 1, BEFORE).load(*records)
    table = of(connection, 1)
    old = {table.value("row_hash", number) for number in (1, 2)}
    before = table.value("to_jsonb(nexhealth_gadgets) - 'row_hash'")
    assert table.load(*records, read_at=NOON + MINUTE) == (0, 0)
    new = {table.value("row_hash", number) for number in (1, 2)}
    assert (len(new), new & old) == (2, set())
    assert table.value("to_jsonb(nexhealth_gadgets) - 'row_hash'") == before
    known = table.places()
    assert table.load(*records, read_at=NOON + 2 * MINUTE) == (0, 0)
    assert table.places() == known
    assert rows("SELECT DISTINCT kind FROM nexhealth_changes WHERE collection = 'gadgets'") == [("inserted",)]
    assert rows("SELECT count(*) FROM nexhealth_history WHERE collection = 'gadgets'") == [(0,)]


def test_a_row_of_an_earlier_release_that_moved_is_seen_to_have_moved(connection: psycopg.Connection) -> None:
    of(connection, 1, BEFORE).load(gadget(1))
    table = of(connection, 2)
    assert table.load(gadget(1), read_at=NOON + MINUTE) == (0, 1)
    assert table.value("patient_id") == 2


def test_a_list_that_two_locations_give_alike_belongs_to_the_first(connection: psycopg.Connection) -> None:
    """Risk: siblings of one database take the row from each other, twice a night."""
    place = Column("site_id", SqlType.BIGINT, Phi.NONE, "Location that lists it.", ())
    kinds = replace(UNVERSIONED, from_request=(place,))
    Table(connection, kinds, {"site_id": 3}).load(gadget(1))
    table = Table(connection, kinds, {"site_id": 4})
    assert table.load(gadget(1), read_at=NOON + MINUTE) == (0, 0)
    assert table.value("site_id") == 3
