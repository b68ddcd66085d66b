"""Which patients' lists are due."""

from datetime import datetime
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.warehouse.child_reads import DueRow, due_rows, record_child_reads, witnesses
from nexhealth_pipeline.warehouse.knowledge import record_membership

from .conftest import Rows
from .kit import INSTITUTION, MINUTE, NOON, Table

VERSION = "2026-03-01T10:00:00+00:00"


@pytest.fixture
def practice(connection: psycopg.Connection) -> psycopg.Connection:
    """Active locations 3 and 4, an inactive 2; patients 1 to 4 listed at 3, 3 and 4, 4, and nowhere."""
    offices = Table(connection, COLLECTIONS["locations"])
    for number in (2, 3, 4):
        record: dict[str, Any] = {"id": number, "inactive": number == 2, "institution_id": INSTITUTION}
        offices.load(record)
    patients = Table(connection, COLLECTIONS["patients"])
    patients.load(*({"id": number, "updated_at": VERSION} for number in range(1, 5)))
    for location, ids in ((3, [1, 2]), (4, [2, 3]), (2, [1, 3])):
        record_membership(connection, institution_id=INSTITUTION, location_id=location, patient_ids=ids, seen_at=NOON)
    return connection


def due(connection: psycopg.Connection, location_id: int = 3, **changes: Any) -> list[int]:
    given: dict[str, Any] = {"read_before": None, "rotation_days": 30} | changes
    found = due_rows(
        connection, collection=COLLECTIONS["documents"], institution_id=INSTITUTION, location_id=location_id, **given
    )
    return [patient.id for patient in found]


def read(connection: psycopg.Connection, *ids: int, hours_ago: float = 0, version: str | None = VERSION) -> None:
    of = None if version is None else datetime.fromisoformat(version)
    record_child_reads(
        connection,
        collection="documents",
        institution_id=INSTITUTION,
        reads=[(DueRow(number, of), 2) for number in ids],
    )
    connection.execute(
        "UPDATE nexhealth_child_reads SET read_at = read_at - ago, judged_at = judged_at - ago"
        " FROM make_interval(secs => %s) ago WHERE patient_id = ANY(%s)",
        (hours_ago * 3600, list(ids)),
    )


def test_a_patient_belongs_to_the_lowest_active_location_that_lists_it(practice: psycopg.Connection) -> None:
    """Each patient's list is one request: it must be in exactly one slice. Nowhere listed = the lowest of all."""
    assert due(practice, 3) == [1, 2, 4]
    assert due(practice, 4) == [3]
    assert due(practice, 2) == []


def test_a_patient_who_left_a_location_is_read_at_the_next(practice: psycopg.Connection) -> None:
    practice.execute("UPDATE nexhealth_patient_locations SET gone_at = now() WHERE patient_id = 2 AND location_id = 3")
    assert due(practice, 4) == [2, 3]


def test_a_read_list_is_due_again_when_the_patient_changed(practice: psycopg.Connection) -> None:
    read(practice, 1, 2, 4)
    assert due(practice) == []
    Table(practice, COLLECTIONS["patients"]).load(
        {"id": 2, "updated_at": "2026-03-02T00:00:00Z"}, read_at=NOON + MINUTE
    )
    assert due(practice) == [2]


def test_a_patient_without_a_version_is_read_once(practice: psycopg.Connection) -> None:
    practice.execute("UPDATE nexhealth_patients SET updated_at = NULL WHERE id = 1")
    read(practice, 2, 4)
    assert due(practice) == [1]
    read(practice, 1, version=None)
    assert due(practice) == []


def test_a_full_read_asks_for_all_that_were_read_before_it_began(practice: psycopg.Connection) -> None:
    """The resume point of a killed full read: what it had read is not asked again."""
    read(practice, 1, 2, hours_ago=2)
    read(practice, 4, hours_ago=0)
    began = practice.execute("SELECT clock_timestamp() - interval '1 hour'").fetchone()
    assert began is not None
    assert due(practice, read_before=began[0]) == [1, 2]


def test_a_deleted_patients_list_is_not_read(practice: psycopg.Connection) -> None:
    practice.execute("UPDATE nexhealth_patients SET deleted_at = now(), deleted_by = 'absence' WHERE id = 1")
    assert due(practice) == [2, 4]


