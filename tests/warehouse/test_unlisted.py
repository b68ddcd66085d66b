"""Rows that a list may leave out although they are there: looked for apart from all others, and only so many."""

from dataclasses import replace
from datetime import datetime, timedelta

import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.warehouse.absence import Figures, Missing
from nexhealth_pipeline.warehouse.state import PassKey

from .conftest import Rows
from .kit import GADGETS, MINUTE, NOON, Table, gadget
from .test_absence import ground, members, met, missing_ids

SHY = replace(GADGETS, unlisted_if="active", by_id="/gadgets/{id}")
"""Gadgets in use may be in no list."""


@pytest.fixture
def table(connection: psycopg.Connection) -> Table:
    """Eight gadgets, of which the last five may be in no list; the eighth stands by itself."""
    table = Table(connection, SHY)
    table.load(*(gadget(number, active=number > 3) for number in range(1, 8)), gadget(8, location_id=4))
    return table


def test_they_count_apart_and_are_asked_for_with_the_others(connection: psycopg.Connection, table: Table) -> None:
    missing = Missing(connection, ground(connection, met(connection, [1, 4]), collection=SHY))
    assert missing.find(99) == Figures(live=7, seen=2, missing=2, empty=False, unlisted=3)
    assert missing_ids(missing) == [2, 3, 5, 6, 7]


def test_only_so_many_are_asked_for_at_once_and_all_have_their_turn(
    connection: psycopg.Connection, table: Table
) -> None:
    """Risk: a practice with thousands of them costs a request each every week, or the same few are asked for ever."""
    missing = Missing(connection, ground(connection, met(connection, [1]), collection=SHY))
    asked: set[int] = set()
    for _ in range(50):
        assert missing.find(1) == Figures(live=7, seen=1, missing=2, empty=False, unlisted=1, unasked=3)
        asked.update(missing_ids(missing))
    assert asked == {2, 3, 4, 5, 6, 7}
    assert missing.find(None).unlisted == 4


def test_a_place_that_has_none_but_them_may_well_answer_with_nothing(
    connection: psycopg.Connection, table: Table
) -> None:
    """Risk: the brake says that the answer was empty, every week."""
    passes = [met(connection, ids, PassKey("gadgets", 7, place, "", "all")) for place, ids in ((3, [1, 2, 3]), (4, []))]
    missing = Missing(connection, ground(connection, *passes, collection=SHY, locations=(3, 4)))
    assert missing.find(99) == Figures(live=8, seen=3, missing=0, empty=False, unlisted=5)
    nothing = [met(connection, [], PassKey("gadgets", 7, place, "", "all")) for place in (3, 4)]
    missing = Missing(connection, ground(connection, *nothing, collection=SHY, locations=(3, 4)))
    assert missing.find(99).empty, "three are not such"
    table.connection.execute("DELETE FROM nexhealth_gadgets WHERE NOT active")
    assert missing.find(99) == Figures(live=5, seen=0, missing=0, empty=False, unlisted=5)


def test_only_those_that_were_said_to_be_gone_are_marked(
    connection: psycopg.Connection, table: Table, rows: Rows
) -> None:
    missing = Missing(connection, ground(connection, met(connection, [1, 2, 3]), collection=SHY))
    missing.find(99)
    missing.confirm([5, 6], gone=False)
    missing.confirm([7], gone=True)
    assert missing.mark(datetime.now(NOON.tzinfo)) == 1
    assert rows("SELECT id FROM nexhealth_gadgets WHERE deleted_at IS NOT NULL") == [(7,)]


def test_they_stay_at_the_only_location_that_would_list_them(connection: psycopg.Connection, rows: Rows) -> None:
    """Also where none was missing: one that an event has just brought is excused, and was met by no list either."""
    patients = COLLECTIONS["patients"]
    table = Table(connection, patients)
    table.load(
        *(
            {"id": number, "updated_at": "2026-03-01T10:00:00Z", "bio": {"new_patient": number > 2}}
            for number in (1, 2, 3, 4)
        )
    )
    members(connection, *((number, 3, None) for number in (1, 2, 3, 4)))
    mine = met(connection, [1], PassKey("patients", 7, 3, "", "all"))
    missing = Missing(connection, ground(connection, mine, collection=patients, begun_at=NOON - MINUTE))
    assert missing.find(99).unlisted == 0
    assert missing.leave_locations() == 1
    assert rows("SELECT patient_id FROM nexhealth_patient_locations WHERE gone_at IS NULL ORDER BY 1") == [
        (1,),
        (3,),
        (4,),
    ]


@pytest.mark.parametrize(
    ("status", "since", "stays"),
    [("supported", 0, False), ("supported", 10, True), ("empty", 0, True), (None, 0, True)],
)
def test_one_whom_another_locations_first_read_showed_has_not_moved_there(
    connection: psycopg.Connection, rows: Rows, status: str | None, since: int, stays: bool
) -> None:
    """Risk: an office joins the database, its first read shows who was at both for years, and they leave the older one.

    One that had nobody until then is supported only after the last page, and memberships come with each.
    """
    patients = COLLECTIONS["patients"]
    Table(connection, patients).load({"id": 1, "updated_at": "2026-03-01T10:00:00Z", "bio": {"new_patient": True}})
    for location, day in ((3, 0), (4, 10)):
        connection.execute(
            "INSERT INTO nexhealth_patient_locations VALUES (7, 1, %s, %s, NULL)",
            (location, NOON + timedelta(days=day)),
        )
    if status is not None:
        connection.execute(
            "INSERT INTO nexhealth_capabilities VALUES (7, 4, 'patients', %s, %s, 'rows')",
            (status, NOON + timedelta(days=since)),
        )
    mine = met(connection, [8], PassKey("patients", 7, 3, "", "all"))
    began = NOON + timedelta(days=12)
    missing = Missing(connection, ground(connection, mine, collection=patients, begun_at=began, started_at=began))
    missing.find()
    assert missing.leave_locations() == (0 if stays else 1)
    listed = "SELECT location_id FROM nexhealth_patient_locations WHERE gone_at IS NULL ORDER BY 1"
    assert rows(listed) == ([(3,), (4,)] if stays else [(4,)])
