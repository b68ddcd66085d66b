"""What is known beside the rows: freshness, capabilities, which location lists whom."""

from datetime import datetime
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.warehouse.knowledge import (
    close_membership,
    enabled_at,
    record_capability,
    record_freshness,
    record_locations,
    record_membership,
    refused_since,
)
from nexhealth_pipeline.warehouse.seen import begin_seen, mark_unreadable, record_seen
from nexhealth_pipeline.warehouse.state import PassKey, PassState, save_state

from .conftest import Rows
from .kit import MINUTE, NOON, Table

KEY = PassKey("patients", 7, 3, "", "members")


def fresh(connection: psycopg.Connection, location_id: int = 3, **changes: Any) -> None:
    given: dict[str, Any] = {"complete_through": NOON, "last_full_at": NOON, "changed": True} | changes
    record_freshness(connection, institution_id=7, location_id=location_id, collection="patients", **given)


def test_freshness_is_noted_once_a_slice(connection: psycopg.Connection, rows: Rows) -> None:
    fresh(connection)
    fresh(connection, complete_through=NOON + MINUTE, last_full_at=None, changed=False)
    (row,) = rows("SELECT complete_through, last_full_at, last_change_at IS NOT NULL FROM nexhealth_freshness")
    assert row == (NOON + MINUTE, NOON, True)


def test_a_read_that_completes_nothing_takes_no_freshness_away(connection: psycopg.Connection, rows: Rows) -> None:
    fresh(connection)
    fresh(connection, complete_through=None, last_full_at=None, changed=False)
    assert rows("SELECT complete_through, last_full_at FROM nexhealth_freshness") == [(NOON, NOON)]


def test_nothing_changed_yet_is_said(connection: psycopg.Connection, rows: Rows) -> None:
    fresh(connection, changed=False)
    assert rows("SELECT last_change_at FROM nexhealth_freshness") == [(None,)]


def source(name: str, status: str, minutes: int, locations: list[int]) -> dict[str, Any]:
    return {
        "sync_source_type": "DataSource",
        "sync_source_name": name,
        "read_status": status,
        "read_status_at": (NOON + minutes * MINUTE).isoformat(),
        "locations": [{"id": number} for number in locations],
        "institution_id": 7,
    }


@pytest.mark.parametrize(("location_id", "status"), [(3, "green"), (4, "red"), (9, None), (0, "red")])
def test_freshness_carries_the_status_of_the_sources_own_copy(
    connection: psycopg.Connection, rows: Rows, location_id: int, status: str | None
) -> None:
    """The office may be offline: our copy is then as fresh as NexHealth's, which is not fresh. 0 = the worst of all."""
    table = Table(connection, COLLECTIONS["sync_status"])
    table.load(source("a", "green", 5, [3]), source("b", "red", 0, [4, 5]), source("c", "gone", -9, [3]))
    connection.execute("UPDATE nexhealth_sync_status SET deleted_at = now() WHERE sync_source_name = 'c'")
    fresh(connection, location_id)
    assert rows("SELECT source_read_status FROM nexhealth_freshness") == [(status,)]


def test_a_capability_keeps_its_date_until_it_changes(connection: psycopg.Connection, rows: Rows) -> None:
    def note(status: str) -> tuple[Any, ...]:
        record_capability(
            connection,
            institution_id=7,
            location_id=3,
            collection="insurance_plans",
            status=status,
            evidence="e",
            at=NOON,
        )
        return rows("SELECT status, since FROM nexhealth_capabilities")[0]

    first = note("not_enabled")
    assert note("not_enabled") == first
    empty = note("empty")
    assert (empty[0], empty[1] > first[1]) == ("empty", True)
    supported = note("supported")
    assert supported[0] == "supported"
    assert note("empty") == supported
    assert note("not_enabled")[0] == "not_enabled"


CHARGES: dict[str, Any] = {"institution_id": 7, "location_id": 3, "collection": "charges"}


def note_charges(connection: psycopg.Connection, status: str) -> datetime | None:
    """Note it; when they were enabled."""
    record_capability(connection, **CHARGES, status=status, evidence="e", at=NOON)
    return enabled_at(connection, **CHARGES)


def test_what_is_enabled_later_is_known_with_its_time(connection: psycopg.Connection) -> None:
    assert note_charges(connection, "not_enabled") is None
    began = note_charges(connection, "supported")
    assert began == NOON
    assert note_charges(connection, "supported") == began == enabled_at(connection, **CHARGES)
    assert note_charges(connection, "not_enabled") is None