@pytest.mark.parametrize(("days", "count"), [(30, 2), (60, 1), (59, 2), (1, 60)])
def test_rotation_takes_a_nights_share_oldest_first(practice: psycopg.Connection, days: int, count: int) -> None:
    """Documents change without their patient; within a month every list has been looked at again."""
    patients = range(101, 161)
    practice.execute("DELETE FROM nexhealth_patients")
    Table(practice, COLLECTIONS["patients"]).load(*({"id": number, "updated_at": VERSION} for number in patients))
    for number in patients:
        read(practice, number, hours_ago=24 + number)  # the highest id is the oldest
    expected = sorted(patients)[-count:]
    assert due(practice, rotation_days=days) == expected


def test_a_second_sync_of_the_same_day_rotates_nothing(practice: psycopg.Connection) -> None:
    read(practice, 1, 2, 4, hours_ago=19)
    assert due(practice, rotation_days=1) == []
    read(practice, 1, 2, 4, hours_ago=21)
    assert due(practice, rotation_days=1) == [1, 2, 4]


def test_what_was_read_is_noted_once_a_patient(practice: psycopg.Connection, rows: Rows) -> None:
    read(practice, 1)
    again = [(DueRow(1, None), 5)]
    record_child_reads(practice, collection="documents", institution_id=INSTITUTION, reads=again)
    assert rows("SELECT patient_id, patient_version, rows FROM nexhealth_child_reads") == [(1, None, 5)]


def test_every_list_comes_up_within_the_nights_and_none_twice_as_often(practice: psycopg.Connection) -> None:
    """What left a list is noticed in its turn at the latest; an office that grows by a fifth meanwhile included."""
    nights, first = 30, range(101, 201)
    practice.execute("DELETE FROM nexhealth_patients")
    patients = Table(practice, COLLECTIONS["patients"])
    patients.load(*({"id": number, "updated_at": VERSION} for number in first))
    read(practice, *first, hours_ago=24)
    last = dict.fromkeys(first, 0)
    for night in range(1, 4 * nights):
        new = [max(last) + 1] if night % 6 == 0 else []
        patients.load(*({"id": number, "updated_at": VERSION} for number in new))
        taken = set(due(practice, rotation_days=nights))
        turned = taken - set(new)
        assert taken - turned == set(new)
        assert len(turned) == -(-(len(last) + len(new)) // nights)
        assert all(night - last[one] > nights / 2 for one in turned if night > nights)
        last |= dict.fromkeys(taken, night)
        assert max(night - one for one in last.values()) < nights
        read(practice, *taken)
        practice.execute(
            "UPDATE nexhealth_child_reads SET judged_at = clock_timestamp() WHERE patient_id = ANY(%s)", (list(taken),)
        )
        practice.execute(
            "UPDATE nexhealth_child_reads SET read_at = read_at - interval '1 day', judged_at = judged_at - interval '1 day'"
        )


def test_a_read_that_does_not_judge_puts_off_no_turn(practice: psycopg.Connection) -> None:
    """Risk: a patient whose lists a webhook brings every few days would never be looked at for what is gone."""
    read(practice, 1, 2, 4, hours_ago=24)
    practice.execute("UPDATE nexhealth_child_reads SET judged_at = judged_at - interval '9 days' WHERE patient_id = 2")
    again = [(DueRow(2, datetime.fromisoformat(VERSION)), 2)]
    record_child_reads(practice, collection="documents", institution_id=INSTITUTION, reads=again)
    assert due(practice, rotation_days=3) == [2]


def test_witnesses_are_lists_that_had_records_read_lately_but_not_now(practice: psycopg.Connection) -> None:
    read(practice, 1, hours_ago=30)
    read(practice, 2, hours_ago=24)
    read(practice, 4, hours_ago=0)
    practice.execute("UPDATE nexhealth_child_reads SET rows = 0 WHERE patient_id = 3")
    row = practice.execute("SELECT clock_timestamp() - interval '1 hour'").fetchone()
    assert row is not None

    def found(most: int) -> list[int]:
        rows = witnesses(
            practice,
            collection=COLLECTIONS["documents"],
            institution_id=INSTITUTION,
            location_id=3,
            read_before=row[0],
            most=most,
        )
        return [one.id for one in rows]

    assert found(5) == [1, 2]
    assert found(1) == [2]
