"""Which patients' lists are due where an office is read no more: switched off in NexHealth, or said to be gone."""

from collections.abc import Sequence
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.warehouse.knowledge import record_membership

from .kit import INSTITUTION, NOON, Table
from .test_child_reads import VERSION, Explained, crowd, due, made, read

SWITCHED_OFF = "UPDATE nexhealth_locations SET inactive = {} WHERE id = {}"
GONE = "UPDATE nexhealth_locations SET deleted_at = CASE WHEN {} THEN now() END WHERE id = {}"


@pytest.fixture
def practice(connection: psycopg.Connection) -> psycopg.Connection:
    """Active locations 3 and 4, an inactive 2; patients 1 to 4 listed at 2 and 3, 3 and 4, 2 and 4, and nowhere."""
    return made(connection)


def listed(practice: psycopg.Connection, patient: int, location: int) -> None:
    """One more patient, of a location alone."""
    Table(practice, COLLECTIONS["patients"]).load({"id": patient, "updated_at": VERSION})
    record_membership(practice, institution_id=INSTITUTION, location_id=location, patient_ids=[patient], seen_at=NOON)


def databases(practice: psycopg.Connection, *locations: Sequence[Any]) -> None:
    """EHR databases, each of so many locations."""
    records = [
        {"sync_source_type": "DataSource", "sync_source_name": str(number), "locations": list(theirs)}
        for number, theirs in enumerate(locations)
    ]
    Table(practice, COLLECTIONS["sync_status"]).load(*records)


@pytest.mark.parametrize("closing", [SWITCHED_OFF, GONE], ids=["switched off", "gone"])
def test_lists_of_a_closed_offices_patients_rest_until_it_is_read_again(
    practice: psycopg.Connection, closing: str
) -> None:
    """They came to the lowest of the others for ever, who judged by what NexHealth answers of an office it has left."""
    listed(practice, 5, 4)
    read(practice, 3, hours_ago=40 * 24)
    assert due(practice, 4) == [3, 5]
    practice.execute(closing.format(True, 4))
    assert due(practice, 3, read_before=NOON) == [1, 2, 4], "whom an office lists that is read, and whom none lists"
    assert due(practice, 4) == []
    practice.execute(closing.format(False, 4))
    assert due(practice, 4) == [3, 5], "one in its turn, one that was never read"


def test_who_has_left_a_closed_office_is_of_no_location(practice: psycopg.Connection) -> None:
    """Somebody must have them."""
    listed(practice, 5, 2)
    listed(practice, 6, 999)
    assert not {5} & {*due(practice, 3)}
    assert 6 in due(practice, 3), "whom an office lists that nobody has heard of"
    practice.execute("UPDATE nexhealth_patient_locations SET gone_at = now() WHERE patient_id = 5")
    assert 5 in due(practice, 3)


def test_patients_of_a_closed_office_whose_database_is_read_are_the_lowest_readers(
    practice: psycopg.Connection,
) -> None:
    """They change with it as before; each list is in one slice, of whose source it is known whether it is online."""
    listed(practice, 5, 2)
    listed(practice, 6, 9)
    databases(practice, [{"id": 3}], [{"id": 4}, {"id": 2}, {"id": "9"}])
    assert due(practice, 3) == [1, 2, 4]
    assert due(practice, 4) == [3, 5, 6]
    practice.execute(SWITCHED_OFF.format(True, 4))
    assert due(practice, 3) == [1, 2, 4]
    practice.execute(SWITCHED_OFF.format(False, 2))
    assert (due(practice, 2), due(practice, 3)) == ([1, 2, 3, 4, 5, 6], []), "the other way round"


@pytest.mark.parametrize(
    "locations", [[None, 2, "2", {}, {"id": None}], [{"id": "9" * 30}, {"id": 4}]], ids=["words", "digits"]
)
def test_a_source_that_does_not_say_whose_it_is_is_nobodys(practice: psycopg.Connection, locations: list[Any]) -> None:
    listed(practice, 5, 2)
    databases(practice, [{"id": 2}], locations)
    assert due(practice, 3) == [1, 2, 4]
    assert due(practice, 4) == [3]


@pytest.mark.parametrize("location", [3, 12])
def test_what_is_due_with_closed_offices_is_found_by_keys(practice: psycopg.Connection, location: int) -> None:
    """Half of the offices are closed, and half of these in a database that is read."""
    patients = 20 * 50
    practice.execute(
        "INSERT INTO nexhealth_locations (institution_id, id, inactive, raw, source_read_at, synced_at, row_hash)"
        " SELECT %s, id, id > 12, '{}', now(), now(), '' FROM generate_series(5, 22) id",
        (INSTITUTION,),
    )
    databases(practice, *([{"id": one}, {"id": one + 10}] for one in range(8, 13)))
    crowd(practice, patients, locations=20)
    counting = Explained(practice)
    due(counting, location)  # type: ignore[arg-type]  # it asks one question
    # Of the lowest location all patients are looked at: somebody must have those whom no location lists.
    assert 0 < counting.blocks < 20 * (patients if location == 3 else 2 * patients // 20)