def test_what_is_refused_for_long_has_no_state_and_is_enabled_anew(connection: psycopg.Connection, rows: Rows) -> None:
    """Risk: what was read before a practice lost a list counts as read when it has it again, or minutes count as a loss."""
    for location in (3, 4):
        save_state(connection, PassState(PassKey("charges", 7, location, "", "all"), watermark=NOON))
    assert note_charges(connection, "supported") is None, "it always was"
    record_freshness(connection, **CHARGES, complete_through=NOON, last_full_at=NOON, changed=True)
    for hours, kept, enabled in ((0, [(3,), (4,)], None), (47, [(3,), (4,)], None), (49, [(4,)], NOON)):
        note_charges(connection, "not_enabled")
        connection.execute("UPDATE nexhealth_capabilities SET since = since - %s * interval '1 hour'", (hours,))
        note_charges(connection, "not_enabled")
        assert rows("SELECT location_id FROM nexhealth_sync_state ORDER BY 1") == kept
        assert note_charges(connection, "supported") == enabled


@pytest.mark.parametrize(("status", "refused"), [("not_enabled", True), ("unsupported", True), ("supported", False)])
def test_a_refusal_lasts_until_it_is_answered_whenever_it_was_noted_last(
    connection: psycopg.Connection, status: str, refused: bool
) -> None:
    """Risk: of three nights the last is two minutes short of 48 hours, and the fourth goes on from the old watermark."""
    assert refused_since(connection, **CHARGES) is None
    for _ in range(2):
        note_charges(connection, status)
    since = connection.execute("SELECT since FROM nexhealth_capabilities").fetchone()
    assert refused_since(connection, **CHARGES) == (since[0] if since and refused else None)


def members(
    connection: psycopg.Connection, *ids: int, location_id: int = 3, minutes: int = 0, new: bool = False
) -> None:
    seen_at = NOON + minutes * MINUTE
    record_membership(connection, institution_id=7, location_id=location_id, patient_ids=ids, seen_at=seen_at, new=new)


LISTED = "SELECT patient_id, location_id FROM nexhealth_patient_locations WHERE gone_at IS NULL ORDER BY 1, 2"


def test_a_membership_that_stands_is_not_touched(connection: psycopg.Connection, rows: Rows) -> None:
    members(connection, 1, 2, 2)
    where = "SELECT ctid, xmin, xmax, first_seen FROM nexhealth_patient_locations ORDER BY patient_id"
    before = rows(where)
    members(connection, 1, 2, minutes=5)
    assert rows(where) == before
    members(connection)
    assert rows(LISTED) == [(1, 3), (2, 3)]


def test_patients_said_to_be_new_are_looked_for_where_one_is_not(connection: psycopg.Connection, rows: Rows) -> None:
    """Another run may have loaded them meanwhile, and a membership that ended must come back."""
    members(connection, 1, 2)
    connection.execute("UPDATE nexhealth_patient_locations SET gone_at = now() WHERE patient_id = 2")
    members(connection, 8, 9, new=True)
    members(connection, 2, 3, 3, new=True)
    assert rows(LISTED) == [(1, 3), (2, 3), (3, 3), (8, 3), (9, 3)]


def seen(connection: psycopg.Connection, *ids: int) -> int:
    """A pass that has met these; where it keeps them."""
    pass_id = begin_seen(connection, KEY, NOON)
    record_seen(connection, pass_id, map(str, ids))
    return pass_id


def close(connection: psycopg.Connection, pass_id: int, *, minutes: int = 1) -> int:
    patients = Table(connection, COLLECTIONS["patients"]).collection
    return close_membership(connection, patients, 7, 3, pass_id, began=NOON + minutes * MINUTE)


def test_whom_a_complete_pass_did_not_meet_is_gone_and_may_return(connection: psycopg.Connection, rows: Rows) -> None:
    members(connection, 1, 2)
    members(connection, 1, location_id=4)
    assert close(connection, seen(connection, 2, 5)) == 1
    assert rows(LISTED) == [(1, 4), (2, 3)]
    members(connection, 1, minutes=9)
    assert rows(LISTED) == [(1, 3), (1, 4), (2, 3)]
    since = "SELECT patient_id, location_id, first_seen FROM nexhealth_patient_locations ORDER BY 1, 2"
    assert rows(since) == [(1, 3, NOON + 9 * MINUTE), (1, 4, NOON), (2, 3, NOON)]


