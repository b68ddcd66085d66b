"""Records that a retry loads long after they were read: where they belong, and what has become of them since."""

import json
from collections.abc import Iterator
from datetime import datetime

import psycopg
import pytest

from .test_retry_quarantine import NOON, ONE, THREE, TWO, Desk, person

MEMBERS = "SELECT patient_id, location_id, first_seen, gone_at IS NULL FROM nexhealth_patient_locations ORDER BY 1, 2"
_PRACTICE = (
    "INSERT INTO nexhealth_institutions (institution_id, id, subdomain, raw, synced_at, source_read_at, row_hash)"
    " VALUES (7, 7, 'acme', '{}', now(), now(), '');"
    "INSERT INTO nexhealth_locations (institution_id, id, synced_at, source_read_at, row_hash)"
    " SELECT 7, id, now(), now(), '' FROM generate_series(3, 4) AS id;"
    "INSERT INTO nexhealth_sync_status (institution_id, sync_source_type, sync_source_name, locations, synced_at,"
    " source_read_at, row_hash) VALUES (7, 'x', 'y', '[{\"id\": 3}]', now(), now(), '')"
)


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    """Of office 3, which has a database of its own."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(_PRACTICE)
        yield Desk(database_url, connection)


def mend(desk: Desk) -> None:
    """A later release reads what this one refused."""
    for (number,) in desk.rows("SELECT record_id::int FROM nexhealth_quarantine"):
        desk.connection.execute(
            "UPDATE nexhealth_quarantine SET raw = %s WHERE record_id = %s",
            (json.dumps(person(number, born=None)).encode(), str(number)),
        )


def refused(number: int) -> bytes:
    return b'{"id": %d, "email": "\xff"}' % number


def test_who_was_refused_whole_is_listed_since_then(desk: Desk) -> None:
    """Else missing from the location's figures until its next whole read, months later perhaps."""
    desk.load("patients", refused(5))
    desk.load("patients", refused(6), at=TWO)
    assert desk.rows(MEMBERS) == []
    mend(desk)
    assert desk.retry() == (2, 2, 0, 0)
    assert desk.rows(MEMBERS) == [(5, 3, ONE, True), (6, 3, TWO, True)]


@pytest.mark.parametrize(
    "other",
    [
        """UPDATE nexhealth_sync_status SET locations = '[{"id": 3}, {"id": 4}]'""",
        "UPDATE nexhealth_locations SET inactive = true WHERE id = 3",
        "DELETE FROM nexhealth_locations WHERE id = 3",
    ],
    ids=["shared", "inactive", "gone"],
)
def test_the_list_of_a_database_that_is_shared_or_read_no_more_says_nothing_of_that(desk: Desk, other: str) -> None:
    """It holds the patients of all who share it; whose they are is asked for apart."""
    desk.load("patients", refused(5))
    mend(desk)
    desk.connection.execute(other)
    assert desk.retry() == (1, 1, 0, 0)
    assert desk.rows(MEMBERS) == []


@pytest.mark.parametrize(("gone_at", "listed"), [(THREE, (NOON, False)), (ONE, (TWO, True))], ids=["since", "before"])
def test_what_ended_since_is_not_brought_back(desk: Desk, gone_at: datetime, listed: tuple[datetime, bool]) -> None:
    """The patient's own read may have told that it is elsewhere now."""
    desk.connection.execute("INSERT INTO nexhealth_patient_locations VALUES (7, 5, 3, %s, %s)", (NOON, gone_at))
    desk.load("patients", refused(5), at=TWO)
    mend(desk)
    assert desk.retry() == (1, 1, 0, 0)
    assert desk.rows(MEMBERS) == [(5, 3, *listed)]


@pytest.mark.parametrize(
    ("gone_at", "outcome", "there"), [(TWO, (1, 0, 1, 0), 0), (NOON, (1, 1, 0, 0), 1)], ids=["since", "before"]
)
def test_what_was_found_absent_since_is_out_of_date_however_new_it_is(
    desk: Desk, gone_at: datetime, outcome: tuple[int, ...], there: int
) -> None:
    """Risk: it was refused when it changed, so it is newer than the row, and the dead one comes back by it."""
    desk.load("patients", person(5, born=None, at="2026-01-01T00:00:00Z"), at=NOON)
    desk.load("patients", refused(5))
    desk.connection.execute("UPDATE nexhealth_patients SET deleted_at = %s, deleted_by = 'absence'", (gone_at,))
    mend(desk)
    assert desk.retry() == outcome
    assert desk.rows("SELECT count(*) FROM nexhealth_patients WHERE deleted_at IS NULL") == [(there,)]
    assert len(desk.rows(MEMBERS)) == there


def test_what_stood_inside_a_record_that_is_gone_is_out_of_date(desk: Desk) -> None:
    """An event tells of the plan's deletion, and no read: nothing else says that its list is old."""
    plan = {"id": 6, "updated_at": "2026-02-01T00:00:00Z", "procedures": [{"id": "x"}]}
    desk.load("treatment_plans", plan)
    assert desk.rows("SELECT collection FROM nexhealth_quarantine") == [("treatment_plan_procedures",)]
    desk.connection.execute("UPDATE nexhealth_treatment_plans SET deleted_at = %s, deleted_by = 'absence'", (TWO,))
    desk.connection.execute("UPDATE nexhealth_quarantine SET raw = %s", (b'{"id": 61}',))
    assert desk.retry() == (1, 0, 1, 0)
    assert desk.rows("SELECT count(*) FROM nexhealth_treatment_plan_procedures") == [(0,)]