def test_whom_lists_may_leave_out_stays_until_it_is_gone_or_like_all_others(
    connection: psycopg.Connection, rows: Rows
) -> None:
    """Risk: a new patient whose visit is over leaves the location, and its documents are read under another one."""
    table = Table(connection, COLLECTIONS["patients"])
    people: list[dict[str, Any]] = [
        {"id": number, "updated_at": "2026-03-01T10:00:00Z", "bio": {"new_patient": new}}
        for number, new in ((1, True), (2, False), (3, None), (4, True), (5, True))
    ]
    table.load(*people)
    table.bury(4, NOON)
    members(connection, 1, 2, 3, 4, 5)
    assert close(connection, seen(connection, 5)) == 3
    assert rows(LISTED) == [(1, 3), (5, 3)]
    days = (
        "UPDATE nexhealth_patient_locations SET first_seen = first_seen + %s * interval '1 day' WHERE location_id = 4"
    )
    connection.execute("INSERT INTO nexhealth_capabilities VALUES (7, 4, 'patients', 'supported', %s, 'rows')", (NOON,))
    members(connection, 1, minutes=30, location_id=4)
    assert close(connection, seen(connection, 5)) == 0, "another location lists it as well"
    connection.execute(days, (3,))
    assert close(connection, seen(connection, 5)) == 1, "another location has listed it since"
    assert rows(LISTED) == [(1, 4), (5, 3)]
    members(connection, 1, minutes=2)
    connection.execute(days, (-3,))
    assert close(connection, seen(connection, 5), minutes=5) == 0, "the last that listed it"
    assert rows(LISTED) == [(1, 3), (1, 4), (5, 3)]
    table.load(people[0] | {"bio": {"new_patient": False}, "updated_at": "2026-03-02T10:00:00Z"})
    assert close(connection, seen(connection, 5), minutes=5) == 1
    assert rows(LISTED) == [(1, 4), (5, 3)]


def test_a_patient_who_came_back_after_the_pass_began_is_left_alone(connection: psycopg.Connection, rows: Rows) -> None:
    """Risk: a pass that had been past the patient's place takes back what a webhook told meanwhile."""
    members(connection, 1, 2)
    close(connection, seen(connection, 2))
    members(connection, 1, minutes=5)
    assert close(connection, seen(connection, 2), minutes=4) == 0
    assert rows(LISTED) == [(1, 3), (2, 3)]


def test_an_empty_answer_or_an_unreadable_record_marks_nobody(connection: psycopg.Connection, rows: Rows) -> None:
    """Risk: a list that came back empty by mistake empties a practice."""
    members(connection, 1, 2)
    assert close(connection, seen(connection)) == 0
    pass_id = seen(connection, 1)
    mark_unreadable(connection, pass_id)
    assert close(connection, pass_id) == 0
    assert rows(LISTED) == [(1, 3), (2, 3)]


def test_an_office_that_is_offline_loses_nobody(connection: psycopg.Connection, rows: Rows) -> None:
    """What NexHealth cannot read now, it may list short."""
    Table(connection, COLLECTIONS["sync_status"]).load(source("a", "red", 5, [3]))
    members(connection, 1, 2)
    assert close(connection, seen(connection, 1)) == 0
    assert rows(LISTED) == [(1, 3), (2, 3)]


def test_a_patient_first_seen_after_the_pass_began_is_left_alone(connection: psycopg.Connection, rows: Rows) -> None:
    """Risk: a patient refreshed on demand meanwhile, whom the pass's early pages could not hold, is gone at once."""
    members(connection, 1, 2)
    assert close(connection, seen(connection, 1), minutes=0) == 0
    assert rows(LISTED) == [(1, 3), (2, 3)]


def test_a_single_read_ends_no_membership_that_was_first_seen_after_it(
    connection: psycopg.Connection, rows: Rows
) -> None:
    """Risk: an answer that waited to be loaded takes the patient from the location it was given meanwhile."""
    members(connection, 1)
    members(connection, 1, location_id=4, minutes=5)
    record_locations(connection, 7, 1, [5], NOON + 3 * MINUTE)
    assert rows(LISTED) == [(1, 4), (1, 5)]
    record_locations(connection, 7, 1, [5], NOON + 6 * MINUTE)
    assert rows(LISTED) == [(1, 5)]
